"""LMDB: the embedded online store. Readers in any number of processes never wait; commits are grouped.

Layout: one LMDB database; a key is a table's number (4 bytes, big-endian) and the entity's key. Table 0 holds
the tables' descriptions, table 1 the last delivery of each producer. An entity key too long for LMDB is
replaced by its xxh3-128, and its value ends with the key itself, which is compared on reading.
"""

import gc
import json
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

import lmdb
import xxhash

from featurestore.core.canonical import canonical_json
from featurestore.core.time import INT64_MIN
from featurestore.errors import CorruptDataError, OnlineStoreError, SchemaError
from featurestore.serve.store import Delivery, Edit

_MAP_BYTES: Final = 1 << 40  # sparse: address space, not disk
_KEY_MAX: Final = 500  # LMDB takes 511, of which 4 are the table's number
_TABLES: Final = b"\x00\x00\x00\x00"
_DELIVERIES: Final = b"\x00\x00\x00\x01"
_FIRST_TABLE: Final = 16
_GROUP: Final = 64


@dataclass(slots=True)
class _Work:
    edits: Sequence[Edit]
    delivery: Delivery | None
    done: "Future[bool]" = field(default_factory=Future)


@dataclass(slots=True)
class _Shared:
    """One open environment of this process: LMDB forbids opening a path twice."""

    env: lmdb.Environment
    users: int


@dataclass(slots=True)
class _Holding:
    """What a store holds until it is closed, or collected without having been: a user of the environment.

    Attributes:
        forks: In which process.
        writer: Takes the groups of edits from the queue, up to a `None`.
    """

    path: str
    forks: int
    queue: "SimpleQueue[_Work | None]" = field(default_factory=SimpleQueue)
    writer: threading.Thread | None = None

    def stop(self) -> None:
        """Let the writer finish what is queued; a new one may begin."""
        writer, self.writer = self.writer, None
        self.queue.put(None)
        if writer not in {None, threading.current_thread()}:
            writer.join()
        self.queue = SimpleQueue()

    def let_go(self) -> None:
        if self.forks == _forks:
            self.stop()
            _release(self.path)


_open_lock = threading.Lock()
_open: dict[str, _Shared] = {}
# Of stores that nobody closed. A collection may happen anywhere: the next who opens a store lets go of them.
_left: "SimpleQueue[_Holding]" = SimpleQueue()
_forks = 0  # how many lie between this process and the one that loaded the module


def _forget_after_fork() -> None:
    global _forks  # noqa: PLW0603 -- asking the system for the process at each read costs a twentieth of it
    _open.clear()
    _forks += 1


os.register_at_fork(after_in_child=_forget_after_fork)


