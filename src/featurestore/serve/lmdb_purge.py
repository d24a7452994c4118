"""Deleting entries of an LMDB environment so that their bytes are gone from the file, too."""

import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import lmdb

from featurestore.errors import OnlineStoreError, OnlineStoreTimeoutError
from featurestore.serve.lmdb_pages import PageFile, overwrite_dead, residue

DATA: Final = "data.mdb"
# How many entries on either side of a separator are put anew; `None`: all.
_AROUND: Final = (256, 4096, None)
_READERS_S: Final = 30.0
_READER: Final = re.compile(r"^\s*(\d+)\s+\w+\s+(\d+)\s*$", re.MULTILINE)


def purge(
    path: Path, environment: Callable[[], AbstractContextManager[lmdb.Environment]], keys: Sequence[bytes]
) -> int:
    """Delete keys, and overwrite what the file still holds of them; returns how many there were.

    LMDB writes the page buffers that a process keeps again without clearing them, and so bytes that were
    dead: the environment is opened anew for every step.

    Args:
        path: The data file.
        environment: Opens the environment, in this process alone.

    Cost:
        One write transaction per step, others wait meanwhile; reads the headers of all pages and writes the
        dead bytes that are not zero.

    Raises:
        OnlineStoreTimeoutError: a reader of another process looked at the past for too long.
        OnlineStoreError: bytes of a key stayed in the file.
    """
    with environment() as env, env.begin(write=True) as txn:
        deleted = sum(txn.delete(key) for key in keys)
    for around in _AROUND:
        named = _separators(path, keys)
        if not named:
            break
        with environment() as env:
            _put_anew(env, named, around)
    with environment() as env:
        _overwrite(env, path)
    left = {where: count for where, count in residue(path, keys).items() if count}
    if left:
        raise OnlineStoreError(f"bytes of erased keys stayed in {str(path)!r}: {left}", hint="erase again")
    return deleted


def _overwrite(env: lmdb.Environment, path: Path) -> None:
    """Overwrite dead bytes under the writer's lock, once no reader looks at an older transaction.

    Raises:
        OnlineStoreTimeoutError: a reader did for too long.
    """
    deadline = time.monotonic() + _READERS_S
    while True:
        with env.begin(write=True) as txn:
            newest = int(env.info()["last_txnid"])
            behind = [pid for pid, seen in _READER.findall(env.readers()) if int(seen) < newest]
            if not behind:
                overwrite_dead(path)
                txn.abort()
                return
        if time.monotonic() > deadline:
            raise OnlineStoreTimeoutError(
                f"processes {', '.join(sorted(set(behind)))} read an older state of {str(path)!r}",
                hint="let them finish, then erase again: bytes they can see are not overwritten",
            )
        time.sleep(0.02)


def _separators(path: Path, keys: Sequence[bytes]) -> list[bytes]:
    with PageFile(path) as file:
        return sorted(file.live().separators.intersection(keys))


def _put_anew(env: lmdb.Environment, keys: Sequence[bytes], around: int | None) -> None:
    """Take the entries around some keys out and put them back, so that branch pages name other keys."""
    with env.begin(write=True) as txn:
        for key in keys:
            items = _neighbours(txn, key, around)
            for name, _ in items:
                txn.delete(name)
            for name, value in items:
                txn.put(name, value)


def _neighbours(txn: Any, key: bytes, around: int | None) -> list[tuple[bytes, bytes]]:
    items: list[tuple[bytes, bytes]] = []
    with txn.cursor() as cursor:
        if around is None:
            return list(cursor)
        if cursor.set_range(key):
            for at, item in enumerate(cursor):
                if at == around:
                    break
                items.append(item)
        if (cursor.set_range(key) and cursor.prev()) or (not items and cursor.last()):
            for at, item in enumerate(cursor.iterprev()):
                if at == around:
                    break
                items.append(item)
    return items
