"""Definitions are found in the `.py` files of a folder, and what is wrong there is told by file and line."""

import sys
from pathlib import Path

import pytest

from featurestore import FeatureView, Source
from featurestore.catalog.discovery import load_definitions
from featurestore.errors import DefinitionError, NotFoundError

ENTITIES = "import featurestore as fs\n\nsymbol = fs.Entity('symbol')\n"
VIEWS = """\
import featurestore as fs
from entities import symbol

quotes = fs.Source("quotes", path="quotes", timestamp_field="ts", entities=[symbol])


def view(n):
    return fs.FeatureView(f"v{n}", source=quotes, entities=[symbol], features=["bid"])


many = [view(n) for n in range(3)]
by_name = {"more": view(3)}
"""


CIRCLE = "{0} = fs.FeatureView('{0}', source='{1}', entities=['e'], features=['x'])\n"


def write(folder: Path, **files: str) -> Path:
    """Write Python files into a folder."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def test_names_lists_and_mappings_at_top_level_are_found_once(tmp_path: Path) -> None:
    write(tmp_path, entities=ENTITIES, views=VIEWS)
    found = load_definitions(tmp_path)
    assert [d.name for d in found] == ["symbol", "quotes", "v0", "v1", "v2", "v3"]
    assert isinstance(found[1], Source)
    assert isinstance(found[2], FeatureView)


def test_nothing_of_the_folder_remains_behind(tmp_path: Path) -> None:
    write(tmp_path, entities=ENTITIES, views=VIEWS)
    before, path = set(sys.modules), list(sys.path)
    load_definitions(tmp_path)
    assert not {m for m in set(sys.modules) - before if "featurestore" not in m}
    assert sys.path == path
    assert sorted(p.name for p in tmp_path.iterdir()) == ["entities.py", "views.py"]


def test_an_edit_is_seen_by_the_next_load(tmp_path: Path) -> None:
    write(tmp_path, entities=ENTITIES)
    assert load_definitions(tmp_path)[0].name == "symbol"
    write(tmp_path, entities=ENTITIES.replace("'symbol'", "'ticker'"))
    assert load_definitions(tmp_path)[0].name == "ticker"


def test_two_folders_with_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, entities=ENTITIES.replace("'symbol'", f"'{name}'"))
    assert load_definitions(tmp_path / "one")[0].name == "one"
    assert load_definitions(tmp_path / "two")[0].name == "two"


@pytest.mark.parametrize("name", ["json", "random", "pyarrow", "types", "duckdb"])
def test_a_file_named_like_an_installed_module_hides_nothing(tmp_path: Path, name: str) -> None:
    write(
        tmp_path,
        **{name: ENTITIES, "uses": f"import {name}\nassert '{tmp_path}' not in ({name}.__file__ or '')\n"},
    )
    assert [d.name for d in load_definitions(tmp_path)] == ["symbol"]


def test_helpers_tests_and_subfolders_are_left_out_unless_imported(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep", inner="import featurestore as fs\ninner = fs.Entity('inner')\n")
    write(
        tmp_path,
        _helpers=ENTITIES,
        test_it="raise AssertionError",
        conftest="raise AssertionError",
        uses="from _helpers import symbol\nfrom deep.inner import inner\nboth = [symbol, inner]\n",
    )
    assert [d.name for d in load_definitions(tmp_path)] == ["symbol", "inner"]


def test_an_empty_folder_defines_nothing(tmp_path: Path) -> None:
    assert load_definitions(tmp_path) == []
    with pytest.raises(NotFoundError, match="no folder"):
        load_definitions(tmp_path / "missing")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        pytest.param(
            {"a": "import nonexistent_thing\n"}, "a.py:1: ModuleNotFoundError", id="a missing module"
        ),
        pytest.param({"a": "x = 1\ny = (\n"}, "a.py:2: SyntaxError", id="a syntax error"),
        pytest.param(
            {"a": "def f():\n    return 1 / 0\n\n\nf()\n"}, "a.py:2: ZeroDivisionError", id="a failure"
        ),
        pytest.param(
            {"a": "import featurestore as fs\n\nx = fs.Entity('é')\n"},
            "a.py:3: entity name 'é'",
            id="a bad name",
        ),
        pytest.param(
            {"a": "from b import x\n", "b": "import featurestore as fs\nx = fs.Entity('')\n"},
            "b.py:2: entity",
            id="the file that is wrong, not the one that imports it",
        ),
        pytest.param(
            {"a": "import b\nx = 1\n", "b": "from a import x\n"},
            "b.py:1: ImportError.*circular import",
            id="files that import each other",
        ),
        pytest.param(
            {
                "a": ENTITIES,
                "b": ENTITIES.replace("fs.Entity('symbol')", "fs.Entity('symbol', join_keys=['x'])"),
            },
            r"entity 'symbol' is defined twice: at a.py:3 and at b.py:3: join_keys \['symbol'\] and \['x'\]",
            id="two different objects of one name",
        ),
        pytest.param(
            {"a": ENTITIES, "b": ENTITIES},
            "defined twice: at a.py:3 and at b.py:3, both the same",
            id="two equal objects of one name",
        ),
        pytest.param(
            {
                "a": "import featurestore as fs\n" + CIRCLE.format("a", "b"),
                "b": "import featurestore as fs\n" + CIRCLE.format("b", "a"),
            },
            r"feature view 'a' → feature view 'b' → feature view 'a' \(at a.py:2, b.py:2\)",
            id="a circle of definitions",
        ),
        pytest.param(
            {"a": "import featurestore as fs\n" + CIRCLE.format("a", "a")},
            "a.py:2: feature view 'a' reads itself",
            id="a view of itself",
        ),
        pytest.param(
            {
                "a": "import featurestore as fs\nv = fs.FeatureView(\n    'v', source='s', entities=['e'],\n"
                "    features={'x': 'now()'},\n)\n"
            },
            "a.py:2: expression 'now\\(\\)'",
            id="an impure expression",
        ),
    ],
)
def test_what_is_wrong_is_told_by_file_and_line(tmp_path: Path, files: dict[str, str], says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        load_definitions(write(tmp_path, **files))
    assert not {"a", "b"} & set(sys.modules)


def test_the_cause_keeps_the_whole_traceback(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError) as raised:
        load_definitions(write(tmp_path, a="1 / 0\n"))
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_a_file_that_ends_the_process_is_an_error_in_that_file(tmp_path: Path) -> None:
    write(tmp_path, entities=ENTITIES, views="x = 1\nraise SystemExit(0)\n")
    with pytest.raises(DefinitionError, match=r"views\.py:2: SystemExit: 0"):
        load_definitions(tmp_path)
