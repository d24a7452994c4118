"""Redis or Valkey: the online store of many machines. The only file that imports the Redis client.

A key's value is a random revision (8 bytes) and what it holds. A change is merged here and put by a Lua
script that compares the revision and sets in one step; a key changed meanwhile is merged again.
Merging is by (event, created, sequence), so a late row never replaces a newer one, whatever the interleaving.
How durable an acknowledged write is, is the server's own setting (`appendfsync always`: as durable as LMDB).
"""

import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

try:
    import redis
except ImportError as missing:
    from featurestore.errors import MissingDependencyError

    raise MissingDependencyError(
        "the redis client library is not installed", hint="pip install 'featurestore[redis]'"
    ) from missing

from featurestore.core.time import INT64_MIN
from featurestore.errors import (
    CommitConflictError,
    OnlineStoreError,
    OnlineStoreTimeoutError,
    SchemaError,
)
from featurestore.serve.store import Delivery, Edit

_REVISION: Final = 8
_CHUNK: Final = 2_000
_ATTEMPTS: Final = 200
# KEYS: floors, then keys. ARGV: table, floor, then per key: expected revision, new value ('' removes it).
# Returns the numbers of the keys that had changed meanwhile.
_PUT: Final = """
local failed = {}
for i = 2, #KEYS do
  local now = redis.call('GETRANGE', KEYS[i], 0, 7)
  if now == ARGV[2 * i - 1] then
    if ARGV[2 * i] == '' then redis.call('DEL', KEYS[i]) else redis.call('SET', KEYS[i], ARGV[2 * i]) end
  else
    failed[#failed + 1] = i - 2
  end
end
local floor = redis.call('HGET', KEYS[1], ARGV[1])
if not floor or floor < ARGV[2] then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
return failed
"""
# Raises a producer's last delivery.
_DELIVERED: Final = """
local last = redis.call('HGET', KEYS[1], ARGV[1])
if not last or last < ARGV[2] then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
"""


