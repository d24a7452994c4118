"""An incremental run equals a full one, fingerprint for fingerprint, whatever arrived and in which order."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.environment import cases
from tests.materialize.house import House, build, events, seed_store, spine_rows, write

from featurestore.core.config import StoreConfig
from featurestore.core.time import day_text
from featurestore.materialize.training_set import materialize, materialize_incremental
from featurestore.materialize.versions import open_version, verify

CONFIG = StoreConfig(buckets=3, threads=1)

changes = st.lists(
    st.tuples(
        st.sampled_from(["append", "late", "replace", "delete"]),
        st.sampled_from(["spine", "events"]),
        st.integers(0, 10_000),
    ),
    min_size=1,
    max_size=4,
)


def _apply(root: Path, change: tuple[str, str, int], step: int) -> None:
    what, source, seed = change
    folder = root / source
    files = sorted(folder.iterdir())
    make = events if source == "events" else spine_rows
    if what == "append":
        write(folder / f"d{3 + step}.parquet", make(seed, 12, first_hour=72 + 20 * step, hours=6))
    elif what == "late":
        write(folder / f"a{step}.parquet", make(seed, 5, first_hour=seed % 60, hours=3))
    elif what == "replace":
        write(files[seed % len(files)], make(seed, 30, first_hour=24 * (seed % 3), hours=24))
    elif len(files) > 1:
        files[seed % len(files)].unlink()


def _full(house: House) -> str:
    """Materialize the same sources under a fresh root."""
    with tempfile.TemporaryDirectory() as fresh:
        for name in ("spine", "events"):
            shutil.copytree(house.root / name, Path(fresh) / name)
        other = build(
            Path(fresh),
            config=house.context.config,
            unbounded=_has_view(house, "ever"),
            crossed=_has_view(house, "there"),
        )
        return materialize(other.context, "set").fingerprint


def _has_view(house: House, name: str) -> bool:
    return any(d.name == name for d in house.context.snapshot.definitions())


@pytest.mark.parametrize(
    ("unbounded", "crossed"),
    [(False, False), (True, False), (False, True), (True, True)],
    ids=["bounded", "unbounded", "bounded, other keys, too", "unbounded, other keys, too"],
)
@settings(
    max_examples=cases(3, 300),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(changes=changes)
def test_every_order_of_arrival_gives_what_a_full_run_gives(
    unbounded: bool, crossed: bool, changes: list[tuple[str, str, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        house = seed_store(Path(folder), config=CONFIG, unbounded=unbounded, crossed=crossed)
        materialize(house.context, "set")
        for step, change in enumerate(changes):
            _apply(house.root, change, step)
            found = materialize_incremental(house.context, "set")
            assert found.fingerprint == _full(house)
        verify(house.context, "set")


def test_only_reachable_partitions_are_computed_again(tmp_path: Path) -> None:
    house = seed_store(tmp_path, days=6, config=StoreConfig(buckets=1, threads=1), unbounded=False)
    materialize(house.context, "set")
    before = {s.date: s for s in open_version(house.context, "set").manifest.shards}
    # One late row at noon of the second day: a window of 30 hours behind its readers, a label of 5 ahead.
    late = events(77, 1, first_hour=36, hours=1).set_column(0, "key", pa.array(["k1"]))
    write(tmp_path / "events" / "late.parquet", late)
    result = materialize_incremental(house.context, "set")
    after = {s.date: s for s in open_version(house.context, "set").manifest.shards}
    touched = [d for d in sorted(after) if after[d].xxh3 != before[d].xxh3]
    assert result.written == 2
    assert set(touched) <= {day_text(16_001), day_text(16_002)}
    home = house.root / "datasets" / "set" / "ipc"
    for date, shard in after.items():
        same = (home / "v00000002" / shard.file).stat().st_ino == (
            home / "v00000001" / shard.file
        ).stat().st_ino
        assert same == (date not in {day_text(16_001), day_text(16_002)})


def test_nothing_new_is_no_new_version(tmp_path: Path) -> None:
    house = seed_store(tmp_path, config=CONFIG)
    first = materialize(house.context, "set")
    again = materialize_incremental(house.context, "set")
    assert (again.version, again.created) == (first.version, False)


def test_a_first_incremental_run_is_a_full_one(tmp_path: Path) -> None:
    house = seed_store(tmp_path, config=CONFIG)
    assert materialize_incremental(house.context, "set").fingerprint == _full(house)


def test_rows_behind_the_end_of_a_range_come_in_later(tmp_path: Path) -> None:
    house = seed_store(tmp_path, config=CONFIG)
    end_ns = int(np.median(open_times(house)))
    materialize(house.context, "set", end_ns=end_ns)
    assert materialize_incremental(house.context, "set").fingerprint == _full(house)


def open_times(house: House) -> np.ndarray:
    tables = [pa.parquet.read_table(p) for p in sorted((house.root / "spine").iterdir())]
    return np.asarray(pa.concat_tables(tables).column("ts").cast(pa.int64()))


@pytest.mark.parametrize("view", ["near", "recent", "ever"])
@settings(max_examples=cases(5, 200), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=changes, days=st.integers(2, 8))
def test_a_view_follows_its_source(view: str, changes: list[tuple[str, str, int]], days: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        house = seed_store(Path(folder), days=days, config=CONFIG)
        materialize(house.context, view)
        for step, (what, _, seed) in enumerate(changes):
            _apply(house.root, (what, "events", seed), step)
            found = materialize_incremental(house.context, view)
            with tempfile.TemporaryDirectory() as fresh:
                for name in ("spine", "events"):
                    shutil.copytree(house.root / name, Path(fresh) / name)
                whole = materialize(build(Path(fresh), config=CONFIG).context, view)
            assert (found.fingerprint, found.rows) == (whole.fingerprint, whole.rows)
        verify(house.context, view)


def test_dates_between_the_affected_ones_are_not_written_into_them(tmp_path: Path) -> None:
    house = seed_store(tmp_path, days=8, config=StoreConfig(buckets=1, threads=1))
    materialize(house.context, "recent")
    before = {s.date: s.digest for s in open_version(house.context, "recent").manifest.shards}
    rows = pa.concat_tables(events(90 + d, 2, first_hour=24 * d, hours=3) for d in (0, 4))
    write(tmp_path / "events" / "late.parquet", rows)
    result = materialize_incremental(house.context, "recent")
    after = {s.date: s.digest for s in open_version(house.context, "recent").manifest.shards}
    # A window of 30 hours reaches from a date into the next two.
    assert result.rows == 8 * 150 + 4
    assert {d for d in after if after[d] != before[d]} <= {day_text(16_000 + d) for d in (0, 1, 2, 4, 5, 6)}


def test_a_file_without_rows_changes_nothing(tmp_path: Path) -> None:
    house = seed_store(tmp_path, config=CONFIG)
    first = materialize(house.context, "set")
    write(tmp_path / "events" / "empty.parquet", events(1, 0, first_hour=0, hours=1))
    assert materialize_incremental(house.context, "set").fingerprint == first.fingerprint
