"""The ledger of erasures: which entities count as absent, known by keyed hashes alone.

`root/erasures/` holds numbered entries, each put once and never changed, and a random secret. A key is
written down only as its BLAKE2b hash under that secret, so the ledger itself holds no personal data. Every
source of a store reads through it: rows of an erased entity are left out, whenever they arrive, until a
later entry lifts the erasure.
"""

import hashlib
import json
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.core.canonical import canonical_json, digest_json
from featurestore.core.keys import Column, can_be_key, distinct_keys, key_bytes, key_hashes
from featurestore.core.table_rows import filter_rows, plain_type
from featurestore.core.time import format_instant
from featurestore.errors import AlreadyExistsError, CommitConflictError, CorruptDataError, NotFoundError
from featurestore.storage.files import AnyPath, make_folders, put_if_absent, read_file
from featurestore.storage.objects import ObjectPath

FOLDER: Final = "erasures"
_SALT: Final = "SECRET"
ERASE: Final = "erase"
LIFT: Final = "lift"
DONE: Final = "done"
FILES: Final = "files"
_HASH_BYTES: Final = 16
_HINTS: Final = 1 << 16
_ATTEMPTS: Final = 1000

Rows = TypeVar("Rows", pa.RecordBatch, pa.Table)
Renamed = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One line of the ledger.

    Attributes:
        kind: `erase`: the keys count as absent from here on; `files`: an erasure rewrote files of a source
            that the store itself had written; `done`: everything stored was rewritten; `lift`: the keys no
            longer count as absent.
        entity: The entity by name; `columns` its join keys, in order.
        keys: Keyed hashes of the keys, hex, sorted.
        hints: For each key 16 bits of a seeded hash, by which most rows are told apart without the other.
        files: For each rewritten file the xxh3-128 it has now → size and xxh3-128 before any erasure.
        of: For `done` the number of the erasure that ended.
    """

    number: int
    kind: str
    time_ns: int
    entity: str = ""
    columns: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    hints: tuple[int, ...] = ()
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    of: int = 0

    def to_json(self) -> bytes:
        """Write canonical JSON that carries its own digest."""
        body: dict[str, Any] = {
            "number": self.number,
            "kind": self.kind,
            "time_ns": self.time_ns,
            "time": format_instant(self.time_ns),
            "entity": self.entity,
            "columns": list(self.columns),
            "keys": list(self.keys),
            "hints": list(self.hints),
            "files": {new: list(old) for new, old in self.files.items()},
            "of": self.of,
        }
        return canonical_json({**body, "digest": digest_json(body)}).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class _Group:
    """The erased keys of one tuple of columns."""

    hashes: frozenset[bytes]
    hints: npt.NDArray[np.bool_]


class Suppression:
    """Which keys count as absent.

    Attributes:
        columns: The column tuples that keys are given for.
    """

    def __init__(self, secret: bytes, keys: Mapping[tuple[str, ...], Mapping[bytes, int]]) -> None:
        self._secret = secret
        self._seed = _seed(secret)
        self._groups = {}
        for columns, hashes in keys.items():
            if hashes:
                hints = np.zeros(_HINTS, np.bool_)
                hints[list(hashes.values())] = True
                self._groups[columns] = _Group(frozenset(hashes), hints)
        self.columns = tuple(self._groups)

    def __bool__(self) -> bool:
        return bool(self._groups)

    def columns_in(self, schema: pa.Schema) -> list[str]:
        """Return the columns of a table that say whether its rows count as absent."""
        held = [c for columns in self.columns if _holds(schema, columns) for c in columns]
        return list(dict.fromkeys(held))

    def mask(self, rows: pa.RecordBatch | pa.Table, renamed: Iterable[Renamed] = ()) -> np.ndarray | None:
        """Point at the rows of erased keys; `None` where there is none.

        Args:
            renamed: What else the rows may call the key columns: their own name by the entity's.

        Cost:
            A seeded hash per row (integers) or per distinct key of the batch; BLAKE2b for one key in 65,536
            and erased key.
        """
        found: np.ndarray | None = None
        for columns, group in self._groups.items():
            for names in {columns, *(tuple(r.get(c, c) for c in columns) for r in renamed)}:
                if _holds(rows.schema, names):
                    one = self._rows_of(group, [rows.column(n) for n in names])
                    if one is not None:
                        found = one if found is None else found | one
        return found

    def remaining(self, rows: Rows, renamed: Iterable[Renamed] = ()) -> Rows:
        """Return the rows without those of erased keys; the same object where there are none."""
        if not self._groups:
            return rows
        found = self.mask(rows, renamed)
        return rows if found is None else filter_rows(rows, ~found)

    def _rows_of(self, group: _Group, columns: Sequence[Column]) -> np.ndarray | None:
        maybe = np.flatnonzero(group.hints[key_hashes(columns, self._seed) & np.uint64(_HINTS - 1)])
        if maybe.size == 0:
            return None
        at = pa.array(maybe)
        codes, uniques = distinct_keys([c.cast(plain_type(c.type)).take(at) for c in columns])
        known = [k is not None and _hashed(self._secret, k) in group.hashes for k in key_bytes(uniques)]
        # The last place serves code -1: a null key is nobody's.
        erased = np.array([*known, False])[codes]
        if not erased.any():
            return None
        out = np.zeros(len(columns[0]), np.bool_)
        out[maybe[erased]] = True
        return out


class Ledger:
    """All entries as of one moment; immutable.

    Attributes:
        entries: In order of their numbers, from 1.
    """

    def __init__(self, secret: bytes, entries: tuple[LedgerEntry, ...]) -> None:
        self.secret = secret
        self.entries = entries
        self._origins = {new: old for e in entries for new, old in e.files.items()}
        self._now: Suppression | None = None

    @property
    def number(self) -> int:
        """The newest entry's number; 0 where nothing was ever erased."""
        return len(self.entries)

    def suppression(self, also_at: int = 0) -> Suppression:
        """Return what counts as absent now and, with `also_at`, what did when that entry was the newest."""
        if not self.entries:
            return NOTHING
        if not also_at or not self.lifted_since(also_at):
            if self._now is None:
                self._now = Suppression(self.secret, _replayed(self.entries))
            return self._now
        both = _replayed(self.entries)
        for columns, keys in _replayed(self.entries[:also_at]).items():
            both.setdefault(columns, {}).update(keys)
        return Suppression(self.secret, both)

    def lifted_since(self, number: int) -> bool:
        """Say whether an erasure was lifted after an entry."""
        return any(e.kind == LIFT for e in self.entries[number:])

    def unfinished(self) -> list[LedgerEntry]:
        """Return the erasures that did not reach their end: what is stored may still hold their rows."""
        done = {e.of for e in self.entries}
        return [e for e in self.entries if e.kind == ERASE and e.number not in done]

    def origin(self, size: int, xxh3: str) -> tuple[int, str]:
        """Return what a file was before erasures rewrote it: by this it is pinned."""
        return self._origins.get(xxh3, (size, xxh3))

    def hashes(self, columns: Sequence[Column]) -> dict[str, int]:
        """Return the keyed hash of each distinct key without a null, and its hint."""
        _, uniques = distinct_keys(columns)
        hints = key_hashes(uniques, _seed(self.secret)) & np.uint64(_HINTS - 1)
        return {
            _hashed(self.secret, key).hex(): int(hint)
            for key, hint in zip(key_bytes(uniques), hints.tolist(), strict=True)
            if key is not None
        }

    def erased(self, columns: tuple[str, ...], keys: Iterable[str]) -> bool:
        """Say whether all of some hashed keys count as absent now."""
        known = _replayed(self.entries).get(columns, {})
        return all(bytes.fromhex(key) in known for key in keys)


