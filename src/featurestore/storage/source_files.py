"""Which files a source path means: one file, a folder, a glob or Hive folders, local or by fsspec URL."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final

import pyarrow as pa

from featurestore.core.names import near
from featurestore.errors import (
    CorruptDataError,
    DefinitionError,
    NotFoundError,
    StorageError,
)
from featurestore.storage.cache import file_cache
from featurestore.storage.files import AnyPath, make_folders, replace_file, storage_errors
from featurestore.storage.objects import (
    CachePlace,
    ObjectPath,
    object_errors,
    open_filesystem,
    read_blocks,
)

_URL: Final = re.compile(r"[a-z][a-z0-9+.-]+://")
_GLOB: Final = re.compile(r"[*?\[]")
_SUFFIXES: Final = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "csv",
}
_HASH_BLOCK: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source.

    Attributes:
        path: As the file system names it.
        name: Relative to the source's path, with `/`: what orders files and names them in pins.
        size: Bytes.
        stamp: Changes when the content may have: modification and change times, or an ETag.
        partitions: Hive columns from the folders' names.
    """

    path: str
    name: str
    size: int
    stamp: str
    partitions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """A source's path on its file system.

    Attributes:
        remote: An fsspec file system or `None`.
        options: What the file system was opened with.
        cache: Where copies of remote files are kept, if anywhere.
        descriptor: An open local copy of the one file that is read.
    """

    path: str
    remote: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    cache: CachePlace | None = None
    descriptor: int | None = None

    def open(self, path: str) -> pa.NativeFile:
        """Open a file for random reads, memory-mapped where it is local.

        Raises:
            NotFoundError: it is gone.
            StorageError: it cannot be read.
        """
        if self.remote is not None:
            with object_errors("read", path):
                return pa.PythonFile(self.remote.open(path, "rb"), mode="r")
        with storage_errors("read", path):
            if self.descriptor is not None:
                path = f"/dev/fd/{self.descriptor}"
            return pa.memory_map(path) if Path(path).stat().st_size else pa.OSFile(path)


def place_of(path: str, root: str | AnyPath) -> Place:
    """Resolve a source's path; a relative one is taken from the store's root.

    A URL of the root's protocol is opened with the root's options, another with what the environment gives.

    Raises:
        MissingDependencyError: the URL's file system is not installed.
        DefinitionError: fsspec does not know the URL's protocol.
    """
    if isinstance(root, ObjectPath):
        store = root.store
        if not _URL.match(path) and not path.startswith("/"):
            return Place((root / path.strip("/")).key, store.filesystem, store.options, store.cache)
        same = path.partition("://")[0] == store.url.partition("://")[0]
        return _place_of(path, "", store.options if same else {}, store.cache)
    text = str(root)
    if not _URL.match(path) and _URL.match(text) and not path.startswith("/"):
        path = f"{text.rstrip('/')}/{path}"
    return _place_of(path, text, {}, None)


def _place_of(path: str, root: str, options: Mapping[str, Any], cache: CachePlace | None) -> Place:
    path = path.removeprefix("file://")
    if not _URL.match(path):
        return Place(str(Path(root).expanduser() / Path(path).expanduser()))
    remote, inside = open_filesystem(path, options)
    return Place(inside, remote, options, cache)


def list_files(place: Place, *, suffixes: Sequence[str] | None = None) -> list[SourceFile]:
    """List a source's files, ordered by name; names that begin with `_` or `.` are skipped.

    Raises:
        NotFoundError: nothing is there; near names are listed.
    """
    files = _list_remote(place) if place.remote is not None else _list_local(place)
    if suffixes is not None:
        files = [f for f in files if f.name.lower().endswith(tuple(suffixes))] or files
    if not files:
        if place.remote is None and Path(place.path).is_dir():
            raise NotFoundError(
                f"no file in the folder {place.path!r}",
                hint="it is there, but empty; names that begin with '_' or '.' do not count",
                path=place.path,
            )
        raise NotFoundError(f"no file at {place.path!r}", hint=_near_paths(place), path=place.path)
    return sorted(files, key=lambda f: f.name)


def is_delta(place: Place) -> bool:
    """Say whether the path is a Delta table."""
    log = f"{place.path.rstrip('/')}/_delta_log"
    if place.remote is None:
        return Path(log).is_dir()
    try:
        with object_errors("look for", log):
            place.remote.info(log)
    except NotFoundError:
        return False
    return True


def format_of(place: Place, files: Sequence[SourceFile]) -> str:
    """Find out a format from a file's name, else from its first bytes.

    Raises:
        DefinitionError: neither tells.
    """
    first = files[0]
    for suffix, name in _SUFFIXES.items():
        if first.name.lower().endswith(suffix):
            return name
    with place.open(first.path) as file:
        magic = file.read(6)
    if magic[:4] == b"PAR1":
        return "parquet"
    if magic == b"ARROW1":
        return "arrow"
    raise DefinitionError(
        f"cannot tell the format of {first.path!r}",
        hint="give the source format='parquet', 'arrow' or 'csv'",
        path=first.path,
    )


def suffixes_of(kind: str | None) -> list[str] | None:
    """Return the file endings of a format; `None` for every known format."""
    return [s for s, k in _SUFFIXES.items() if kind is None or k == kind]


