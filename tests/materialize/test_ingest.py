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
from featurestore.storage.sources import open_source


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
