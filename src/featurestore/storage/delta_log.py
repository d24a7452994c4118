"""The Delta log of our own tables: one JSON file per commit, put if absent, each with its own digest.

deltalake would write the same files without a single fsync; a power loss could then leave an empty commit,
which every reader takes for a commit that changed nothing. Here a commit's bytes are on the disk before its
name exists. Protocol reader 1 / writer 2: any Delta reader opens the tables.
"""

import hashlib
import json
import os
import re
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
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
from featurestore.storage.files import AnyPath, make_folders, put_if_absent, read_file, read_files
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


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """One active file of a table.

    Attributes:
        path: Relative to the table's folder.
        xxh3: xxh3-128 of its bytes; `digest` that of its content, its partition's share of the fingerprint.
        minimum: Smallest value of each time column that has one, ns; `maximum` the greatest.
    """

    path: str
    date: str
    bucket: int
    rows: int
    size: int
    xxh3: str
    digest: str
    minimum: Mapping[str, int] = field(default_factory=dict)
    maximum: Mapping[str, int] = field(default_factory=dict)

    def partition(self) -> dict[str, str]:
        """Return the partition values as the log writes them."""
        return {"event_date": self.date, "bucket": str(self.bucket)}


@dataclass(frozen=True, kw_only=True)
class Commit:
    """One commit, checked: what it says about itself (`fs`), and on demand what it added and removed.

    Attributes:
        lines: Its other actions as written, one JSON object each.
        path: The commit file, for messages.
    """

    version: int
    time_ns: int
    operation: str
    fs: Mapping[str, Any]
    lines: tuple[bytes, ...] = field(repr=False)
    path: str

    @cached_property
    def added(self) -> tuple[DataFile, ...]:
        """The files that it made active."""
        return tuple(self._each("add", _data_file))

    @cached_property
    def removed(self) -> tuple[str, ...]:
        """The paths of the files that it took away."""
        return tuple(self._each("remove", lambda action: str(action["path"])))

    @cached_property
    def transactions(self) -> Mapping[str, int]:
        """The newest version that each application recorded with it."""
        return dict(self._each("txn", lambda action: (str(action["appId"]), int(action["version"]))))

    def actions(self, kind: str) -> list[dict[str, Any]]:
        """Return the bodies of its actions of one kind."""
        return list(self._each(kind, dict))

    def _each(self, kind: str, read: Callable[[Mapping[str, Any]], Item]) -> Iterator[Item]:
        # A canonical line begins with the action's only key.
        start = f'{{"{kind}":'.encode()
        try:
            for line in self.lines:
                if line.startswith(start):
                    yield read(json.loads(line)[kind])
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(self.path, f"it lacks {error}") from error


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
        One look at the folder and, as the clock only grows, log2 of the commits.
    """
    log = folder / LOG
    there = (p.name for p in log.iterdir()) if isinstance(log, ObjectPath) else _listed(log)
    numbers = sorted(int(name[:20]) for name in there if _COMMIT.fullmatch(name))
    versions = [number for number in numbers if number >= first]

    def committed_ns(version: int) -> int:
        path = log / _name(version)
        return _commit(version, path, read_file(path)).time_ns

    found = bisect_right(versions, time_ns, key=committed_ns)
    if found == 0:
        raise NotFoundError(
            f"{str(folder)!r} has no version that old",
            hint="the first was committed later" if versions else "nothing was committed yet",
            first_ns=committed_ns(versions[0]) if versions else None,
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
        _commit(same + i, path, data)
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
        raise _damaged(first.path, "it does not say whose it is")
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
    put_if_absent(folder / LOG / _name(0), _encoded(actions, fs, "CREATE TABLE", time_ns))


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
    actions += [_remove(f, time_ns) for f in removed if f.path not in kept]
    actions += [_add(f, time_ns) for f in added]
    fs = {
        **(about or {}),
        "commit_time_ns": time_ns,
        "table_rows": sum(f.rows for f in active.values()),
        "table_files": len(active),
    }
    try:
        put_if_absent(log.folder / LOG / _name(version), _encoded(actions, fs, operation, time_ns))
    except AlreadyExistsError as error:
        raise CommitConflictError(
            f"another writer committed version {version} of {str(log.folder)!r} first",
            hint="run the same command again: it continues from the new version",
            version=version,
        ) from error
    return version


def _name(version: int) -> str:
    return f"{version:020d}.json"


def _encoded(
    actions: Sequence[Mapping[str, Any]], fs: Mapping[str, Any], operation: str, time_ns: int
) -> bytes:
    fs = {**fs, "operation": operation}
    lines = [canonical_json(a).encode() for a in actions]
    digest = _digest(lines, fs)
    info = {
        "commitInfo": {
            "timestamp": time_ns // 10**6,
            "operation": operation,
            "operationParameters": {},
            "engineInfo": "featurestore",
            "fs": {**fs, "digest": digest},
        }
    }
    return b"".join(line + b"\n" for line in [canonical_json(info).encode(), *lines])


def _digest(lines: Sequence[bytes], fs: Mapping[str, Any]) -> str:
    """Hash the canonical JSON of `[actions, fs]`, of which the lines are parts as they are."""
    whole = b"".join([b"[[", b",".join(lines), b"],", canonical_json(fs).encode(), b"]"])
    return hashlib.blake2b(whole, digest_size=16).hexdigest()


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


def _add(file: DataFile, time_ns: int) -> dict[str, Any]:
    stats = {"numRecords": file.rows, "minValues": dict(file.minimum), "maxValues": dict(file.maximum)}
    return {
        "add": {
            "path": file.path,
            "partitionValues": file.partition(),
            "size": file.size,
            "modificationTime": time_ns // 10**6,
            "dataChange": True,
            "stats": canonical_json(stats),
            "tags": {"xxh3": file.xxh3, "digest": file.digest},
        }
    }


def _remove(file: DataFile, time_ns: int) -> dict[str, Any]:
    return {
        "remove": {
            "path": file.path,
            "deletionTimestamp": time_ns // 10**6,
            "dataChange": True,
            "extendedFileMetadata": True,
            "partitionValues": file.partition(),
            "size": file.size,
        }
    }


def _commit(version: int, path: AnyPath, data: bytes) -> Commit:
    if not data.endswith(b"\n"):
        raise _damaged(path, "it is empty or torn")
    first, *lines = data[:-1].split(b"\n")
    try:
        info = json.loads(first)["commitInfo"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"it cannot be read ({error})") from error
    fs = info.get("fs") if isinstance(info, dict) else None
    if not isinstance(fs, dict):
        raise CorruptDataError(
            f"{str(path)!r} was written by another program",
            hint="only featurestore writes to its own tables; roll the other program's commit back",
            path=str(path),
        )
    own = {k: v for k, v in fs.items() if k != "digest"}
    known = {
        "operation": own.get("operation"),
        "timestamp": own.get("commit_time_ns", 0) // 10**6,
        "operationParameters": {},
        "engineInfo": "featurestore",
    }
    outside = {k: v for k, v in info.items() if k != "fs"}
    if _digest(lines, own) != fs.get("digest") or outside != known:
        raise _damaged(path, "its digest does not match")
    try:
        time_ns, operation = int(own["commit_time_ns"]), str(own["operation"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"it lacks {error}") from error
    return Commit(
        version=version, time_ns=time_ns, operation=operation, fs=fs, lines=tuple(lines), path=str(path)
    )


def _damaged(path: str | AnyPath, what: str) -> CorruptDataError:
    return CorruptDataError(
        f"commit {str(path)!r} is damaged: {what}", hint="restore the file from a copy", path=str(path)
    )


def _data_file(add: Mapping[str, Any]) -> DataFile:
    stats = json.loads(add["stats"])
    return DataFile(
        path=add["path"],
        date=add["partitionValues"]["event_date"],
        bucket=int(add["partitionValues"]["bucket"]),
        rows=stats["numRecords"],
        size=add["size"],
        xxh3=add["tags"]["xxh3"],
        digest=add["tags"]["digest"],
        minimum=stats["minValues"],
        maximum=stats["maxValues"],
    )
