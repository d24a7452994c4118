"""The Delta log of our own tables: one JSON file per commit, put if absent, each with its own digest.

deltalake would write the same files without a single fsync; a power loss could then leave an empty commit,
which every reader takes for a commit that changed nothing. Here a commit's bytes are on the disk before its
name exists. Protocol reader 1 / writer 2: any Delta reader opens the tables.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from featurestore.core.canonical import canonical_json
from featurestore.errors import (
    AlreadyExistsError,
    CommitConflictError,
    CorruptDataError,
    NotFoundError,
)
from featurestore.storage.files import AnyPath, make_folders, put_if_absent, read_files
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One commit: what it added and removed, and what it says about itself (`fs`)."""

    version: int
    time_ns: int
    operation: str
    added: tuple[DataFile, ...]
    removed: tuple[str, ...]
    transactions: Mapping[str, int]
    fs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DeltaLog:
    """A table's whole log, checked."""

    folder: AnyPath
    table_id: str
    commits: tuple[Commit, ...]

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
        active: dict[str, DataFile] = {}
        for commit in self.commits[: version + 1]:
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
        return active

    def transaction(self, app_id: str) -> int | None:
        """Return the newest version that an application recorded, `None` if it never did."""
        for commit in reversed(self.commits):
            if app_id in commit.transactions:
                return commit.transactions[app_id]
        return None

    def version_at(self, time_ns: int) -> int:
        """Return the newest version committed at or before an instant, by our own commit clock.

        Raises:
            NotFoundError: the instant lies before the first commit.
        """
        found = [c.version for c in self.commits if c.time_ns <= time_ns]
        if not found:
            raise NotFoundError(
                f"{str(self.folder)!r} has no version that old",
                hint="the first was committed later",
                first_ns=self.commits[0].time_ns,
            )
        return found[-1]


def read_log(folder: AnyPath) -> DeltaLog | None:
    """Read and check a table's log; `None` where there is no table.

    Raises:
        CorruptDataError: a commit is missing, empty, torn or altered, or another program wrote it.
    """
    log = folder / LOG
    there: Iterable[AnyPath] = log.iterdir() if log.is_dir() else ()
    names = sorted(p.name for p in there if _COMMIT.fullmatch(p.name))
    if not names:
        return None
    commits = []
    table_id = ""
    contents = read_files([log / name for name in names])
    for version, (name, data) in enumerate(zip(names, contents, strict=True)):
        if int(name[:20]) != version:
            raise CorruptDataError(
                f"{str(folder)!r}: commit {version} is missing from the log",
                hint="restore the file",
                path=name,
            )
        actions = _actions(log / name, data)
        commits.append(_commit(version, actions, log / name))
        if version == 0:
            table_id = next(a["metaData"]["id"] for a in actions if "metaData" in a)
    return DeltaLog(folder, table_id, tuple(commits))


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
    digest = _digest(actions, fs)
    info = {
        "commitInfo": {
            "timestamp": time_ns // 10**6,
            "operation": operation,
            "operationParameters": {},
            "engineInfo": "featurestore",
            "fs": {**fs, "digest": digest},
        }
    }
    return "".join(canonical_json(a) + "\n" for a in [info, *actions]).encode()


def _digest(actions: Sequence[Mapping[str, Any]], fs: Mapping[str, Any]) -> str:
    return hashlib.blake2b(canonical_json([list(actions), dict(fs)]).encode(), digest_size=16).hexdigest()


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


def _actions(path: AnyPath, data: bytes) -> list[dict[str, Any]]:
    if not data.endswith(b"\n"):
        raise _damaged(path, "it is empty or torn")
    try:
        actions = [json.loads(line) for line in data.decode().splitlines()]
        info = actions[0]["commitInfo"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise _damaged(path, f"it cannot be read ({error})") from error
    fs = info.get("fs")
    if not isinstance(fs, dict):
        raise CorruptDataError(
            f"{str(path)!r} was written by another program ({info.get('engineInfo', 'unknown')})",
            hint="only featurestore writes to its own tables; roll the other program's commit back",
            path=str(path),
        )
    own = {k: v for k, v in fs.items() if k != "digest"}
    expected = json.loads(canonical_json([actions[1:], own]))
    outside = {k: v for k, v in info.items() if k != "fs"}
    known = {
        "operation": own.get("operation"),
        "timestamp": own.get("commit_time_ns", 0) // 10**6,
        "operationParameters": {},
        "engineInfo": "featurestore",
    }
    if _digest(expected[0], expected[1]) != fs.get("digest") or outside != known:
        raise _damaged(path, "its digest does not match")
    return actions


def _damaged(path: AnyPath, what: str) -> CorruptDataError:
    return CorruptDataError(
        f"commit {str(path)!r} is damaged: {what}", hint="restore the file from a copy", path=str(path)
    )


def _commit(version: int, actions: Sequence[Mapping[str, Any]], path: AnyPath) -> Commit:
    info = actions[0]["commitInfo"]
    try:
        return Commit(
            version=version,
            time_ns=info["fs"]["commit_time_ns"],
            operation=info["operation"],
            added=tuple(_data_file(a["add"]) for a in actions if "add" in a),
            removed=tuple(a["remove"]["path"] for a in actions if "remove" in a),
            transactions={a["txn"]["appId"]: a["txn"]["version"] for a in actions if "txn" in a},
            fs=info["fs"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"it lacks {error}") from error


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
