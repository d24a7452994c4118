"""Discovery: the definitions that live in the `.py` files beside `feature_store.yaml`."""

import ast
import importlib
import importlib.util
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

from featurestore.catalog.collect import collect, difference
from featurestore.catalog.definition import Definition
from featurestore.catalog.desired import Desired, dependencies, described
from featurestore.catalog.graph import topological_order
from featurestore.catalog.snapshot import KIND_WORDS, CatalogSnapshot, Key
from featurestore.errors import DefinitionError, FeatureStoreError, NotFoundError

_PRIVATE: Final = "_featurestore_definitions_"
_SKIPPED: Final = ("_", ".", "test_")
_NOT_DEFINITIONS: Final = frozenset({"conftest.py", "setup.py"})
_LOCK: Final = threading.RLock()


@dataclass(frozen=True, slots=True)
class _Found:
    definition: Definition
    place: str


def load_definitions(folder: str | Path) -> list[Definition]:
    """Run the folder's `.py` files and return the definitions they hold, by file and line.

    Found are definitions that a file's top level holds by name, or in a list, tuple or mapping there. Files
    may import one another; afterwards no module of theirs remains loaded. Files that begin with `_`, `.` or
    `test_`, `conftest.py` and `setup.py` are left out, and so are subfolders unless imported.

    Raises:
        DefinitionError: a file cannot be run, two definitions have one kind and name, or definitions run in
            a circle; with file and line.
        NotFoundError: no such folder.
    """
    root = Path(folder).resolve()
    if not root.is_dir():
        raise NotFoundError(
            f"no folder {str(root)!r} to load definitions from",
            hint="`featurestore init NAME` makes one",
            path=str(root),
        )
    files = [p for p in sorted(root.glob("*.py")) if not _is_skipped(p.name)]
    found: dict[Key, _Found] = {}
    with _LOCK, _importable(root):
        for file in files:
            for item in _definitions_in(_run(file, root), file):
                _add(found, item)
    _check_circles(found)
    return [item.definition for item in found.values()]


def _is_skipped(name: str) -> bool:
    return name.startswith(_SKIPPED) or name in _NOT_DEFINITIONS


@contextmanager
def _importable(root: Path) -> Iterator[None]:
    """Let the folder's files import one another, and forget their modules afterwards.

    The folder comes last in the search, so that a file named like an installed module hides nothing.
    """
    path, write, before = list(sys.path), sys.dont_write_bytecode, set(sys.modules)
    sys.path.append(str(root))
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        sys.dont_write_bytecode = write
        for name in set(sys.modules) - before:
            if _lies_in(sys.modules[name], root):
                del sys.modules[name]


def _lies_in(module: ModuleType, root: Path) -> bool:
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    return any(place and Path(place).resolve().is_relative_to(root) for place in places)


def _run(file: Path, root: Path) -> ModuleType:
    """Run one file as a module, once.

    Raises:
        DefinitionError: it cannot be run; file and line are those of the folder's own innermost frame.
    """
    try:
        known = sys.modules.get(file.stem)
        spec = None if known else importlib.util.find_spec(file.stem)
        origin = (known.__file__ if known else spec.origin if spec else None) or ""
        if origin and Path(origin).resolve() == file:
            return importlib.import_module(file.stem)
        return _run_privately(file)
    except FeatureStoreError as error:
        place = _place(error, file, root)
        raise type(error)(f"{place}: {error.message}", hint=error.hint, **error.context) from error
    except (Exception, SystemExit) as error:  # other people's code may raise anything, and may want to end
        place = _place(error, file, root)
        raise DefinitionError(
            f"{place}: {type(error).__name__}: {getattr(error, 'msg', error)}",
            hint="the file is run to find its definitions; see the cause for the whole traceback",
            place=place,
        ) from error


def _run_privately(file: Path) -> ModuleType:
    """Run a file whose name something installed has too.

    Raises:
        DefinitionError: it is no Python file.
    """
    name = _PRIVATE + file.stem
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise DefinitionError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _place(error: BaseException, file: Path, root: Path) -> str:
    """Return `file:line` of the innermost frame in the folder."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_relative_to(root):
        return f"{Path(error.filename).relative_to(root)}:{error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).is_relative_to(root):
            return f"{Path(frame.filename).relative_to(root)}:{frame.lineno}"
    return str(file.relative_to(root))


def _definitions_in(module: ModuleType, file: Path) -> Iterator[_Found]:
    lines = _assigned_lines(file)
    for name, value in vars(module).items():
        line = lines.get(name)
        if line is None:
            continue  # imported, so found where it is assigned
        for item in _held_in(value):
            yield _Found(item, f"{file.name}:{line}")


def _held_in(value: object) -> Iterator[Definition]:
    if isinstance(value, Definition):
        yield value
    elif isinstance(value, Mapping):
        yield from (item for item in value.values() if isinstance(item, Definition))
    elif isinstance(value, (list, tuple)):
        yield from (item for item in value if isinstance(item, Definition))


def _assigned_lines(file: Path) -> dict[str, int]:
    """Return the line at which each top-level name is first assigned, in the order of lines."""
    lines: dict[str, int] = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            lines[node.id] = min(node.lineno, lines.get(node.id, node.lineno))
    return lines


def _add(found: dict[Key, _Found], item: _Found) -> None:
    key = (item.definition.kind, item.definition.name)
    other = found.setdefault(key, item)
    if other.definition is not item.definition:
        lines = difference(other.definition, item.definition)
        raise DefinitionError(
            f"{KIND_WORDS[key[0]]} {key[1]!r} is defined twice: at {other.place} and at {item.place}"
            + (": " + "; ".join(lines) if lines else ", both the same"),
            hint="keep one of them and import it where it is needed",
            places=[other.place, item.place],
        )


def _check_circles(found: Mapping[Key, _Found]) -> None:
    given = collect([item.definition for item in found.values()])
    desired = Desired(CatalogSnapshot(), given)
    for key, item in found.items():
        for d in dependencies(item.definition):
            own = key[0] in d.kinds and d.ref.version is None and d.ref.name == key[1]
            if own and not any(k != key[0] and desired.has((k, d.ref.name)) for k in d.kinds):
                raise DefinitionError(
                    f"{item.place}: {described(item.definition)} reads itself",
                    hint="give its source, or another view",
                    name=key[1],
                )
    reads = {
        key: {
            (kind, d.ref.name)
            for d in dependencies(definition)
            for kind in d.kinds
            if d.ref.version is None and desired.has((kind, d.ref.name)) and (kind, d.ref.name) != key
        }
        for key, definition in given.items()
    }
    try:
        topological_order(reads)
    except DefinitionError as error:
        circle: list[Key] = error.context["circle"]
        places = [found[key].place if key in found else "inside another definition" for key in circle[:-1]]
        raise DefinitionError(
            f"{places[0]}: {error.message} (at {', '.join(places)})",
            hint=error.hint,
            circle=circle,
            places=places,
        ) from error