_EMPTY: Final = Ledger(b"", ())
_Identity = tuple[AnyPath, int, int]
_known: dict[_Identity, Ledger] = {}
_lock = threading.Lock()


def ledger_folder(root: str | AnyPath) -> AnyPath:
    """Return where a store's ledger lies."""
    return (Path(root.removeprefix("file://")) if isinstance(root, str) else root) / FOLDER


def read_ledger(root: str | AnyPath) -> Ledger:
    """Return a store's ledger as it stands.

    Args:
        root: A folder, or a path of any kind; a URL alone does not say how its store is reached.

    Cost:
        Two looks at a folder, or one listing of objects; entries are read once per process.

    Raises:
        CorruptDataError: an entry, or the secret, is damaged or missing.
    """
    folder = ledger_folder(root)
    identity, is_there = _look(folder)
    if identity is None:
        if is_there(_name(1)):
            _secret(folder)  # raises: it is missing
        return _EMPTY
    with _lock:
        ledger = known = _known.get(identity)
    if ledger is None:
        ledger = Ledger(_secret(folder), ())
    fresh: list[LedgerEntry] = []
    while is_there(name := _name(ledger.number + len(fresh) + 1)):
        fresh.append(_entry(folder / name, ledger.number + len(fresh) + 1))
    if fresh:
        ledger = Ledger(ledger.secret, (*ledger.entries, *fresh))
    if ledger is not known:
        with _lock:
            _known[identity] = ledger
    return ledger


