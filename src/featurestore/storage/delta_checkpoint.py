"""Checkpoints of our Delta logs: a table's state in one Parquet file, so that other readers open it fast.

We do not read them ourselves: our commits carry digests, checkpoints of the protocol do not. They are written
whole and forced to the disk before anything names them, and `verify` compares them with what was written.
"""

import hashlib
import json
from contextlib import suppress
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.core.canonical import canonical_json
from featurestore.errors import CorruptDataError, NotFoundError, StorageError
from featurestore.storage.delta_log import LOG, DeltaLog, read_log
from featurestore.storage.files import AnyPath, read_file, replace_file

LAST: Final = "_last_checkpoint"
# A checkpoint after so many commits.
EVERY: Final = 100
_TEXTS: Final = pa.map_(pa.string(), pa.string())
_FILE: Final = {"path": pa.string(), "partitionValues": _TEXTS, "size": pa.int64(), "dataChange": pa.bool_()}
_SCHEMA: Final = pa.schema(
    {
        "txn": pa.struct({"appId": pa.string(), "version": pa.int64(), "lastUpdated": pa.int64()}),
        "add": pa.struct({**_FILE, "modificationTime": pa.int64(), "stats": pa.string(), "tags": _TEXTS}),
        "remove": pa.struct({**_FILE, "deletionTimestamp": pa.int64(), "extendedFileMetadata": pa.bool_()}),
        "metaData": pa.struct(
            {
                "id": pa.string(),
                "name": pa.string(),
                "description": pa.string(),
                "format": pa.struct({"provider": pa.string(), "options": _TEXTS}),
                "schemaString": pa.string(),
                "partitionColumns": pa.list_(pa.string()),
                "configuration": _TEXTS,
                "createdTime": pa.int64(),
            }
        ),
        "protocol": pa.struct({"minReaderVersion": pa.int32(), "minWriterVersion": pa.int32()}),
    }
)


def write_checkpoint(log: DeltaLog) -> None:
    """Write the checkpoint of a log's newest version.

    Raises:
        StorageError: disk full or no permission; readers go on with the checkpoint before.

    Cost:
        Replays the log; some hundred bytes per file that is or was active.
    """
    rows = _rows(log)
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True, store_schema=False)
    data = sink.getvalue().to_pybytes()
    replace_file(log.folder / LOG / _name(log.head), data)
    last = {
        "version": log.head,
        "size": len(rows),
        "sizeInBytes": len(data),
        "numOfAddFiles": sum(1 for r in rows if "add" in r),
        # Ours: other readers ignore it.
        "blake2b": hashlib.blake2b(data, digest_size=16).hexdigest(),
    }
    # The protocol's own checksum: MD5 of the canonical JSON.
    last["checksum"] = hashlib.md5(_canonical(last), usedforsecurity=False).hexdigest()
    replace_file(log.folder / LOG / LAST, canonical_json(last).encode())


def checkpoint_if_due(folder: AnyPath, version: int) -> None:
    """Write a checkpoint where a version's number says so; one that cannot be written is left out."""
    if version % EVERY:
        return
    log = read_log(folder)
    if log is not None:
        with suppress(StorageError):
            write_checkpoint(log)


def check_checkpoint(log: DeltaLog) -> None:
    """Compare the newest checkpoint, if there is one, with what was written.

    Raises:
        CorruptDataError: it is damaged, or of another table.
    """
    path = log.folder / LOG / LAST
    if not path.exists():
        return
    try:
        last = json.loads(read_file(path))
        checksum = last.pop("checksum")
        number, digest = int(last["version"]), str(last["blake2b"])
        whole = read_file(log.folder / LOG / _name(number))
    except NotFoundError:
        problem = "names a checkpoint that is gone"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"cannot be read ({error})"
    else:
        if hashlib.md5(_canonical(last), usedforsecurity=False).hexdigest() != checksum or number > log.head:
            problem = "is not what was written"
        elif hashlib.blake2b(whole, digest_size=16).hexdigest() != digest:
            problem = "names a checkpoint that is not what was written"
        else:
            return
    raise CorruptDataError(
        f"{str(path)!r} {problem}",
        hint="remove it and the checkpoint: the commits are complete without them",
        path=str(path),
    )


def _rows(log: DeltaLog) -> list[dict[str, Any]]:
    """Return the actions that are in force at a log's head."""
    applications: dict[str, Any] = {}
    added: dict[str, Any] = {}
    removed: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    protocol: dict[str, Any] = {}
    for commit in log.commits:
        for action in commit.actions("protocol"):
            protocol = action
        for action in commit.actions("metaData"):
            metadata = action
        for action in commit.actions("txn"):
            applications[action["appId"]] = action
        for action in commit.actions("remove"):
            added.pop(action["path"], None)
            removed[action["path"]] = {**action, "dataChange": False}
        for action in commit.actions("add"):
            removed.pop(action["path"], None)
            added[action["path"]] = {**action, "dataChange": False}
    return [
        {"protocol": protocol},
        {"metaData": _plain(metadata)},
        *({"txn": a} for a in applications.values()),
        *({"add": _plain(a)} for a in added.values()),
        *({"remove": _plain(a)} for a in removed.values()),
    ]


def _plain(action: dict[str, Any]) -> dict[str, Any]:
    """Write maps as Arrow takes them, as pairs."""
    out = dict(action)
    for name in ("partitionValues", "tags", "configuration"):
        if name in out:
            out[name] = list(out[name].items())
    if "format" in out:
        out["format"] = {**out["format"], "options": list(out["format"]["options"].items())}
    return out


def _canonical(last: dict[str, Any]) -> bytes:
    """The protocol's canonical form of flat JSON: `"key"=value`, sorted, joined by commas."""
    pairs = (f'"{k}"=' + (f'"{v}"' if isinstance(v, str) else str(v)) for k, v in sorted(last.items()))
    return ",".join(pairs).encode()


def _name(version: int) -> str:
    return f"{version:020d}.checkpoint.parquet"
