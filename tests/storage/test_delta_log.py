"""The log tells every damage, commits once, and is a Delta log to others."""

import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from tests.environment import SOAK, cases

from featurestore.core.canonical import canonical_json
from featurestore.errors import (
    AlreadyExistsError,
    CommitConflictError,
    CorruptDataError,
    FeatureStoreError,
    NotFoundError,
)
from featurestore.storage.delta_checkpoint import check_checkpoint, write_checkpoint
from featurestore.storage.delta_commit import DataFile
from featurestore.storage.delta_log import DeltaLog, commit, create_table, read_log, version_at
from featurestore.storage.files import read_files

SCHEMA = pa.schema([("key", pa.string()), pa.field("ts", pa.int64())])
TABLE_ID = "6fc42268-8faa-40e7-98e7-bcde79fd75ca"


def data_file(number: int) -> DataFile:
    """A file that the log does not look at."""
    return DataFile(
        path=f"event_date=2013-10-07/bucket=0001/part-{number}.parquet",
        date="2013-10-07",
        bucket=1,
        rows=number,
        size=100,
        xxh3=f"{number:032x}",
        digest=f"{number:032x}",
        minimum={"ts": number},
        maximum={"ts": number + 1},
    )


def opened(folder: Path) -> DeltaLog:
    """Read a log that must be there."""
    log = read_log(folder)
    assert log is not None
    return log


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table with three commits after its creation."""
    create_table(tmp_path, SCHEMA, table_id=TABLE_ID, time_ns=10**18, properties={"featurestore.name": "x"})
    for number in (1, 2, 3):
        removed = [data_file(number - 1)] if number == 3 else []
        commit(
            opened(tmp_path),
            added=[data_file(number)],
            removed=removed,
            operation="WRITE",
            app_id="a",
            now_ns=5,
        )
    return tmp_path


def test_versions_have_the_files_that_were_committed(table: Path) -> None:
    log = opened(table)
    rows = [sum(f.rows for f in log.files_at(v).values()) for v in range(4)]
    assert rows == [0, 1, 3, 4]
    assert log.files_at(3)[data_file(3).path] == data_file(3)
    with pytest.raises(NotFoundError, match="there are 0 to 3"):
        log.files_at(4)
    assert (log.transaction("a"), log.transaction("b")) == (3, None)


def test_the_clock_of_commits_grows_and_resolves_times(table: Path) -> None:
    log = opened(table)
    assert [c.time_ns - 10**18 for c in log.commits] == [0, 1, 2, 3]
    assert [version_at(table, 10**18 + t) for t in (0, 1, 2, 10)] == [0, 1, 2, 3]
    for time_ns, first in ((10**18 - 1, 0), (10**18, 1)):
        with pytest.raises(NotFoundError):
            version_at(table, time_ns, first=first)


def test_a_time_is_looked_up_by_first_lines_and_no_flip_in_one_passes(table: Path) -> None:
    path = table / "_delta_log" / f"{2:020d}.json"
    data = path.read_bytes()
    first = data.index(b"\n")
    # The digest of the whole is for those who read the whole.
    whole = data.index(b'"digest":"')
    for place in (i for i in range(0, first, 3) if not whole <= i < whole + 44):
        spoiled = bytearray(data)
        spoiled[place] ^= 1 << place % 8
        path.write_bytes(spoiled)
        with pytest.raises(CorruptDataError):
            version_at(table, 10**18 + 2)
    path.write_bytes(data[: first + 1])  # a commit of many files, of which just this much is read
    assert version_at(table, 10**18 + 2) == 2


def test_a_commit_without_a_digest_of_its_head_is_checked_as_a_whole(table: Path) -> None:
    """As commits were before there was one."""
    path = table / "_delta_log" / f"{2:020d}.json"
    first, *lines = path.read_bytes()[:-1].split(b"\n")
    info = json.loads(first)
    fs = {k: v for k, v in info["commitInfo"]["fs"].items() if k not in {"head", "digest"}}
    whole = b"".join([b"[[", b",".join(lines), b"],", canonical_json(fs).encode(), b"]"])
    info["commitInfo"]["fs"] = {**fs, "digest": hashlib.blake2b(whole, digest_size=16).hexdigest()}
    path.write_bytes(b"\n".join([canonical_json(info).encode(), *lines]) + b"\n")
    assert [version_at(table, 10**18 + t) for t in (0, 1, 2, 10)] == [0, 1, 2, 3]
    assert opened(table).commits[2].added


def test_deltalake_reads_it(table: Path) -> None:
    other = DeltaTable(str(table))
    assert other.version() == 3
    assert other.transaction_version("a") == 3
    assert len(other.file_uris()) == 2
    assert len(DeltaTable(str(table), version=2).file_uris()) == 2
    assert [f.name for f in other.schema().fields] == ["key", "ts", "event_date", "bucket"]
    assert other.metadata().configuration["delta.enableExpiredLogCleanup"] == "false"
    pruned = other.file_uris(file_pruning_predicate="ts > 3")
    assert [Path(u).name for u in pruned] == ["part-3.parquet"]


def test_a_stale_writer_is_told_and_a_second_table_refused(table: Path) -> None:
    log = opened(table)
    commit(log, added=[data_file(7)], removed=[], operation="WRITE", app_id="a", now_ns=5)
    with pytest.raises(CommitConflictError, match="version 4"):
        commit(log, added=[data_file(8)], removed=[], operation="WRITE", app_id="a", now_ns=5)
    with pytest.raises(AlreadyExistsError):
        create_table(table, SCHEMA, table_id=TABLE_ID, time_ns=1, properties={})


@pytest.mark.parametrize("version", [0, 2, 3])
@pytest.mark.parametrize("damage", ["emptied", "torn at a line", "torn within a line", "zeroed", "missing"])
def test_no_damage_to_a_commit_passes(table: Path, version: int, damage: str) -> None:
    path = table / "_delta_log" / f"{version:020d}.json"
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    spoiled = {
        "emptied": b"",
        "torn at a line": b"".join(lines[:-1]),
        "torn within a line": data[:-20],
        "zeroed": bytes(len(data)),
    }
    path.unlink()
    if damage != "missing":
        path.write_bytes(spoiled[damage])
    elif version == 3:
        # The newest commit cannot be missed by looking at the log alone: `verify` compares with the manifest.
        assert opened(table).head == 2
        return
    with pytest.raises(CorruptDataError):
        opened(table).files_at(2)


def test_no_flipped_bit_of_a_commit_passes(table: Path) -> None:
    rng = np.random.default_rng(3)
    before = opened(table)
    for _ in range(cases(400, 4000)):
        path = table / "_delta_log" / f"{int(rng.integers(4)):020d}.json"
        data = path.read_bytes()
        spoiled = bytearray(data)
        spoiled[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(spoiled)
        try:
            found = opened(table)
        except FeatureStoreError:
            pass
        else:
            assert found == before
        path.write_bytes(data)


def test_a_commit_of_another_program_is_refused(table: Path) -> None:
    line = json.dumps({"commitInfo": {"timestamp": 1, "operation": "OPTIMIZE", "engineInfo": "other"}})
    (table / "_delta_log" / f"{4:020d}.json").write_text(line + "\n")
    with pytest.raises(CorruptDataError, match="another program"):
        read_log(table)


def _writer(folder: str, number: int, commits: int) -> None:
    done = 0
    while done < commits:
        try:
            commit(
                opened(Path(folder)),
                added=[data_file(1000 * (number + 1) + done)],
                removed=[],
                operation="WRITE",
                app_id=f"w{number}",
                now_ns=1,
            )
        except CommitConflictError:
            continue
        done += 1


@pytest.mark.parametrize(("processes", "commits"), [(8, 100) if SOAK else (3, 8)])
def test_no_commit_of_many_processes_is_lost(table: Path, processes: int, commits: int) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_writer, args=(str(table), n, commits)) for n in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(280)
        assert worker.exitcode == 0
    log = opened(table)
    assert log.head == 3 + processes * commits
    assert len(log.files_at(log.head)) == 2 + processes * commits


def test_a_log_read_again_reads_only_what_is_new(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(table)
    read: list[Path] = []

    def spy(paths: Sequence[Path]) -> list[bytes]:
        read.extend(paths)
        return read_files(paths)

    monkeypatch.setattr("featurestore.storage.delta_log.read_files", spy)
    log = opened(table)
    assert read == []
    commit(log, added=[data_file(4)], removed=[], operation="WRITE", app_id="a", now_ns=5)
    assert opened(table).head == 4
    assert [p.name for p in read] == [f"{4:020d}.json"]
    # What was touched since is read and checked again, and so is what stands on it.
    os.utime(table / "_delta_log" / f"{2:020d}.json", ns=(1, 1))
    assert opened(table).head == 4
    assert [p.name for p in read[1:]] == [f"{v:020d}.json" for v in (2, 3, 4)]


def test_another_table_at_the_same_place_is_not_taken_for_the_old_one(table: Path) -> None:
    before = opened(table)
    shutil.rmtree(table / "_delta_log")
    assert read_log(table) is None
    create_table(table, SCHEMA, table_id="another", time_ns=10**18, properties={})
    after = opened(table)
    assert (before.table_id, after.table_id, after.head) == (TABLE_ID, "another", 0)


def test_versions_are_the_same_in_whatever_order_they_are_asked_for(table: Path) -> None:
    log = opened(table)
    forward = [log.files_at(v) for v in range(4)]
    assert [log.files_at(v) for v in (3, 1, 2, 0, 3)] == [forward[v] for v in (3, 1, 2, 0, 3)]
    log.files_at(3).clear()
    assert log.files_at(3) == forward[3]


def test_others_open_the_table_by_its_checkpoint(table: Path) -> None:
    write_checkpoint(opened(table))
    check_checkpoint(opened(table))
    before = DeltaTable(str(table), version=2)
    commit(opened(table), added=[data_file(9)], removed=[], operation="WRITE", app_id="b", now_ns=5)
    # Without the commits that it stands for, the checkpoint is all that a reader has of them.
    for version in (1, 2, 3):
        (table / "_delta_log" / f"{version:020d}.json").unlink()
    other = DeltaTable(str(table))
    assert other.version() == 4
    assert (other.transaction_version("a"), other.transaction_version("b")) == (3, 4)
    assert sorted(Path(u).name for u in other.file_uris()) == [f"part-{n}.parquet" for n in (1, 3, 9)]
    assert other.metadata().configuration["featurestore.name"] == "x"
    assert [Path(u).name for u in other.file_uris(file_pruning_predicate="ts > 4")] == ["part-9.parquet"]
    assert pl.scan_delta(str(table)).collect_schema().names() == ["key", "ts", "event_date", "bucket"]
    assert before.schema() == other.schema()


def test_no_flipped_bit_of_a_checkpoint_passes(table: Path) -> None:
    write_checkpoint(opened(table))
    rng = np.random.default_rng(3)
    names = ["_last_checkpoint", f"{3:020d}.checkpoint.parquet"]
    for _ in range(cases(200, 2000)):
        path = table / "_delta_log" / names[int(rng.integers(2))]
        data = path.read_bytes()
        spoiled = bytearray(data)
        spoiled[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(spoiled)
        with pytest.raises(CorruptDataError):
            check_checkpoint(opened(table))
        path.write_bytes(data)
    (table / "_delta_log" / names[1]).unlink()
    with pytest.raises(CorruptDataError, match="gone"):
        check_checkpoint(opened(table))


def test_a_thousand_commits_are_followed_in_little_time(table: Path) -> None:
    """The time of a commit does not grow with the log: what is known is not read again."""
    seconds = []
    for number in range(4, cases(304, 2004)):
        begin = time.process_time()
        commit(opened(table), added=[data_file(number)], removed=[], operation="WRITE", app_id="a", now_ns=5)
        seconds.append(time.process_time() - begin)
    tenth = len(seconds) // 10
    # Listing the folder and copying the active files grow; parsing would grow a hundred times faster.
    assert np.median(seconds[-tenth:]) < 8 * np.median(seconds[:tenth]) + 0.002
