"""A materialized training set is the whole join, however it is cut, spilled, threaded or stored."""

from dataclasses import replace
from pathlib import Path

import deltalake
import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.materialize.house import START_NS, as_bag, events, seed_store, spine_rows, whole_join, write

from featurestore.core.config import StoreConfig
from featurestore.core.time import DAY_NS
from featurestore.errors import CommitConflictError, NotFoundError, SchemaError
from featurestore.materialize.context import home_of
from featurestore.materialize.executors import Executor, Processes, Threads
from featurestore.materialize.lock import writing
from featurestore.materialize.training_set import materialize
from featurestore.materialize.versions import history, open_version, verify

CONFIGS = [
    pytest.param(StoreConfig(buckets=1, threads=1), id="one bucket, one thread"),
    pytest.param(StoreConfig(buckets=3, threads=2), id="three buckets, two threads"),
    pytest.param(StoreConfig(buckets=7, threads=2, memory_bytes=20_000), id="spilling nearly everything"),
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("unbounded", [True, False], ids=["state is carried", "look-back is read again"])
def test_every_row_is_the_one_that_a_single_join_gives(
    tmp_path: Path, config: StoreConfig, unbounded: bool
) -> None:
    house = seed_store(tmp_path, config=config, unbounded=unbounded)
    result = materialize(house.context, "set")
    stored = open_version(house.context, "set").to_arrow()
    assert result.rows == stored.num_rows == 180
    assert as_bag(stored) == as_bag(whole_join(house).cast(stored.schema))
    verify(house.context, "set")


def test_executors_and_budgets_leave_no_trace_in_the_fingerprint(tmp_path: Path) -> None:
    house = seed_store(tmp_path)
    found = set()
    choices: list[tuple[Executor, int]] = [
        (Threads(1), 1 << 30),
        (Threads(2), 1 << 30),
        (Threads(2), 30_000),
        (Processes(2), 1 << 30),
    ]
    for number, (executor, memory) in enumerate(choices):
        config = replace(house.context.config, memory_bytes=memory)
        root = tmp_path / f"copy{number}"
        root.mkdir()
        for name in ("spine", "events", "catalog"):
            (root / name).symlink_to(tmp_path / name)
        context = replace(house.context, root=str(root), config=config)
        found.add(materialize(context, "set", executor=executor).fingerprint)
    assert len(found) == 1


def test_rows_are_in_canonical_order_and_null_keys_come_last(tmp_path: Path) -> None:
    house = seed_store(tmp_path)
    materialize(house.context, "set")
    opened = open_version(house.context, "set")
    places = [(s.date, s.bucket) for s in opened.manifest.shards]
    assert places == sorted(places)
    for view in opened.shards():
        rows = [(k is None, k or "", t) for k, t in zip(*_pairs(view.to_table(["key", "ts"])), strict=True)]
        assert rows == sorted(rows)
        codes, offsets = view.entity_codes, view.offsets
        assert offsets[-1] == np.count_nonzero(codes >= 0)
        for entity, key in enumerate(view.entity_keys().column("key").to_pylist()):
            own = view.column("key").slice(offsets[entity], offsets[entity + 1] - offsets[entity])
            assert set(own.to_pylist()) == {key}


def _pairs(table: pa.Table) -> tuple[list[str | None], list[int]]:
    return table.column("key").to_pylist(), table.column("ts").cast(pa.int64()).to_pylist()


def test_the_same_inputs_again_write_nothing_and_new_ones_write_a_version(tmp_path: Path) -> None:
    house = seed_store(tmp_path)
    first = materialize(house.context, "set")
    before = sorted(p for p in tmp_path.rglob("*") if p.is_file() and ".cache" not in p.parts)
    again = materialize(house.context, "set")
    assert (again.version, again.created, again.fingerprint) == (1, False, first.fingerprint)
    assert before == sorted(p for p in tmp_path.rglob("*") if p.is_file() and ".cache" not in p.parts)
    old = open_version(house.context, "set", 1).to_arrow()
    write(tmp_path / "spine" / "d3.parquet", spine_rows(3, 40, first_hour=72, hours=24))
    second = materialize(house.context, "set")
    assert (second.version, second.rows, second.created) == (2, 220, True)
    assert open_version(house.context, "set", 1).to_arrow().equals(old)
    assert [v.version for v in history(house.context, "set")] == [1, 2]


def test_other_engines_read_the_delta_table(tmp_path: Path) -> None:
    house = seed_store(tmp_path)
    materialize(house.context, "set")
    write(tmp_path / "spine" / "d0.parquet", spine_rows(9, 50, first_hour=0, hours=20))
    materialize(house.context, "set")
    ours = open_version(house.context, "set").to_arrow()
    home = home_of(house.context, "set")
    frame = pl.scan_delta(str(home.delta)).collect()
    assert frame.height == ours.num_rows
    assert sorted(frame["ts"].to_list()) == sorted(ours.column("ts").cast(pa.int64()).to_pylist())
    table = deltalake.DeltaTable(str(home.delta))
    assert table.version() == 2
    rows = duckdb.execute("SELECT count(*), count(DISTINCT id) FROM read_parquet($1)", [table.file_uris()])
    assert rows.fetchall() == [(ours.num_rows, len(set(ours.column("id").to_pylist())))]
    old = deltalake.DeltaTable(str(home.delta), version=1)
    assert sum(pq.read_metadata(u).num_rows for u in old.file_uris()) == 180
    assert table.file_uris(file_pruning_predicate="event_date = '2013-10-24'") != table.file_uris()


def test_a_range_takes_its_start_and_leaves_its_end(tmp_path: Path) -> None:
    house = seed_store(tmp_path)
    start, end = START_NS + DAY_NS // 2, START_NS + 2 * DAY_NS
    materialize(house.context, "set", start_ns=start, end_ns=end)
    stored = open_version(house.context, "set").to_arrow()
    whole = whole_join(house).cast(stored.schema)
    times = whole.column("ts").cast(pa.int64()).to_numpy()
    inside = whole.filter(pa.array((times >= start) & (times < end)))
    assert 0 < stored.num_rows < whole.num_rows
    assert as_bag(stored) == as_bag(inside)


def test_a_spine_row_without_a_time_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    house = seed_store(tmp_path)
    first = materialize(house.context, "set")
    bad = spine_rows(5, 4, first_hour=0, hours=1)
    times = pa.array([None, *bad.column("ts").to_pylist()[1:]], bad.schema.field("ts").type)
    write(tmp_path / "spine" / "bad.parquet", bad.set_column(1, "ts", times))
    with pytest.raises(SchemaError, match="no event timestamp"):
        materialize(house.context, "set")
    assert open_version(house.context, "set").version == first.version
    assert not [p for p in home_of(house.context, "set").ipc.iterdir() if p.name.startswith(".tmp")]


def test_a_second_writer_is_told(tmp_path: Path) -> None:
    house = seed_store(tmp_path)
    home = home_of(house.context, "set")
    with (
        writing(home),
        pytest.raises(CommitConflictError, match="another process"),
        writing(home, wait_s=0.1),
    ):
        pass


def test_a_view_is_stored_as_its_source_rows_with_the_features_of_their_own_time(tmp_path: Path) -> None:
    house = seed_store(tmp_path)
    result = materialize(house.context, "near")
    stored = open_version(house.context, "near").to_arrow()
    assert result.rows == stored.num_rows == 450
    assert {"key", "ts", "created", "value", "double", "source__value"} == set(stored.column_names)
    verify(house.context, "near")
    again = seed_store(tmp_path / "other", config=StoreConfig(buckets=3, threads=1, memory_bytes=40_000))
    assert materialize(again.context, "near").fingerprint == result.fingerprint


def test_rows_of_a_view_without_a_time_are_dropped_and_counted(tmp_path: Path) -> None:
    table = events(50, 10, first_hour=0, hours=2)
    times = pa.array([None, *table.column("ts").to_pylist()[1:]], table.schema.field("ts").type)
    house = seed_store(tmp_path)
    write(tmp_path / "events" / "dx.parquet", table.set_column(1, "ts", times))
    result = materialize(house.context, "ever")
    assert (result.rows, result.dropped_rows) == (459, 1)


def test_what_was_never_materialized_is_not_found(tmp_path: Path) -> None:
    house = seed_store(tmp_path)
    with pytest.raises(NotFoundError, match="nothing has been materialized"):
        open_version(house.context, "set")
    with pytest.raises(NotFoundError):
        materialize(house.context, "sett")