class LmdbStore:
    """An `OnlineStore` in a folder of a local disk.

    Attributes:
        path: The folder; it is trusted, and readable by its owner alone.
    """

    def __init__(self, path: str | os.PathLike[str], *, map_bytes: int = _MAP_BYTES) -> None:
        """Open or create.

        Raises:
            OnlineStoreError: the folder cannot be used.
        """
        self.path = os.path.realpath(path)
        self._forks = _forks
        self._map_bytes = map_bytes
        self._env = _acquire(self.path, map_bytes)
        self._holding = _Holding(self.path, _forks)
        self._collected = weakref.finalize(self, _left.put, self._holding)
        self._collected.atexit = False
        self._numbers: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._closed = False

    def open_table(self, name: str, fingerprint: str) -> None:
        """Create a table, or check that it is there with the same layout.

        Raises:
            SchemaError: the table was written in another layout.
        """
        found = self.tables().get(name)
        if found is None:
            with self._begin(write=True) as txn:
                raw = txn.get(_TABLES + name.encode())
                if raw is None:
                    number = max(_FIRST_TABLE, 1 + max(_numbers(txn), default=0))
                    txn.put(_TABLES + name.encode(), _description(number, fingerprint, INT64_MIN))
                found = fingerprint if raw is None else str(json.loads(raw)["fingerprint"])
        if found != fingerprint:
            raise SchemaError(
                f"online table {name} was written in another layout",
                hint="a view's column types changed without a new version, or another release wrote it; "
                "erase the online folder and write the view again",
                table=name,
            )

    def tables(self) -> dict[str, str]:
        """Return the fingerprint of each table."""
        with self._begin() as txn, txn.cursor() as cursor:
            return {
                key[4:].decode(): str(json.loads(value)["fingerprint"])
                for key, value in _prefixed(cursor, _TABLES)
            }

    def read(self, requests: Sequence[tuple[str, Sequence[bytes]]]) -> list[list[bytes | None]]:
        """Return what keys hold, table by table, all as of one moment."""
        out: list[list[bytes | None]] = []
        with self._begin() as txn:
            get = txn.get
            for table, keys in requests:
                number = self._number(txn, table)
                if number is None:
                    out.append([None] * len(keys))
                elif max(map(len, keys), default=0) <= _KEY_MAX:
                    out.append([get(number + key) for key in keys])
                else:
                    out.append([_get_long(txn, number, key) for key in keys])
        return out

    def read_one(self, table: str, key: bytes) -> bytes | None:
        """Return what one key holds: `read` without the lists, for the fastest path."""
        if len(key) > _KEY_MAX:
            return self.read([(table, [key])])[0][0]
        with self._begin() as txn:
            number = self._numbers.get(table) or self._number(txn, table)
            value: bytes | None = None if number is None else txn.get(number + key)
            return value

    def floor_ns(self, table: str) -> int:
        """Return the earliest instant a table answers exactly for."""
        with self._begin() as txn:
            raw = txn.get(_TABLES + table.encode())
        return INT64_MIN if raw is None else int(json.loads(raw)["floor"])

    def update(self, edits: Sequence[Edit], delivery: Delivery | None = None) -> bool:
        """Apply edits in one transaction; the commit, and its fsync, may be shared with other callers'."""
        return self.submit(edits, delivery).result()

    def submit(self, edits: Sequence[Edit], delivery: Delivery | None = None) -> "Future[bool]":
        """Queue edits; the future resolves once they are durable.

        Raises:
            OnlineStoreError: the store is closed.
        """
        work = _Work(edits, delivery)
        with self._lock:
            self._check_open()
            held = self._holding
            if held.writer is None:
                own = (self._env, self.path, held.queue)  # not the store: its writer must not keep it
                held.writer = threading.Thread(
                    target=_write_groups, args=own, name="lmdb-writer", daemon=True
                )
                held.writer.start()
            held.queue.put(work)
        return work.done

    def purge(self, keys: Mapping[str, Sequence[bytes]]) -> int:
        """Delete keys, by table, so that none of their bytes stay in the file; returns how many there were.

        The environment is closed and opened again on the way: no other thread may use this store meanwhile.

        Raises:
            OnlineStoreError: bytes stayed; the store was purged as far as it could be.
        """
        from featurestore.serve.lmdb_purge import DATA, purge  # noqa: PLC0415 -- only erasure pays

        stored = self._stored(keys)
        with self._lock:
            self._check_open()
        self._holding.stop()
        _release(self.path)
        try:
            return purge(Path(self.path) / DATA, self._alone, stored)
        finally:
            self._env = _acquire(self.path, self._map_bytes)

    def residue(self, keys: Mapping[str, Sequence[bytes]]) -> dict[str, int]:
        """Count deleted keys whose bytes are still in the file, by where they are."""
        from featurestore.serve.lmdb_pages import residue  # noqa: PLC0415 -- only erasure pays
        from featurestore.serve.lmdb_purge import DATA  # noqa: PLC0415 -- only erasure pays

        return residue(Path(self.path) / DATA, self._stored(keys))

    def _stored(self, keys: Mapping[str, Sequence[bytes]]) -> list[bytes]:
        with self._begin() as txn:
            numbers = {table: self._number(txn, table) for table in keys}
        return [_stored_key(n, key) for t, n in numbers.items() if n is not None for key in keys[t]]

    @contextmanager
    def _alone(self) -> Iterator[lmdb.Environment]:
        env = _acquire(self.path, self._map_bytes)
        try:
            yield env
        finally:
            _release(self.path)

    def scan(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """Yield every key of a table with what it holds, as of one moment."""
        with self._begin() as txn:
            number = self._number(txn, table)
            if number is None:
                return
            with txn.cursor() as cursor:
                for key, value in _prefixed(cursor, number):
                    yield _unhashed(key[4:], value)

    def close(self) -> None:
        """Write what is queued, stop the writer and let go of the environment."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._collected.detach()
        self._holding.let_go()

    def _begin(self, *, write: bool = False) -> Any:
        """Begin a transaction; its stubs know bytes and memoryviews, and here it is always bytes."""
        self._check_open()
        try:
            return self._env.begin(write=write)
        except lmdb.Error as error:
            failure = _translated(error, self.path)
            raise failure from error

    def _check_open(self) -> None:
        if self._closed or self._forks != _forks:
            what = "is closed" if self._closed else "was opened before a fork"
            raise OnlineStoreError(
                f"the online store at {self.path} {what}", hint="open it again in this process"
            )

    def _number(self, txn: Any, table: str) -> bytes | None:
        number = self._numbers.get(table)
        if number is None:
            raw = txn.get(_TABLES + table.encode())
            if raw is None:
                return None
            number = int(json.loads(raw)["number"]).to_bytes(4, "big")
            self._numbers[table] = number
        return number


def _write_groups(env: lmdb.Environment, path: str, queue: "SimpleQueue[_Work | None]") -> None:
    while _write_group(env, path, queue):
        pass  # nothing of a group stays while the next is waited for: its edits may lead to the store


def _write_group(env: lmdb.Environment, path: str, queue: "SimpleQueue[_Work | None]") -> bool:
    """Write what waits; says whether more may come."""
    work = queue.get()
    group = []
    while work is not None:
        group.append(work)
        if len(group) >= _GROUP or queue.empty():
            break
        work = queue.get()
    if group:
        _commit(env, path, group)
    return work is not None


def _commit(env: lmdb.Environment, path: str, group: Sequence[_Work]) -> None:
    """Commit a group; where one of its members fails, each on its own, so that only that one fails."""
    try:
        with env.begin(write=True) as txn:
            results = [_apply(txn, work) for work in group]
    except BaseException as error:  # noqa: BLE001 -- it belongs to the caller that waits for the future
        if len(group) > 1:
            for work in group:
                _commit(env, path, [work])
            return
        failure = _translated(error, path) if isinstance(error, lmdb.Error) else error
        group[0].done.set_exception(failure)
    else:
        for work, result in zip(group, results, strict=True):
            work.done.set_result(result)


def _apply(txn: Any, work: _Work) -> bool:
    if work.delivery is not None and not _is_new(txn, work.delivery):
        return False
    for edit in work.edits:
        name = _TABLES + edit.table.encode()
        raw = txn.get(name)
        if raw is None:
            raise OnlineStoreError(f"there is no online table {edit.table}", table=edit.table)
        meta = json.loads(raw)
        number = int(meta["number"]).to_bytes(4, "big")
        floor = max(int(meta["floor"]), edit.floor(int(meta["floor"])))
        _change(txn, number, edit, floor)
        if floor != int(meta["floor"]):
            txn.put(name, _description(int(meta["number"]), meta["fingerprint"], floor))
    return True


def _change(txn: Any, number: bytes, edit: Edit, floor: int) -> None:
    """Merge and put one edit's keys, in key order: neighbours share pages."""
    if max(map(len, edit.keys), default=0) <= _KEY_MAX:
        stored = [number + key for key in edit.keys]
        get = txn.get
        old: list[bytes | None] = [get(key) for key in stored]
        new: Sequence[bytes | None] = edit.merge(old, floor)
    else:
        stored = [_stored_key(number, key) for key in edit.keys]
        old = [_get_long(txn, number, key) for key in edit.keys]
        merged = edit.merge(old, floor)
        new = [
            _marked(key, value) if value is not None and len(key) > _KEY_MAX else value
            for key, value in zip(edit.keys, merged, strict=True)
        ]
        old = [txn.get(key) for key in stored]
    changed = [(key, value) for key, before, value in zip(stored, old, new, strict=True) if value != before]
    changed.sort(key=itemgetter(0))
    with txn.cursor() as cursor:
        cursor.putmulti([(key, value) for key, value in changed if value is not None])
    for key, value in changed:
        if value is None:
            txn.delete(key)


def _acquire(path: str, map_bytes: int) -> lmdb.Environment:
    _let_go_of_left()
    try:
        return _shared(path, map_bytes)
    except lmdb.MemoryError:
        gc.collect()  # stores that nobody closed, in cycles
        _let_go_of_left()
    except (lmdb.Error, OSError) as error:
        failure = _translated(error, path)
        raise failure from error
    try:
        return _shared(path, map_bytes)
    except (lmdb.Error, OSError) as error:
        failure = _translated(error, path)
        raise failure from error


def _let_go_of_left() -> None:
    while not _left.empty():
        with suppress(Empty):
            _left.get_nowait().let_go()


def _shared(path: str, map_bytes: int) -> lmdb.Environment:
    with _open_lock:
        shared = _open.get(path)
        if shared is None:
            Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
            env = lmdb.open(path, map_size=map_bytes, max_readers=1024, max_dbs=0, readahead=False)
            env.reader_check()
            shared = _open[path] = _Shared(env, 0)
        shared.users += 1
        return shared.env


def _release(path: str) -> None:
    with _open_lock:
        shared = _open.get(path)
        if shared is not None:
            shared.users -= 1
            if shared.users == 0:
                del _open[path]
                shared.env.close()


def _translated(error: Exception, path: str) -> OnlineStoreError:
    hint = ""
    if isinstance(error, lmdb.MemoryError):
        hint = (
            f"{len(_open)} online stores are open in this process, each of which takes map_bytes of address "
        )
        hint += "space: close those that are not in use"
    elif isinstance(error, lmdb.MapFullError):
        hint = "the map is full: open it with a greater map_bytes"
    elif isinstance(error, lmdb.ReadersFullError):
        hint = "more than 1024 readers at once: use fewer threads or processes"
    elif not os.access(path, os.W_OK):
        hint = (
            "readers too write to its lock file, which keeps what they read from being reused: let this user "
        )
        hint += "write to the folder, or copy it to one that can be written to"
    return OnlineStoreError(f"the online store at {path} failed: {error}", hint=hint, path=path)


def _description(number: int, fingerprint: str, floor: int) -> bytes:
    return canonical_json({"number": number, "fingerprint": fingerprint, "floor": floor}).encode()


def _numbers(txn: Any) -> list[int]:
    with txn.cursor() as cursor:
        return [int(json.loads(value)["number"]) for _, value in _prefixed(cursor, _TABLES)]


def _prefixed(cursor: Any, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    if cursor.set_range(prefix):
        for key, value in cursor:
            if not key.startswith(prefix):
                return
            yield key, value


def _is_new(txn: Any, delivery: Delivery) -> bool:
    name = _stored_key(_DELIVERIES, delivery.producer.encode())
    raw = txn.get(name)
    if raw is not None and int.from_bytes(raw, "big") >= delivery.sequence:
        return False
    txn.put(name, delivery.sequence.to_bytes(8, "big"))
    return True


def _stored_key(number: bytes, key: bytes) -> bytes:
    # A hashed key is 501 bytes long, which no other key is.
    return number + (key if len(key) <= _KEY_MAX else xxhash.xxh3_128_digest(key).ljust(_KEY_MAX + 1, b"\0"))


def _marked(key: bytes, value: bytes) -> bytes:
    return value + key + len(key).to_bytes(4, "big")


def _unhashed(stored: bytes, value: bytes) -> tuple[bytes, bytes]:
    if len(stored) <= _KEY_MAX:
        return stored, value
    length = int.from_bytes(value[-4:], "big")
    return value[-4 - length : -4], value[: -4 - length]


def _get_long(txn: Any, number: bytes, key: bytes) -> bytes | None:
    stored = _stored_key(number, key)
    value: bytes | None = txn.get(stored)
    if value is None or len(key) <= _KEY_MAX:
        return value
    whole, rest = _unhashed(stored[4:], value)
    if whole != key:
        raise CorruptDataError(
            "two long entity keys have the same hash", hint="shorten keys to 500 bytes or less"
        )
    return rest
