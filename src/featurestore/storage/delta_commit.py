"""One commit of a Delta log as we write it: one JSON object a line, with digests of all and of its head."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from featurestore.core.canonical import canonical_json
from featurestore.errors import CorruptDataError
from featurestore.storage.files import AnyPath, read_file, storage_errors

Item = TypeVar("Item")


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
            refuse_commit(self.path, f"it lacks {error}", error)


def encoded_commit(
    actions: Sequence[Mapping[str, Any]], fs: Mapping[str, Any], operation: str, time_ns: int
) -> bytes:
    """Write a commit: what it says about itself, then its actions."""
    fs = {**fs, "operation": operation}
    fs["head"] = _head(fs)
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


def _head(fs: Mapping[str, Any]) -> str:
    """Hash what a commit says about itself."""
    own = {name: value for name, value in fs.items() if name not in {"head", "digest"}}
    return hashlib.blake2b(canonical_json(own).encode(), digest_size=16).hexdigest()


def _digest(lines: Sequence[bytes], fs: Mapping[str, Any]) -> str:
    """Hash the canonical JSON of `[actions, fs]`, of which the lines are parts as they are."""
    whole = b"".join([b"[[", b",".join(lines), b"],", canonical_json(fs).encode(), b"]"])
    return hashlib.blake2b(whole, digest_size=16).hexdigest()


def add_action(file: DataFile, time_ns: int) -> dict[str, Any]:
    """Return the action that makes a file active."""
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


def remove_action(file: DataFile, time_ns: int) -> dict[str, Any]:
    """Return the action that takes a file away."""
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


def parsed_commit(version: int, path: AnyPath, data: bytes) -> Commit:
    """Read and check a commit; its actions are parsed when they are asked for.

    Raises:
        CorruptDataError: it is torn, empty or altered, or another program wrote it.
    """
    if not data.endswith(b"\n"):
        refuse_commit(path, "it is empty or torn")
    first, *lines = data[:-1].split(b"\n")
    fs = _info(path, first)
    own = {k: v for k, v in fs.items() if k != "digest"}
    if _digest(lines, own) != fs.get("digest"):
        refuse_commit(path, "its digest does not match")
    try:
        time_ns, operation = int(own["commit_time_ns"]), str(own["operation"])
    except (KeyError, TypeError, ValueError) as error:
        refuse_commit(path, f"it lacks {error}", error)
    return Commit(
        version=version, time_ns=time_ns, operation=operation, fs=fs, lines=tuple(lines), path=str(path)
    )


def _info(path: AnyPath, first: bytes) -> Mapping[str, Any]:
    """Read a commit's first line: what it says about itself, some of it where others look for it, too.

    Raises:
        CorruptDataError: another program wrote it, or it is damaged.
    """
    try:
        info = json.loads(first)["commitInfo"]
    except (ValueError, KeyError, TypeError) as error:
        refuse_commit(path, f"it cannot be read ({error})", error)
    fs = info.get("fs") if isinstance(info, dict) else None
    if not isinstance(fs, dict):
        raise CorruptDataError(
            f"{str(path)!r} was written by another program",
            hint="only featurestore writes to its own tables; roll the other program's commit back",
            path=str(path),
        )
    known = {
        "operation": fs.get("operation"),
        "timestamp": fs.get("commit_time_ns", 0) // 10**6,
        "operationParameters": {},
        "engineInfo": "featurestore",
    }
    if {k: v for k, v in info.items() if k != "fs"} != known:
        refuse_commit(path, "its digest does not match")
    return fs


def refuse_commit(path: str | AnyPath, what: str, cause: Exception | None = None) -> NoReturn:
    """Say that a commit is damaged.

    Raises:
        CorruptDataError: always.
    """
    raise CorruptDataError(
        f"commit {str(path)!r} is damaged: {what}", hint="restore the file from a copy", path=str(path)
    ) from cause


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


def committed_ns(version: int, path: AnyPath) -> int:
    """Return when a commit was made: its first line says so, and carries a digest of itself.

    Raises:
        CorruptDataError: the commit is damaged.
        NotFoundError: it is gone.
    """
    if isinstance(path, Path):
        with storage_errors("read", path), path.open("rb") as file:
            first = file.readline()
        with suppress(CorruptDataError):
            fs = _info(path, first)
            if fs.get("head") == _head(fs):
                return int(fs["commit_time_ns"])
    return parsed_commit(version, path, read_file(path)).time_ns
