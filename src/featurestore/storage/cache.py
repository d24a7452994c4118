"""The cache tier: copies of objects on a local disk, named by their content, least recently used out first.

Any number of processes share a folder. An entry appears by rename, whole and verified; its bytes are hashed
again when a process touches it first, and a damaged one is fetched again. Room is taken before the first
byte of a fill arrives, so that the folder never outgrows its limit; what a reader has mapped outlives its
eviction.

    objects/ab/<xxh3-128>   finished copies; their modification time is their last use
    filling/…               copies on their way, each locked by the process that fills it
    locks/ab                held while an entry whose name begins so is filled
    INDEX                   held while room is made; says how many bytes are taken, never too few
"""

import errno
import fcntl
import logging
import os
import struct
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, TypeVar

from featurestore.errors import CorruptDataError, NotFoundError, StorageError
from featurestore.storage.effects import announce, storage_errors
from featurestore.storage.hashing import hash_local_file, new_hasher
from featurestore.storage.objects import CachePlace

Result = TypeVar("Result")
Blocks = Callable[[int], Iterable[bytes]]

_TRIES: Final = 16
_WAIT_S: Final = 300.0
_STEP_S: Final = 0.02
_COUNTER: Final = struct.Struct("<qq")
_log: Final = logging.getLogger("featurestore.cache")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReport:
    """What a cache holds.

    Attributes:
        bytes: Of finished copies; `filling_bytes` is taken by copies on their way.
    """

    folder: str
    entries: int
    bytes: int
    filling_bytes: int
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class _Entry:
    used_ns: int
    path: Path
    size: int


