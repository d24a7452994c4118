"""What the demo asks of a folder of ticks, and what it says where that is missing."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.demo.folder import deliver, find_days, generated_days, write_store
from featurestore.demo.run import run_demo
from featurestore.demo.ticks import TickSize
from featurestore.errors import AlreadyExistsError, NotFoundError, SchemaError

SMALL = TickSize(trades=400, quotes=2000, overnight=5)


@pytest.fixture
def ticks(tmp_path: Path) -> Path:
    generated_days(tmp_path / "ticks", size=SMALL)
    return tmp_path / "ticks"


def test_generated_days_are_found_again_with_their_created_column(ticks: Path) -> None:
    found = find_days(ticks)
    assert found.days == ("20250602", "20250603")
    assert found.created == "created"


def test_ticks_without_created_timestamps_are_taken_as_they_are(ticks: Path) -> None:
    for path in ticks.rglob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["created"]), path)
    assert find_days(ticks).created is None


def test_one_day_is_not_enough(ticks: Path) -> None:
    (ticks / "trades" / "20250603.parquet").unlink()
    with pytest.raises(NotFoundError, match="1 days of ticks") as raised:
        find_days(ticks)
    assert "at least two days" in raised.value.hint


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="0 days"):
        find_days(tmp_path / "nowhere")


def test_a_missing_column_is_named_with_its_file(ticks: Path) -> None:
    path = ticks / "quotes" / "20250602.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["ask"]), path)
    with pytest.raises(SchemaError, match=r"20250602\.parquet has no column 'ask'"):
        find_days(ticks)


def test_a_day_arrives_as_one_file_of_each_kind(ticks: Path, tmp_path: Path) -> None:
    found = find_days(ticks)
    root = tmp_path / "store"
    write_store(root, found)
    rows = deliver(found, "20250602", root)
    delivered = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.parquet"))
    assert delivered == ["ticks/quotes/20250602.parquet", "ticks/trades/20250602.parquet"]
    assert rows == sum(pq.read_metadata(path).num_rows for path in root.rglob("*.parquet"))


def test_the_definitions_are_an_ordinary_file_that_imports(ticks: Path, tmp_path: Path) -> None:
    write_store(tmp_path / "store", find_days(ticks))
    text = (tmp_path / "store" / "definitions.py").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    exec(compile(text, "definitions.py", "exec"), names)  # noqa: S102 -- the file under test
    assert names["CREATED"] == "created"
    assert {"quote", "flow", "mid_return", "market_state", "trade_features"} <= names.keys()


def test_the_demo_refuses_a_root_that_is_not_empty(ticks: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    shutil.copytree(ticks, root)
    with pytest.raises(AlreadyExistsError, match="not empty"):
        run_demo(data=None, root=root, keep=False, report=tmp_path / "report.html")


def test_tables_of_other_types_are_left_to_the_catalog(ticks: Path) -> None:
    """A wrong type is not the folder's business: `plan` refuses it with the column's name."""
    path = ticks / "trades" / "20250602.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(2, "price", table["price"].cast(pa.string())), path)
    assert find_days(ticks).days == ("20250602", "20250603")
