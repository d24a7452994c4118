"""Versions for people: found by number, tag or time, compared, restored, recreated, cleaned up."""

import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from tests.environment import SOAK
from tests.materialize.house import START_NS, House, as_bag, events, seed_store, spine_rows, write

from featurestore.core.clock import ManualClock
from featurestore.core.config import StoreConfig
from featurestore.core.time import format_instant
from featurestore.errors import AlreadyExistsError, CorruptDataError, NotFoundError
from featurestore.materialize.context import home_of
from featurestore.materialize.publish import publish, staging_folder
from featurestore.materialize.training_set import materialize, materialize_incremental
from featurestore.materialize.versions import (
    compact,
    diff,
    history,
    open_version,
    pin,
    recreate,
    rollback,
    unpin,
    vacuum,
    verify,
)
from featurestore.storage import delta_log
from featurestore.storage.delta_log import read_log

CONFIG = StoreConfig(buckets=2, threads=1)


@pytest.fixture
def house(tmp_path: Path) -> House:
    """Two versions; the clock goes back in between."""
    house = seed_store(tmp_path, days=2, config=CONFIG)
    clock = ManualClock(START_NS)
    house = House(house.root, replace(house.context, clock=clock))
    materialize(house.context, "set")
    clock.time_ns -= 10**12
    write(tmp_path / "spine" / "d1.parquet", spine_rows(8, 30, first_hour=24, hours=24))
    materialize(house.context, "set")
    return house


def test_the_commit_clock_never_goes_back_and_finds_versions(house: House) -> None:
    first, second = history(house.context, "set")
    assert second.committed_ns == first.committed_ns + 1
    assert open_version(house.context, "set", format_instant(first.committed_ns)).version == 1
    assert open_version(house.context, "set", format_instant(second.committed_ns)).version == 2
    assert open_version(house.context, "set", "2100-01-01").version == 2
    with pytest.raises(NotFoundError, match="no version as old as"):
        open_version(house.context, "set", format_instant(first.committed_ns - 1))


@pytest.mark.parametrize("version", [7, "8", "gold", "-1"])
def test_an_unknown_version_says_what_there_is(house: House, version: int | str) -> None:
    with pytest.raises(NotFoundError):
        open_version(house.context, "set", version)


def test_a_tag_names_one_version_and_keeps_it(house: House) -> None:
    pin(house.context, "set", 1, "gold")
    pin(house.context, "set", "v1", "gold")
    with pytest.raises(AlreadyExistsError, match="names version 1"):
        pin(house.context, "set", 2, "gold")
    before = open_version(house.context, "set", "gold").to_arrow()
    assert vacuum(house.context, "set", recent_hours=0) == []
    assert history(house.context, "set")[0].tags == ("gold",)
    unpin(house.context, "set", tag="gold")
    with pytest.raises(NotFoundError, match="no tag"):
        unpin(house.context, "set", tag="gold")
    assert open_version(house.context, "set", 1).to_arrow().equals(before)
    would = vacuum(house.context, "set", recent_hours=0)
    assert any(w.endswith("v00000001") for w in would)
    assert any(w.endswith(".parquet") for w in would)
    assert vacuum(house.context, "set", recent_hours=0, dry_run=False) == would
    assert not any(Path(w).exists() for w in would)
    assert [v.readable for v in history(house.context, "set")] == [False, True]
    verify(house.context, "set")


def test_a_recent_reader_keeps_its_version(house: House) -> None:
    assert vacuum(house.context, "set", recent_hours=1) == []
    assert vacuum(house.context, "set", keep=2, recent_hours=0) == []


def test_a_difference_counts_rows_as_bags(house: House) -> None:
    old, new = (as_bag(open_version(house.context, "set", v).to_arrow()) for v in (1, 2))
    found = diff(house.context, "set", 1, 2)
    gone, come = list(old), list(new)
    for row in old:
        if row in come:
            come.remove(row)
            gone.remove(row)
    assert (found.added + found.changed, found.removed + found.changed) == (len(come), len(gone))
    assert found.same > 0
    back = diff(house.context, "set", 2, 1)
    assert (back.added, back.removed, back.changed) == (found.removed, found.added, found.changed)
    assert diff(house.context, "set", 1, 1).partitions == ()


def test_a_changed_value_is_a_changed_row(tmp_path: Path) -> None:
    house = seed_store(tmp_path, days=1, config=CONFIG, unbounded=False)
    path = tmp_path / "spine" / "d0.parquet"
    materialize(house.context, "set")
    table = pq.read_table(path)
    keys = table.column("key").to_pylist()
    row = keys.index("k1")
    ids = table.column("id").to_pylist()
    ids[row] = -5
    write(path, table.set_column(2, "id", pa.array(ids)))
    materialize(house.context, "set")
    found = diff(house.context, "set", 1, 2)
    assert (found.added, found.removed, found.changed) == (0, 0, 1)


def test_a_rollback_is_a_new_version_of_the_old_content(house: House) -> None:
    old = open_version(house.context, "set", 1).to_arrow()
    result = rollback(house.context, "set", 1)
    assert result.version == 3
    assert open_version(house.context, "set").to_arrow().equals(old)
    verify(house.context, "set", 3)
    home = home_of(house.context, "set")
    log = read_log(home.delta)
    assert log is not None
    assert log.files_at(3).keys() == log.files_at(1).keys()
    # The sources are still those of version 2: materializing goes on from there.
    assert (
        materialize(house.context, "set").fingerprint
        == open_version(house.context, "set", 2).manifest.fingerprint
    )


