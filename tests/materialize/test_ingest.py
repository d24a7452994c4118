"""Appended rows come whole or not at all, behind all others, with exactly the source's columns."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from deltalake import DeltaTable, write_deltalake
from tests.materialize.house import START_NS, events, seed_store

import featurestore as fs
from featurestore.catalog.catalog import open_catalog
from featurestore.catalog.refs import parse_ref
from featurestore.core.clock import ManualClock
from featurestore.core.config import StoreConfig
from featurestore.errors import DefinitionError, SchemaError
from featurestore.materialize.context import Context, source_spec
from featurestore.materialize.ingest import ingest
from featurestore.storage.delta_log import create_table
from featurestore.storage.sources import open_source

NS = pa.timestamp("ns", "UTC")
MOMENTS = [-1, 1_234_567_891, 10**18 + 7]


def test_rows_are_appended_behind_all_others(tmp_path: Path) -> None:
    house = seed_store(tmp_path, days=1)
    new = [events(5, 3, first_hour=0, hours=1), events(6, 2, first_hour=0, hours=1)]
    for rows in new:
        ingest(house.context, parse_ref("events"), rows)
    table = house.context.open(house.context.snapshot.source("events")).read()
    assert table.slice(150).equals(pa.concat_tables(new).combine_chunks())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param(lambda t: t.drop_columns(["size"]), "is missing", id="a column less"),
        pytest.param(lambda t: t.append_column("x", t.column(0)), "is not in the source", id="a column more"),
        pytest.param(
            lambda t: t.set_column(4, "size", t.column(4).cast("float")), "is float", id="another type"
        ),
    ],
)
def test_other_columns_are_refused(tmp_path: Path, change: object, match: str) -> None:
    house = seed_store(tmp_path, days=1)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SchemaError, match=match):
        ingest(house.context, parse_ref("events"), change(events(5, 3, first_hour=0, hours=1)))  # type: ignore[operator]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_null_time_is_refused(tmp_path: Path) -> None:
    house = seed_store(tmp_path, days=1)
    rows = events(5, 2, first_hour=0, hours=1)
    times = pa.array([None, START_NS]).cast(rows.schema.field("ts").type)
    with pytest.raises(SchemaError, match="no event timestamp"):
        ingest(house.context, parse_ref("events"), rows.set_column(1, "ts", times))


def test_a_delta_table_gets_a_commit_and_a_single_file_nothing(tmp_path: Path) -> None:
    rows = pa.table({"key": ["a"], "ts": pa.array([1], pa.int64())})
    write_deltalake(str(tmp_path / "table"), rows)
    pa.parquet.write_table(rows, tmp_path / "one.parquet")
    sources = [
        fs.Source("table", path="table", timestamp_field="ts"),
        fs.Source("one", path="one.parquet", timestamp_field="ts"),
    ]
    catalog = open_catalog(
        tmp_path,
        read_schema=lambda s: open_source(source_spec(s), str(tmp_path)).schema,
        clock=ManualClock(1),
    )
    catalog.apply(sources)
    context = Context(str(tmp_path), catalog.at(catalog.head), ManualClock(5), StoreConfig())
    assert ingest(context, parse_ref("table"), rows).version == 1
    assert DeltaTable(str(tmp_path / "table")).version() == 1
    assert context.open(catalog.at(catalog.head).source("table")).read().num_rows == 2
    with pytest.raises(DefinitionError, match="cannot be appended to"):
        ingest(context, parse_ref("one"), rows)


def _delta_source(folder: Path, rows: pa.Table | None) -> Context:
    """Define a source over a Delta table, which is there if it has rows."""
    if rows is not None:
        write_deltalake(str(folder / "table"), rows)
    source = fs.Source("table", path="table", timestamp_field="ts", format="delta")
    catalog = open_catalog(folder, read_schema=lambda _: pa.schema([("ts", NS)]), clock=ManualClock(1))
    catalog.apply([source])
    return Context(str(folder), catalog.at(catalog.head), ManualClock(5), StoreConfig())


@pytest.mark.parametrize("kind", [NS, pa.timestamp("ns"), pa.int64()], ids=["UTC", "naive", "int64"])
def test_nanoseconds_go_into_delta_as_int64_to_the_last_digit(tmp_path: Path, kind: pa.DataType) -> None:
    context = _delta_source(tmp_path, pa.table({"key": ["a"], "ts": pa.array([5], pa.int64())}))
    rows = pa.table({"key": ["b", "c", "d"], "ts": pa.array(MOMENTS).view(kind)})
    assert ingest(context, parse_ref("table"), rows).version == 1
    stored = context.open(context.snapshot.source("table")).read()
    assert sorted(stored.column("ts").to_pylist()) == [-1, 5, *MOMENTS[1:]]


def test_a_new_delta_table_keeps_nanoseconds(tmp_path: Path) -> None:
    context = _delta_source(tmp_path, None)
    rows = pa.table({"key": ["b", "c", "d"], "ts": pa.array(MOMENTS).view(NS)})
    assert ingest(context, parse_ref("table"), rows).version == 0
    assert ingest(context, parse_ref("table"), rows).version == 1
    stored = context.open(context.snapshot.source("table")).read()
    assert sorted(stored.column("ts").to_pylist()) == sorted(MOMENTS * 2)
    assert DeltaTable(str(tmp_path / "table")).schema().fields[1].metadata == {
        "featurestore.type": "timestamp[ns, tz=UTC]"
    }


def test_whole_microseconds_fit_a_delta_timestamp_and_others_are_refused(tmp_path: Path) -> None:
    there = pa.table({"key": ["a"], "ts": pa.array([5], pa.timestamp("us", "UTC"))})
    context = _delta_source(tmp_path, there)
    whole = pa.table({"key": ["b"], "ts": pa.array([-7000]).view(NS)})
    assert ingest(context, parse_ref("table"), whole).version == 1
    stored = context.open(context.snapshot.source("table")).read()
    assert sorted(stored.column("ts").cast(pa.int64()).to_pylist()) == [-7, 5]
    split = whole.set_column(1, "ts", pa.array([-7001]).view(NS))
    with pytest.raises(SchemaError, match="do not fit it exactly") as error:
        ingest(context, parse_ref("table"), split)
    assert "int64 nanoseconds" in error.value.hint
    assert DeltaTable(str(tmp_path / "table")).version() == 1


def test_a_value_column_of_nanoseconds_is_refused_by_a_new_delta_table(tmp_path: Path) -> None:
    context = _delta_source(tmp_path, None)
    rows = pa.table({"ts": pa.array(MOMENTS).view(NS), "seen": pa.array(MOMENTS).view(NS)})
    with pytest.raises(SchemaError, match="'seen'"):
        ingest(context, parse_ref("table"), rows)
    assert not (tmp_path / "table").exists()


def test_the_store_s_own_tables_take_no_rows(tmp_path: Path) -> None:
    schema = pa.schema([("key", pa.string()), ("ts", pa.int64())])
    create_table(tmp_path / "table", schema, table_id="t", time_ns=1, properties={"featurestore.name": "v"})
    context = _delta_source(tmp_path, None)
    columns = {"key": ["a"], "ts": [1], "event_date": [None], "bucket": [1]}
    types = [pa.string(), pa.int64(), pa.date32(), pa.int32()]
    rows = pa.table({n: pa.array(v, t) for (n, v), t in zip(columns.items(), types, strict=True)})
    with pytest.raises(DefinitionError, match="only materializing writes"):
        ingest(context, parse_ref("table"), rows)
