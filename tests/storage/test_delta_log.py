"""The log tells every damage, commits once, and is a Delta log to others."""

import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from featurestore.errors import (
    AlreadyExistsError,
    CommitConflictError,
    CorruptDataError,
    FeatureStoreError,
    NotFoundError,
)
from featurestore.storage.delta_log import DataFile, DeltaLog, commit, create_table, read_log

SOAK = os.environ.get("FEATURESTORE_SOAK") == "1"
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
    assert [log.version_at(10**18 + t) for t in (0, 1, 2, 10)] == [0, 1, 2, 3]
    with pytest.raises(NotFoundError):
        log.version_at(10**18 - 1)


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
    for _ in range(4000 if SOAK else 400):
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