def no_ledger() -> Ledger:
    """Return the ledger of a store in which nothing was ever erased."""
    return _EMPTY


def open_for_writing(root: str | AnyPath) -> Ledger:
    """Return a ledger with its secret, which the first caller draws.

    Raises:
        CorruptDataError: the ledger is damaged.
    """
    folder = make_folders(ledger_folder(root))
    if not (folder / _SALT).exists():
        if isinstance(folder, Path):  # who may read a bucket is the bucket's own setting
            folder.chmod(0o700)
        with suppress(AlreadyExistsError):
            put_if_absent(folder / _SALT, secrets.token_hex(32).encode())
    return read_ledger(root)


def append_entry(root: str | AnyPath, entry: LedgerEntry) -> LedgerEntry:
    """Write an entry under the next free number, durably; returns it with that number.

    Raises:
        StorageError: the disk refused; nothing was written.
        CommitConflictError: too many writers at once.
    """
    folder = ledger_folder(root)
    for _ in range(_ATTEMPTS):
        numbered = replace(entry, number=read_ledger(root).number + 1)
        with suppress(AlreadyExistsError):
            put_if_absent(folder / _name(numbered.number), numbered.to_json())
            return numbered
    raise CommitConflictError("too many writers append to the ledger of erasures at once")


def _look(folder: AnyPath) -> tuple[_Identity | None, Callable[[str], bool]]:
    """Tell a store from another one that took its place, `None` where nothing was ever erased.

    Returns:
        That, and what says which files are there.
    """
    if isinstance(folder, ObjectPath):
        there = {path.name: info for path, info in folder.objects().items() if path.parent == folder}
        secret = there.get(_SALT)
        return None if secret is None else (folder, secret.size, secret.modified_ns), there.__contains__
    try:
        found = (folder / _SALT).stat()
    except FileNotFoundError:
        return None, lambda name: (folder / name).exists()
    return (folder, found.st_ino, found.st_mtime_ns), lambda name: (folder / name).exists()


def _replayed(entries: Iterable[LedgerEntry]) -> dict[tuple[str, ...], dict[bytes, int]]:
    out: dict[tuple[str, ...], dict[bytes, int]] = {}
    for entry in entries:
        keys = {bytes.fromhex(k): h for k, h in zip(entry.keys, entry.hints, strict=True)}
        held = out.setdefault(entry.columns, {})
        if entry.kind == ERASE:
            held.update(keys)
        elif entry.kind == LIFT:
            for key in keys:
                held.pop(key, None)
    return out


def _name(number: int) -> str:
    return f"{number:08d}.json"


def _entry(path: AnyPath, number: int) -> LedgerEntry:
    try:
        body = json.loads(read_file(path))
        digest = body.pop("digest")
        intact = digest_json(body) == digest and body["number"] == number
        entry = LedgerEntry(
            number=number,
            kind=body["kind"],
            time_ns=body["time_ns"],
            entity=body["entity"],
            columns=tuple(body["columns"]),
            keys=tuple(body["keys"]),
            hints=tuple(body["hints"]),
            files={new: (size, xxh3) for new, (size, xxh3) in body["files"].items()},
            of=body["of"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptDataError(
            f"erasure {str(path)!r} cannot be read: {error}", hint="restore the file", path=str(path)
        ) from error
    if not intact:
        raise CorruptDataError(f"erasure {str(path)!r} is damaged", hint="restore the file", path=str(path))
    return entry


def _secret(folder: AnyPath) -> bytes:
    try:
        return bytes.fromhex(read_file(folder / _SALT).decode("ascii"))
    except (NotFoundError, ValueError) as error:
        raise CorruptDataError(
            f"the secret of the ledger {str(folder)!r} is missing or damaged",
            hint="restore it: without it nobody can tell who was erased",
            path=str(folder),
        ) from error


def _hashed(secret: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(key, key=secret, digest_size=_HASH_BYTES, person=b"fs.erased").digest()


def _seed(secret: bytes) -> int:
    found = hashlib.blake2b(b"", key=secret, digest_size=8, person=b"fs.hint").digest()
    return int.from_bytes(found, "little")


def _holds(schema: pa.Schema, columns: Sequence[str]) -> bool:
    return all(n in schema.names and can_be_key(schema.field(n).type) for n in columns)


NOTHING: Final = Suppression(b"", {})