class RedisStore:
    """An `OnlineStore` on one Redis or Valkey server.

    Attributes:
        prefix: Begins every key: stores of several projects can share a server.
    """

    def __init__(self, url: str, *, project: str = "default", timeout_s: float = 5.0) -> None:
        """Connect.

        Raises:
            OnlineStoreError: the server cannot be reached, or the URL is not one.
        """
        self.prefix = f"fs:{project}:".encode()
        self._url = url
        self._closed = False
        try:
            self._client: Any = redis.Redis.from_url(
                url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s
            )
            self._put = self._client.register_script(_PUT)
            self._delivered = self._client.register_script(_DELIVERED)
            self._client.ping()
        except (redis.RedisError, ValueError) as error:
            failure = _translated(error, url)
            raise failure from error

    def open_table(self, name: str, fingerprint: str) -> None:
        """Create a table, or check that it is there with the same layout.

        Raises:
            SchemaError: the table was written in another layout.
        """
        self._call("hsetnx", self.prefix + b"tables", name, fingerprint)
        found = self._call("hget", self.prefix + b"tables", name).decode()
        if found != fingerprint:
            raise SchemaError(
                f"online table {name} was written in another layout",
                hint="a view's column types changed without a new version, or another release wrote it; "
                "remove the table and write the view again",
                table=name,
            )

    def tables(self) -> dict[str, str]:
        """Return the fingerprint of each table."""
        found = self._call("hgetall", self.prefix + b"tables")
        return {name.decode(): fingerprint.decode() for name, fingerprint in found.items()}

    def read(self, requests: Sequence[tuple[str, Sequence[bytes]]]) -> list[list[bytes | None]]:
        """Return what keys hold in one command, so all as of one moment."""
        keys = [self._key(table, key) for table, wanted in requests for key in wanted]
        found = iter(self._call("mget", keys) if keys else [])
        out: list[list[bytes | None]] = []
        for _, wanted in requests:
            values = [next(found) for _ in wanted]
            out.append([None if v is None else v[_REVISION:] for v in values])
        return out

    def floor_ns(self, table: str) -> int:
        """Return the earliest instant a table answers exactly for."""
        raw = self._call("hget", self.prefix + b"floors", table)
        return INT64_MIN if raw is None else _number(raw)

    def update(self, edits: Sequence[Edit], delivery: Delivery | None = None) -> bool:
        """Apply edits key by key, each atomically.

        A numbered delivery that fails midway is not marked as applied; again, it changes nothing twice.

        Raises:
            OnlineStoreError: a table does not exist, or the server failed.
            CommitConflictError: others changed the same keys again and again.
        """
        if delivery is not None and self._is_old(delivery):
            return False
        known = self.tables()
        for edit in edits:
            if edit.table not in known:
                raise OnlineStoreError(f"there is no online table {edit.table}", table=edit.table)
        for edit in edits:
            self._apply(edit)
        if delivery is not None:
            self._script(
                self._delivered, [self.prefix + b"deliveries"], [delivery.producer, _text(delivery.sequence)]
            )
        return True

    def scan(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """Yield every key of a table with what it holds; what changes meanwhile may or may not be seen."""
        prefix = self._key(table, b"")
        cursor, seen = 0, set()
        while True:
            cursor, keys = self._call("scan", cursor, match=_escaped(prefix) + b"*", count=1000)
            fresh = [key for key in keys if key not in seen]
            seen.update(fresh)
            values = self._call("mget", fresh) if fresh else []
            for key, value in zip(fresh, values, strict=True):
                if value is not None:
                    yield key[len(prefix) :], value[_REVISION:]
            if cursor == 0:
                return

    def purge(self, keys: Mapping[str, Sequence[bytes]]) -> int:
        """Delete keys from the server; its own append-only files and snapshots are the server's affair."""
        stored = [self._key(table, key) for table, wanted in keys.items() for key in wanted]
        return sum(self._call("delete", *stored[at : at + _CHUNK]) for at in range(0, len(stored), _CHUNK))

    def residue(self, keys: Mapping[str, Sequence[bytes]]) -> dict[str, int]:
        """Count purged keys that are there again."""
        stored = [self._key(table, key) for table, wanted in keys.items() for key in wanted]
        found = sum(self._call("exists", *stored[at : at + _CHUNK]) for at in range(0, len(stored), _CHUNK))
        return {"keys": int(found)}

    def close(self) -> None:
        """Close the connections."""
        self._closed = True
        self._client.close()

    def _apply(self, edit: Edit) -> None:
        """Merge and put until no key was changed by someone else in between.

        Raises:
            CommitConflictError: others changed the same keys again and again.
        """
        stored = [self._key(edit.table, key) for key in edit.keys]
        for attempt in range(_ATTEMPTS):
            found = self._call("mget", stored)
            before = self.floor_ns(edit.table)
            floor = max(before, edit.floor(before))
            old = [None if v is None else v[_REVISION:] for v in found]
            new = edit.merge(old, floor)
            changed = [at for at, (o, n) in enumerate(zip(old, new, strict=True)) if o != n]
            puts = [(stored[at], found[at], new[at]) for at in changed]
            failed = 0
            for start in range(0, max(1, len(puts)), _CHUNK):
                failed += self._compare_and_set(edit.table, floor, puts[start : start + _CHUNK])
            if not failed:
                return
            # Some keys are put already; merging those again changes nothing. Wait a little, unevenly.
            time.sleep(random.random() * 0.002 * min(attempt, 10))  # noqa: S311 -- jitter, not a secret
        raise CommitConflictError(f"keys of {edit.table} are changed by too many writers at once")

    def _compare_and_set(
        self, table: str, floor: int, puts: Sequence[tuple[bytes, bytes | None, bytes | None]]
    ) -> int:
        """Put values (key, as found, new) where the key is as it was found; returns how many were not."""
        arguments: list[Any] = [table, _text(floor)]
        for _, found, new in puts:
            arguments.append(b"" if found is None else found[:_REVISION])
            arguments.append(b"" if new is None else os.urandom(_REVISION) + new)
        keys = [self.prefix + b"floors", *(key for key, _, _ in puts)]
        return len(self._script(self._put, keys, arguments))

    def _is_old(self, delivery: Delivery) -> bool:
        last = self._call("hget", self.prefix + b"deliveries", delivery.producer)
        return last is not None and _number(last) >= delivery.sequence

    def _key(self, table: str, key: bytes) -> bytes:
        return self.prefix + b"t:" + table.encode() + b":" + key

    def _call(self, command: str, *arguments: Any, **options: Any) -> Any:
        self._check_open()
        try:
            return getattr(self._client, command)(*arguments, **options)
        except redis.RedisError as error:
            failure = _translated(error, self._url)
            raise failure from error

    def _script(self, script: Any, keys: Sequence[bytes], arguments: Sequence[Any]) -> Any:
        self._check_open()
        try:
            return script(keys=keys, args=arguments)
        except redis.RedisError as error:
            failure = _translated(error, self._url)
            raise failure from error

    def _check_open(self) -> None:
        if self._closed:
            raise OnlineStoreError("the online store is closed", hint="open it again")


def _translated(error: Exception, url: str) -> OnlineStoreError:
    where = url.rpartition("@")[2]  # never a password
    if isinstance(error, redis.TimeoutError):
        return OnlineStoreTimeoutError(f"redis at {where} did not answer in time")
    return OnlineStoreError(f"redis at {where} failed: {error}", hint="is the server running?")


def _text(number: int) -> str:
    """Write an int64 so that texts compare as numbers do: Lua's own numbers are doubles."""
    return f"{number + 2**63:020d}"


def _number(text: bytes) -> int:
    return int(text) - 2**63


def _escaped(prefix: bytes) -> bytes:
    return b"".join(b"\\" + bytes([c]) if c in b"*?[]\\^" else bytes([c]) for c in prefix)
