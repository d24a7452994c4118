"""The Delta log of our own tables: one JSON file per commit, put if absent, each with its own digest.

deltalake would write the same files without a single fsync; a power loss could then leave an empty commit,
which every reader takes for a commit that changed nothing. Here a commit's bytes are on the disk before its
name exists. Protocol reader 1 / writer 2: any Delta reader opens the tables.
"""

import os
import re
import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow as pa

from featurestore.core.canonical import canonical_json
from featurestore.errors import (
    AlreadyExistsError,
    CommitConflictError,
    CorruptDataError,
    NotFoundError,
)
from featurestore.storage.delta_commit import (
    Commit,
    DataFile,
    add_action,
    committed_ns,
    encoded_commit,
    parsed_commit,
    refuse_commit,
    remove_action,
)
from featurestore.storage.files import (
    AnyPath,
    make_folders,
    put_if_absent,
    read_files,
)
from featurestore.storage.objects import ObjectPath
from featurestore.storage.physical import delta_schema

LOG: Final = "_delta_log"
PARTITIONS: Final = ("event_date", "bucket")
# Nothing but our own vacuum may clean up: pinned versions need both files and log.
CONFIGURATION: Final = {
    "delta.checkpointInterval": "1000000",
    "delta.enableExpiredLogCleanup": "false",
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
}
_COMMIT: Final = re.compile(r"\d{20}\.json")

Item = TypeVar("Item")
# Name of a commit file, then what changes when the file is touched.
Stamp = tuple[str, tuple[int, ...]]
_KNOWN_MAX: Final = 64
_KNOWN: "dict[AnyPath, tuple[tuple[Stamp, ...], DeltaLog]]" = {}
_LOCK: Final = threading.Lock()