def _list_local(place: Place) -> list[SourceFile]:
    if _GLOB.search(place.path) and not Path(place.path).exists():
        base = Path(place.path)
        while _GLOB.search(str(base)):
            base = base.parent
        pattern = str(Path(place.path).relative_to(base))
        found = [p for p in base.glob(pattern) if p.is_file()]
    else:
        base = Path(place.path)
        if base.is_file():
            found, base = [base], base.parent
        else:
            found = [p for p in base.rglob("*") if p.is_file()] if base.is_dir() else []
    return [
        _local_file(p, p.relative_to(base).as_posix()) for p in found if _is_data(p.relative_to(base).parts)
    ]


def _is_data(parts: Sequence[str]) -> bool:
    return not any(part.startswith((".", "_")) for part in parts)


def _local_file(path: Path, name: str) -> SourceFile:
    with storage_errors("read", path):
        found = path.stat()
    stamp = f"{found.st_mtime_ns}-{found.st_ctime_ns}-{found.st_ino}"
    return SourceFile(str(path), name, found.st_size, stamp, _hive(name))


def _list_remote(place: Place) -> list[SourceFile]:
    with object_errors("list", place.path):
        place.remote.invalidate_cache()
        if _GLOB.search(place.path):
            found = place.remote.glob(place.path, detail=True)
            base = _GLOB.split(place.path, maxsplit=1)[0].rpartition("/")[0]
        else:
            found, base = place.remote.find(place.path, detail=True), place.path.rstrip("/")
            if list(found) == [base]:  # it is a file
                found, base = {base: place.remote.info(base)}, base.rpartition("/")[0]
    files = []
    for path, info in found.items():
        name = path[len(base) :].lstrip("/")
        if info.get("type") == "file" and _is_data(name.split("/")):
            stamp = str(
                info.get("ETag") or info.get("LastModified") or info.get("created") or info.get("mtime")
            )
            files.append(SourceFile(path, name, int(info["size"]), stamp, _hive(name)))
    return files


def _hive(name: str) -> tuple[tuple[str, str], ...]:
    folders = PurePosixPath(name).parts[:-1]
    return tuple((k, v) for k, found, v in (f.partition("=") for f in folders) if found)


def _near_paths(place: Place) -> str:
    parent = Path(place.path).parent
    if place.remote is not None or not parent.is_dir():
        return "check the path; a relative one is taken from the store's root"
    return f"in {str(parent)!r} {near(Path(place.path).name, (p.name for p in parent.iterdir()))}"


class HashCache:
    """Content hashes of files, kept by path, size and stamp so that an unchanged file is hashed once.

    A cache is a hint: a lost or damaged one costs time. `verify` never trusts it.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / "hashes.json"
        self._known: dict[str, str] = {}
        self._dirty = False
        if self._path is not None and self._path.is_file():
            try:
                self._known = dict(json.loads(self._path.read_bytes()))
            except (ValueError, OSError):
                self._known = {}

    def digest(self, place: Place, file: SourceFile) -> str:
        """Return a file's xxh3-128 as 32 hex digits."""
        key = f"{file.path}|{file.size}|{file.stamp}"
        if key not in self._known:
            self._known[key] = _digest(place, file)
            self._dirty = True
        return self._known[key]

    def save(self) -> None:
        """Keep what was learnt; a read-only root just forgets it."""
        if self._path is None or not self._dirty:
            return
        try:
            make_folders(self._path.parent)
            replace_file(self._path, json.dumps(self._known).encode())
        except StorageError:
            return
        self._dirty = False


def _digest(place: Place, file: SourceFile) -> str:
    """Hash a file; a remote one is kept in the cache on the way, where it fits."""
    cache = place.cache
    if place.remote is None or cache is None or not fits(file.size, cache):
        return hash_file(place, file.path)
    return file_cache(cache).add(file.size, partial(read_blocks, place.remote, file.path))


def fits(size: int, cache: CachePlace) -> bool:
    """Say whether a source's file is kept in the cache: a large one would drive out everything else."""
    return size * 8 <= cache.limit_bytes


@contextmanager
def nearest(place: Place, file: SourceFile, xxh3: str) -> Iterator[Place]:
    """Give the place to read a file of known content from: a remote one from its copy, where it fits."""
    cache = place.cache
    if place.remote is None or cache is None or not fits(file.size, cache):
        yield place
        return
    descriptor = file_cache(cache).use(
        xxh3,
        file.size,
        partial(read_blocks, place.remote, file.path),
        lambda path: os.open(path, os.O_RDONLY | os.O_CLOEXEC),
    )
    try:
        yield Place(place.path, descriptor=descriptor)
    finally:
        os.close(descriptor)


def hash_file(place: Place, path: str) -> str:
    """Hash a file's content with xxh3-128, in blocks.

    Raises:
        CorruptDataError: the file ended early.
    """
    import xxhash  # noqa: PLC0415 -- reading without hashing does not need it

    hasher = xxhash.xxh3_128()
    with place.open(path) as file:
        left = file.size()
        while left:
            block = file.read(min(left, _HASH_BLOCK))
            if not block:
                raise CorruptDataError(f"{path!r} ended before its size", path=path)
            hasher.update(block)
            left -= len(block)
    return str(hasher.hexdigest())