def test_recreation_gives_the_same_fingerprint_on_another_executor(tmp_path: Path) -> None:
    house = seed_store(tmp_path, days=2, config=CONFIG)
    first = materialize(house.context, "set")
    report = recreate(house.context, "set", executor="processes")
    assert (report.fingerprint, report.executor) == (first.fingerprint, "processes")
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_version_whose_input_changed_is_not_recreated(house: House, damage: str) -> None:
    path = house.root / "events" / "d0.parquet"
    if damage == "gone":
        path.unlink()
    else:
        write(path, events(99, 150, first_hour=0, hours=24))
    expected = NotFoundError if damage == "gone" else CorruptDataError
    with pytest.raises(expected, match="pinned"):
        recreate(house.context, "set", 2)


def test_there_is_nothing_to_compact_but_the_log(tmp_path: Path) -> None:
    house = seed_store(tmp_path, days=2, config=CONFIG)
    materialize(house.context, "set")
    for number in range(4):
        rows = spine_rows(20 + number, 9, first_hour=6 * number, hours=20)
        write(tmp_path / "spine" / f"e{number}.parquet", rows)
        materialize_incremental(house.context, "set")
    before = open_version(house.context, "set").manifest
    report = compact(house.context, "set")
    home = home_of(house.context, "set")
    table = DeltaTable(str(home.delta))
    assert (report.created, report.version, report.checkpoint) == (False, 5, 5)
    assert report.files == report.partitions == len(table.file_uris()) == len(before.shards)
    assert "2 buckets are many for so few rows" in report.note
    assert open_version(house.context, "set").manifest == before
    assert (Path(str(home.delta)) / "_delta_log" / f"{5:020d}.checkpoint.parquet").exists()
    verify(house.context, "set")


@pytest.mark.parametrize("name", ["delta", "ipc"])
def test_verify_misses_nothing_that_is_gone(house: House, name: str) -> None:
    home = home_of(house.context, "set")
    folder = home.delta if name == "delta" else home.ipc / "v00000002"
    log = read_log(home.delta)
    assert log is not None
    victim = (
        home.delta / next(iter(log.files_at(2)))
        if name == "delta"
        else next(iter(folder.glob("part-*.arrow")))
    )
    Path(str(victim)).unlink()
    with pytest.raises(NotFoundError):
        verify(house.context, "set")


def test_opening_does_not_read_what_it_does_not_need(tmp_path: Path) -> None:
    """By number, tag or time in 50 ms: with 1,000 versions and a newest one of 20,000 partitions in soak."""
    versions, partitions = (1000, 20_000) if SOAK else (60, 2000)
    house = seed_store(tmp_path, days=1, config=CONFIG)
    materialize(house.context, "set")
    home = home_of(house.context, "set")
    first = open_version(house.context, "set").manifest
    log = read_log(home.delta)
    assert log is not None
    file, shard = next(iter(log.files_at(1).values())), first.shards[0]
    for number in range(2, versions + 1):
        log = read_log(home.delta)
        assert log is not None
        many = range(partitions if number == versions else 2)
        shards = [replace(shard, bucket=b, file=f"part-{b:08d}.arrow", xxh3=f"{b:032x}") for b in many]
        added = [replace(file, path=f"part-{number}-{b}.parquet", bucket=b) for b in many]
        manifest = replace(first.numbered(number, START_NS + number), shards=tuple(shards))
        publish(
            home,
            log,
            staging_folder(home),
            manifest,
            added=added,
            removed=list(log.files_at(log.head).values()),
            operation="WRITE",
            previous=first,
            now_ns=START_NS + number,
        )
    pin(house.context, "set", versions, "gold")
    names: list[int | str] = [versions, "gold", "2100-01-01"]
    for version in names:
        seconds = []
        opened = open_version(house.context, "set")
        for _ in range(5):
            delta_log.forget()
            begin = time.process_time()
            opened = open_version(house.context, "set", version)
            seconds.append(time.process_time() - begin)
        assert opened.version == versions
        assert len(opened.manifest.shards) == partitions
        assert min(seconds) <= 0.05, f"{min(seconds) * 1000:.1f} ms by {version!r}"
    assert history(house.context, "set")[-1].files == partitions


def test_a_checkpoint_of_the_log_outlives_vacuum_and_healing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurestore.storage.delta_checkpoint.EVERY", 3)
    write(house.root / "spine" / "d2.parquet", spine_rows(9, 30, first_hour=48, hours=24))
    materialize(house.context, "set")
    home = home_of(house.context, "set")
    table = Path(str(home.delta))
    assert [p.name for p in table.glob("_delta_log/*.parquet")] == [f"{3:020d}.checkpoint.parquet"]
    # A run that died leaves its staging folder and a data file behind.
    staging_folder(home)
    stray = table / "event_date=2013-10-22" / "stray.parquet"
    write(stray, spine_rows(9, 3, first_hour=48, hours=24))
    write(house.root / "spine" / "d3.parquet", spine_rows(10, 30, first_hour=48, hours=24))
    materialize(house.context, "set")
    vacuum(house.context, "set", recent_hours=0, dry_run=False)
    assert not stray.exists()
    verify(house.context, "set")
    for version in (1, 2, 3):
        (table / "_delta_log" / f"{version:020d}.json").rename(table / f"{version}.json")
    assert len(DeltaTable(str(table)).file_uris()) == len(open_version(house.context, "set").manifest.shards)