@dataclass(frozen=True, slots=True)
class DeltaLog:
    """A table's whole log, checked.

    Attributes:
        snapshot: The version whose files were asked for last, and these files; other versions start there.
    """

    folder: AnyPath
    table_id: str
    commits: tuple[Commit, ...]
    snapshot: dict[int, dict[str, DataFile]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def head(self) -> int:
        """The newest version."""
        return len(self.commits) - 1

    def files_at(self, version: int) -> dict[str, DataFile]:
        """Return the active files of a version, by path.

        Raises:
            NotFoundError: no such version.
            CorruptDataError: they are not as many, or not of as many rows, as the commit recorded.
        """
        if not 0 <= version <= self.head:
            raise NotFoundError(
                f"{str(self.folder)!r} has no version {version}", hint=f"there are 0 to {self.head}"
            )
        known, active = max(((v, f) for v, f in self.snapshot.items() if v <= version), default=(-1, {}))
        active = dict(active)
        for commit in self.commits[known + 1 : version + 1]:
            for path in commit.removed:
                active.pop(path, None)
            active.update((f.path, f) for f in commit.added)
        fs = self.commits[version].fs
        rows = sum(f.rows for f in active.values())
        if fs["table_files"] != len(active) or fs["table_rows"] != rows:
            raise CorruptDataError(
                f"version {version} of {str(self.folder)!r} should hold {fs['table_rows']} rows in "
                f"{fs['table_files']} files, its log gives {rows} in {len(active)}",
                hint="a commit file was damaged; restore it",
            )
        self.snapshot.clear()
        self.snapshot[version] = active
        return dict(active)

    def transaction(self, app_id: str) -> int | None:
        """Return the newest version that an application recorded, `None` if it never did."""
        for commit in reversed(self.commits):
            if app_id in commit.transactions:
                return commit.transactions[app_id]
        return None


def version_at(folder: AnyPath, time_ns: int, *, first: int = 0) -> int:
    """Return the newest version committed at or before an instant, by our own commit clock.

    Raises:
        NotFoundError: the instant lies before the version `first`, or there is none.
        CorruptDataError: a commit that was looked at is damaged.

    Cost:
        One look at the folder and, as the clock only grows, the first lines of log2 of the commits.
    """
    log = folder / LOG
    there = (p.name for p in log.iterdir()) if isinstance(log, ObjectPath) else _listed(log)
    numbers = sorted(int(name[:20]) for name in there if _COMMIT.fullmatch(name))
    versions = [number for number in numbers if number >= first]

    def made_ns(version: int) -> int:
        return committed_ns(version, log / _name(version))

    found = bisect_right(versions, time_ns, key=made_ns)
    if found == 0:
        raise NotFoundError(
            f"{str(folder)!r} has no version that old",
            hint="the first was committed later" if versions else "nothing was committed yet",
            first_ns=made_ns(versions[0]) if versions else None,
        )
    return versions[found - 1]


def read_log(folder: AnyPath) -> DeltaLog | None:
    """Read and check a table's log; `None` where there is no table.

    Commits that this process has read before and that have not been touched since are not read again.

    Raises:
        CorruptDataError: a commit is missing, empty, torn or altered, or another program wrote it.

    Cost:
        One look at the folder; then only what is new. The first time a few bytes of each commit are parsed,
        its actions when they are asked for.
    """
    stamps = _stamps(folder / LOG)
    if not stamps:
        return None
    for version, stamp in enumerate(stamps):
        if int(stamp[0][:20]) != version:
            raise CorruptDataError(
                f"{str(folder)!r}: commit {version} is missing from the log",
                hint="restore the file",
                path=stamp[0],
            )
    known, log = _KNOWN.get(folder, ((), None))
    same = next((i for i, (a, b) in enumerate(zip(known, stamps, strict=False)) if a != b), len(known))
    same = min(same, len(stamps))
    if log is not None and same == len(known) == len(stamps):
        return log
    paths = [folder / LOG / name for name, _ in stamps[same:]]
    new = [
        parsed_commit(same + i, path, data)
        for i, (path, data) in enumerate(zip(paths, read_files(paths), strict=True))
    ]
    old = log.commits[:same] if log is not None else ()
    snapshot = {v: f for v, f in log.snapshot.items() if v < same} if log is not None else {}
    commits = (*old, *new)
    found = DeltaLog(folder, _table_id(commits[0]), commits, snapshot)
    _remember(folder, stamps, found)
    return found


def _listed(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208 -- names alone, without a Path each


def _stamps(folder: AnyPath) -> tuple[Stamp, ...]:
    """List the commits by name, each with what changes when it is touched."""
    found: list[Stamp]
    if isinstance(folder, ObjectPath):
        objects = folder.objects().items()
        found = [(p.name, (i.size, i.modified_ns)) for p, i in objects if p.parent == folder]
    elif folder.is_dir():
        with os.scandir(folder) as entries:
            found = [(e.name, _identity(e)) for e in entries if e.name.endswith(".json")]
    else:
        return ()
    return tuple(sorted(f for f in found if _COMMIT.fullmatch(f[0])))


def _identity(entry: os.DirEntry[str]) -> tuple[int, ...]:
    status = entry.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _remember(folder: AnyPath, stamps: tuple[Stamp, ...], log: DeltaLog) -> None:
    with _LOCK:
        _KNOWN.pop(folder, None)
        _KNOWN[folder] = (stamps, log)
        while len(_KNOWN) > _KNOWN_MAX:
            _KNOWN.pop(next(iter(_KNOWN)))


def forget() -> None:
    """Forget every log that was read, as a new process would."""
    with _LOCK:
        _KNOWN.clear()


def _table_id(first: Commit) -> str:
    found = first.actions("metaData")
    if not found:
        refuse_commit(first.path, "it does not say whose it is")
    return str(found[0]["id"])


def create_table(
    folder: AnyPath, schema: pa.Schema, *, table_id: str, time_ns: int, properties: Mapping[str, str]
) -> None:
    """Write version 0 of a table: its schema, no rows.

    Raises:
        AlreadyExistsError: there is a table.
    """
    make_folders(folder / LOG)
    actions = [
        {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}},
        _metadata(schema, table_id, time_ns, properties),
    ]
    fs = {"commit_time_ns": time_ns, "table_rows": 0, "table_files": 0}
    put_if_absent(folder / LOG / _name(0), encoded_commit(actions, fs, "CREATE TABLE", time_ns))


def commit(
    log: DeltaLog,
    *,
    added: Sequence[DataFile],
    removed: Sequence[DataFile],
    operation: str,
    app_id: str,
    now_ns: int,
    schema: pa.Schema | None = None,
    properties: Mapping[str, str] | None = None,
    about: Mapping[str, Any] | None = None,
) -> int:
    """Commit files in one atomic step on top of a log that was read before.

    Args:
        schema: A new stored schema, where it changes.
        about: What else the commit says about itself.

    Returns:
        The new version; the application transaction `app_id` carries the same number.

    Raises:
        CommitConflictError: another writer committed since the log was read.
        StorageError: disk full or no permission; nothing was committed.
    """
    version = log.head + 1
    time_ns = max(now_ns, log.commits[-1].time_ns + 1)
    active = log.files_at(log.head)
    for gone in removed:
        active.pop(gone.path, None)
    active.update((f.path, f) for f in added)
    kept = {f.path for f in added}
    actions: list[dict[str, Any]] = [
        {"txn": {"appId": app_id, "version": version, "lastUpdated": time_ns // 10**6}}
    ]
    if schema is not None:
        actions.append(_metadata(schema, log.table_id, time_ns, properties or {}))
    actions += [remove_action(f, time_ns) for f in removed if f.path not in kept]
    actions += [add_action(f, time_ns) for f in added]
    fs = {
        **(about or {}),
        "commit_time_ns": time_ns,
        "table_rows": sum(f.rows for f in active.values()),
        "table_files": len(active),
    }
    try:
        put_if_absent(log.folder / LOG / _name(version), encoded_commit(actions, fs, operation, time_ns))
    except AlreadyExistsError as error:
        raise CommitConflictError(
            f"another writer committed version {version} of {str(log.folder)!r} first",
            hint="run the same command again: it continues from the new version",
            version=version,
        ) from error
    return version


def _name(version: int) -> str:
    return f"{version:020d}.json"


def _metadata(
    schema: pa.Schema, table_id: str, time_ns: int, properties: Mapping[str, str]
) -> dict[str, Any]:
    partitions = pa.schema([pa.field("event_date", pa.date32()), pa.field("bucket", pa.int32())])
    return {
        "metaData": {
            "id": table_id,
            "format": {"provider": "parquet", "options": {}},
            "schemaString": canonical_json(delta_schema(pa.schema([*schema, *partitions]))),
            "partitionColumns": list(PARTITIONS),
            "configuration": {**CONFIGURATION, **properties},
            "createdTime": time_ns // 10**6,
        }
    }