class FileCache:
    """Local copies of immutable files, by xxh3-128 of their content; safe for threads and processes.

    Attributes:
        hits: Lookups of this process that found their entry; `fills` those that fetched it.
        damaged: Entries that this process found damaged and fetched again.
    """

    def __init__(self, folder: str | Path, limit_bytes: int) -> None:
        self.folder = Path(folder)
        self.limit_bytes = limit_bytes
        self.hits = self.fills = self.damaged = 0
        self._verified: dict[Path, tuple[int, int]] = {}

    def __repr__(self) -> str:
        return f"FileCache({str(self.folder)!r}, limit_bytes={self.limit_bytes})"

    def use(
        self,
        xxh3: str,
        size: int | Callable[[], int],
        blocks: Blocks,
        opener: Callable[[Path], Result],
        *,
        fresh: bool = False,
    ) -> Result:
        """Open a copy, fetched first where there is none.

        Args:
            size: Its bytes, or what asks for them where there is no copy.
            blocks: Gives the bytes of a file of this size, in order.
            opener: Opens or maps the file at a path; what it returns stays good after an eviction.
            fresh: Fetch again even if there is a copy.

        Raises:
            CorruptDataError: what was fetched does not have this hash and size.
            StorageError: the disk is full even without any other entry, or refused.
            NotFoundError: entries vanish faster than they can be opened.
        """
        path = self._path(xxh3)
        for _ in range(_TRIES):
            if fresh or not self._is_good(path, xxh3):
                length = size if isinstance(size, int) else size()
                self._fill(path, xxh3, length, blocks, fresh=fresh)
                fresh = False
            else:
                self.hits += 1
            try:
                with storage_errors("open", path):
                    return opener(path)
            except NotFoundError:
                continue  # evicted in between
        raise NotFoundError(
            f"the copy of {xxh3} vanished {_TRIES} times before it could be opened",
            hint="the cache is far too small for what is read at once: raise its size",
        )

    def add(self, size: int, blocks: Blocks) -> str:
        """Fetch a file whose content is not known yet; returns its xxh3-128.

        Raises:
            CorruptDataError: it is not of this size.
            StorageError: the disk is full even without any other entry, or refused.
        """
        with self._room(size) as (descriptor, staged):
            with storage_errors("write", staged):
                xxh3 = _fetch(descriptor, staged, size, blocks)
            self._publish(descriptor, staged, self._path(xxh3))
        return xxh3

    def report(self) -> CacheReport:
        """Say what is there, by looking."""
        entries = self._entries()
        filling = sum(size for _, size in self._filling())
        return CacheReport(
            folder=str(self.folder),
            entries=len(entries),
            bytes=sum(e.size for e in entries),
            filling_bytes=filling,
            limit_bytes=self.limit_bytes,
        )

    def clear(self) -> CacheReport:
        """Remove every finished copy; returns what was removed. Readers keep what they have mapped."""
        with self._index() as index:
            report = self.report()
            _remove(e.path for e in self._entries())
            _write_counter(index, self._scan_filling())
        return report

    # -- entries -------------------------------------------------------------------------------------

    def _path(self, xxh3: str) -> Path:
        return self.folder / "objects" / xxh3[:2] / xxh3

    def _is_good(self, path: Path, xxh3: str) -> bool:
        """Say whether there is a copy, verified by this process, and mark it as used."""
        try:
            found = path.stat()
            os.utime(path)
        except FileNotFoundError:
            return False
        identity = (found.st_dev, found.st_ino)
        if self._verified.get(path) == identity:
            return True
        try:
            good = hash_local_file(path) == xxh3
        except NotFoundError:
            return False
        if good:
            self._verified[path] = identity
        else:
            self.damaged += 1
            _log.warning("cached copy %s is damaged (%d bytes): fetching it again", path, found.st_size)
            self._drop(path, identity)
        return good

    def _drop(self, path: Path, identity: tuple[int, int]) -> None:
        """Remove a damaged entry, unless another process has put a new one in its place."""
        with self._index() as index:
            try:
                found = path.stat()
            except FileNotFoundError:
                return
            if (found.st_dev, found.st_ino) == identity:
                used = self._used(index)
                path.unlink()
                _write_counter(index, used - found.st_size)

    def _fill(self, path: Path, xxh3: str, size: int, blocks: Blocks, *, fresh: bool) -> None:
        with self._stripe(xxh3):
            if not fresh and self._is_good(path, xxh3):
                return
            with self._room(size) as (descriptor, staged):
                announce("fill", path)
                with storage_errors("write", staged):
                    found = _fetch(descriptor, staged, size, blocks)
                if found != xxh3:
                    raise CorruptDataError(
                        f"an object of {size} bytes came with checksum {found}, expected was {xxh3}",
                        hint="the store holds other bytes than were written: verify the version, "
                        "or materialize again",
                        path=str(path),
                    )
                self._publish(descriptor, staged, path)
            self.fills += 1

    def _publish(self, descriptor: int, staged: Path, path: Path) -> None:
        found = os.fstat(descriptor)
        with self._index() as index, storage_errors("publish", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            gone = path.stat().st_size if path.exists() else 0
            used = self._used(index)
            staged.replace(path)
            _write_counter(index, used - gone)
        self._verified[path] = (found.st_dev, found.st_ino)

    # -- room ----------------------------------------------------------------------------------------

    @contextmanager
    def _room(self, size: int) -> Iterator[tuple[int, Path]]:
        """Take room for a file: evict what is least recently used, or wait for other fills to end.

        Raises:
            StorageError: the disk is full, or other fills do not end.
        """
        deadline = time.monotonic() + _WAIT_S
        while (taken := self._try_room(size)) is None:
            if time.monotonic() > deadline:
                raise StorageError(
                    f"no room for {size} bytes in the cache at {str(self.folder)!r} for {_WAIT_S:.0f} s",
                    hint="other processes fill all of it: raise its size",
                )
            time.sleep(_STEP_S)
        descriptor, staged = taken
        try:
            yield descriptor, staged
        finally:
            with self._index() as index:
                if staged.exists():  # it was not published
                    used = self._used(index)
                    staged.unlink()
                    _write_counter(index, used - size)
            os.close(descriptor)

    def _try_room(self, size: int) -> tuple[int, Path] | None:
        with self._index() as index:
            used = self._used(index)
            if used + size > self.limit_bytes:
                used = self._evict(index, self.limit_bytes - size)
            # A file that is larger than the whole cache is let in alone.
            if used + size > self.limit_bytes and used > 0:
                return None
            staged = self.folder / "filling" / uuid.uuid4().hex
            with storage_errors("create", staged):
                staged.parent.mkdir(parents=True, exist_ok=True)
            _write_counter(index, used + size)
            return self._allocate(index, staged, size), staged

    def _allocate(self, index: int, staged: Path, size: int) -> int:
        """Create the file with its blocks; a disk that others have filled costs entries first.

        Raises:
            StorageError: the disk is full.
            OSError: never leaves this function.
        """
        with storage_errors("create", staged):
            descriptor = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                while True:
                    try:
                        if size and hasattr(os, "posix_fallocate"):
                            os.posix_fallocate(descriptor, 0, size)
                    except OSError as error:
                        entries = self._entries()
                        if error.errno not in {errno.ENOSPC, errno.EDQUOT} or not entries:
                            raise
                        used = self._used(index)
                        _remove([entries[0].path])
                        _write_counter(index, used - entries[0].size)
                    else:
                        return descriptor
            except OSError:
                used = self._used(index)
                os.close(descriptor)
                staged.unlink(missing_ok=True)
                _write_counter(index, used - size)
                raise

    def _evict(self, index: int, room: int) -> int:
        """Remove entries, least recently used first, until at most `room` bytes are taken; returns those.

        Cost: one listing; a sixteenth of the limit goes with it, so that it is seldom paid.
        """
        used = self._scan_filling()
        entries = self._entries()
        used += sum(e.size for e in entries)
        if used > room:
            goal = room - self.limit_bytes // 16
            for entry in entries:
                if used <= goal:
                    break
                announce("evict", entry.path)
                _remove([entry.path])
                self._verified.pop(entry.path, None)
                used -= entry.size
        _write_counter(index, used)
        return used

    def _entries(self) -> list[_Entry]:
        """List finished copies, least recently used first."""
        out = []
        with suppress(FileNotFoundError):
            for folder in os.scandir(self.folder / "objects"):
                for file in os.scandir(folder.path):
                    with suppress(FileNotFoundError):
                        found = file.stat()
                        out.append(_Entry(found.st_mtime_ns, Path(file.path), found.st_size))
        return sorted(out, key=lambda e: (e.used_ns, e.path))

    def _filling(self) -> list[tuple[Path, int]]:
        out = []
        with suppress(FileNotFoundError):
            for file in os.scandir(self.folder / "filling"):
                with suppress(FileNotFoundError):
                    out.append((Path(file.path), file.stat().st_size))
        return out

    def _scan_filling(self) -> int:
        """Return the bytes of live fills; what a killed process left behind is removed."""
        live = 0
        for path, size in self._filling():
            with suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                with closing(os.fdopen(descriptor, "rb")):
                    try:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        live += size
                    else:
                        path.unlink()
        return live

    # -- locks ---------------------------------------------------------------------------------------

    @contextmanager
    def _index(self) -> Iterator[int]:
        with _locked(self.folder / "INDEX") as descriptor:
            yield descriptor

    @contextmanager
    def _stripe(self, xxh3: str) -> Iterator[None]:
        with _locked(self.folder / "locks" / xxh3[:2]):
            yield

    def _used(self, index: int) -> int:
        """Return the bytes taken: at least those on the disk, more after a process was killed."""
        data = os.pread(index, _COUNTER.size, 0)
        if len(data) == _COUNTER.size:
            used, check = _COUNTER.unpack(data)
            if check == ~used:
                return int(used)
        return self._scan_filling() + sum(e.size for e in self._entries())


@lru_cache(maxsize=16)
def file_cache(place: CachePlace) -> FileCache:
    """Return the process's cache at a place."""
    return FileCache(place.folder, place.limit_bytes)


def _fetch(descriptor: int, staged: Path, size: int, blocks: Blocks) -> str:
    """Write what arrives; returns its hash.

    Raises:
        CorruptDataError: more or fewer bytes came.
    """
    hasher = new_hasher()
    written = 0
    for block in blocks(size):
        hasher.update(block)
        written += os.pwrite(descriptor, block, written)
    if written != size:
        raise CorruptDataError(
            f"an object of {size} bytes came with {written}",
            hint="the store holds other bytes than were written: verify the version, or materialize again",
            path=str(staged),
        )
    return str(hasher.hexdigest())


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Hold a file's lock, which the kernel frees however its holder ends."""
    with storage_errors("lock", path):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _write_counter(index: int, used: int) -> None:
    os.pwrite(index, _COUNTER.pack(used, ~used), 0)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with storage_errors("remove", path):
            path.unlink(missing_ok=True)
