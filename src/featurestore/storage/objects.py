"""Objects: names in S3, Azure or any other fsspec store, with as much of pathlib as paths under a root need.

An object is whole or not there; there are no folders and no renames. The one promise that everything rests on
is put-if-absent: it is tried out on the store itself before this process writes anything to it.
"""

import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from featurestore.errors import (
    AlreadyExistsError,
    CorruptDataError,
    DefinitionError,
    MissingDependencyError,
    NotFoundError,
    StorageError,
)
from featurestore.storage.effects import announce, storage_errors

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

PROBE: Final = ".probe-"
_BLOCK: Final = 8 << 20
_REQUESTS: Final = 8
_ATTEMPTS: Final = 5
_PAUSE_S: Final = 0.05
# Where stores' own libraries raise what is no OSError: module, then its root class.
_FOREIGN: Final = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp.client_exceptions", "ClientError"),
    ("azure.core.exceptions", "AzureError"),
    ("gcsfs.retry", "HttpError"),
)
_PIP: Final = {"s3": "s3", "s3a": "s3", "az": "azure", "abfs": "azure", "abfss": "azure"}
_probed: set[tuple[str, str]] = set()
_probing = threading.Lock()


@dataclass(frozen=True, slots=True)
class CachePlace:
    """Where local copies of objects are kept, and how many bytes of them."""

    folder: str
    limit_bytes: int


class ObjectStore:
    """How a root's objects are reached and where their copies are kept; connects on first use and pickles.

    Attributes:
        url: The root.
        cache: The cache tier in front of the store.
    """

    def __init__(self, url: str, options: Mapping[str, Any], cache: CachePlace) -> None:
        self.url = url.rstrip("/")
        self.options = dict(options)
        self.cache = cache
        self._identity = (self.url, repr(sorted(self.options.items())), cache)

    def __repr__(self) -> str:
        return f"ObjectStore({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectStore) and other._identity == self._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def protocol(self) -> str:
        """The URL's protocol, such as `s3`."""
        return self.url.partition("://")[0]

    @property
    def filesystem(self) -> "AbstractFileSystem":
        """The store's file system; fsspec keeps one for each process.

        Raises:
            MissingDependencyError: the library for the URL's protocol is not installed.
            DefinitionError: fsspec does not know the protocol, or the options do not fit it.
        """
        return open_filesystem(self.url, self.options)[0]

    @cached_property
    def root(self) -> "ObjectPath":
        """The path that all names of this store begin with."""
        return ObjectPath(self, open_filesystem(self.url, self.options)[1].rstrip("/"))

    def now_ns(self) -> int:
        """Return the store's own time, by putting an object and asking when that was."""
        path = self.root / f"{PROBE}{uuid.uuid4().hex}"
        try:
            path.put(b"")
            found = path.info()
        finally:
            path.remove()
        return 0 if found is None else found.modified_ns

    def check_put_if_absent(self) -> None:
        """Put one name twice, once for each process, before anything else is written.

        Raises:
            StorageError: the second put went through or changed the bytes: of two writers at once one
                would lose its commit without a word.
        """
        bucket = ("/".join(self.url.split("/")[:3]), self._identity[1])
        with _probing:
            if bucket not in _probed:
                self._probe()
                _probed.add(bucket)

    def _probe(self) -> None:
        path = self.root / f"{PROBE}{uuid.uuid4().hex}"
        try:
            first = path.create(b"first")
            second = path.create(b"second")
            kept = path.read_bytes()
        finally:
            path.remove()
        if not first or second or kept != b"first":
            raise StorageError(
                f"{self.url!r} does not honour put-if-absent: it took a second object of one name",
                hint="use a store with conditional writes (AWS S3, Azure Blob, Google Cloud Storage, "
                "a recent MinIO or Ceph), or a local disk",
            )


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store says of an object.

    Attributes:
        modified_ns: When it was put, by the store's clock; 0 where it does not say.
    """

    size: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class ObjectPath:
    """A name in an object store.

    Attributes:
        key: The name as the file system spells it, bucket or container first.
    """

    store: ObjectStore = field(repr=False)
    key: str

    def __str__(self) -> str:
        return f"{self.store.protocol}://{self.key}"

    def __lt__(self, other: "ObjectPath") -> bool:
        return self.key < other.key

    def __truediv__(self, name: str) -> "ObjectPath":
        return ObjectPath(self.store, f"{self.key}/{name}")

    @property
    def name(self) -> str:
        """The last part of the name."""
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The last part without its ending."""
        return PurePosixPath(self.name).stem

    @property
    def parent(self) -> "ObjectPath":
        """The name without its last part."""
        return ObjectPath(self.store, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> "ObjectPath":
        """Return the path with another last part."""
        return self.parent / name

    def relative_to(self, base: "ObjectPath") -> PurePosixPath:
        """Return the part of the name behind another."""
        return PurePosixPath(self.key).relative_to(base.key)

    # -- reading -------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Say whether there is such an object, or any below the name."""
        try:
            with object_errors("look for", self):
                self.store.filesystem.info(self.key)
        except NotFoundError:
            return False
        return True

    is_dir = exists

    def is_file(self) -> bool:
        """Say whether there is an object of just this name."""
        return self.info() is not None

    def info(self) -> ObjectInfo | None:
        """Return size and age of an object, `None` where there is none."""
        try:
            with object_errors("look for", self):
                found = self.store.filesystem.info(self.key)
        except NotFoundError:
            return None
        return _object_info(found) if found["type"] == "file" else None

    def iterdir(self) -> "list[ObjectPath]":
        """Return what lies directly below the name, sorted; nothing where nothing is."""
        try:
            with object_errors("list", self):
                self.store.filesystem.invalidate_cache()
                found = self.store.filesystem.ls(self.key, detail=False)
        except NotFoundError:
            return []
        names = sorted({str(name).rstrip("/") for name in found})
        return [ObjectPath(self.store, name) for name in names if name != self.key]

    def objects(self) -> "dict[ObjectPath, ObjectInfo]":
        """Return every object below the name."""
        try:
            with object_errors("list", self):
                self.store.filesystem.invalidate_cache()
                found = self.store.filesystem.find(self.key, detail=True)
        except NotFoundError:
            return {}
        return {ObjectPath(self.store, str(name)): _object_info(i) for name, i in sorted(found.items())}

    def glob(self, pattern: str) -> "list[ObjectPath]":
        """Return what lies directly below the name and matches a pattern of one part."""
        return [path for path in self.iterdir() if PurePosixPath(path.name).match(pattern)]

    def rglob(self, pattern: str) -> "list[ObjectPath]":
        """Return every object below the name whose last part matches a pattern."""
        return [path for path in self.objects() if PurePosixPath(path.name).match(pattern)]

    def read_bytes(self) -> bytes:
        """Return an object's bytes.

        Raises:
            NotFoundError: there is none.
            StorageError: the store refused.
        """
        with object_errors("read", self):
            # One connection: more of them would first ask for the size.
            return bytes(self.store.filesystem.cat_file(self.key, max_concurrency=1))

    def read_blocks(self, size: int) -> Iterator[bytes]:
        """Return an object's bytes block by block, several requests at a time.

        Raises:
            NotFoundError: there is none.
            CorruptDataError: it is shorter than `size`.
        """
        return read_blocks(self.store.filesystem, self.key, size)

    # -- writing -------------------------------------------------------------------------------------

    def put_if_absent(self, data: bytes) -> None:
        """Create an object with all of its bytes, or leave what is there: one of many writers wins.

        A lost answer is settled by what is there then. The bytes must therefore tell writers apart, or mean
        the same whoever wrote them.

        Raises:
            AlreadyExistsError: another writer was first with other bytes.
            StorageError: the store refused, or does not honour put-if-absent.
        """
        self.store.check_put_if_absent()
        announce("put", self)
        for attempt in range(_ATTEMPTS):
            try:
                done = self.create(data)
            except StorageError as error:
                found = self._found()
                if found is None and (
                    attempt + 1 == _ATTEMPTS or isinstance(error.__cause__, PermissionError)
                ):
                    raise
                if found is None:
                    time.sleep(_PAUSE_S * 2**attempt)
                    continue
                done = found == data
            else:
                done = done or self._found() == data
            if done:
                return
            raise AlreadyExistsError(f"cannot create {str(self)!r}: it exists already", path=str(self))

    def create(self, data: bytes) -> bool:
        """Ask once for an object to be created; False where there is one of that name.

        Raises:
            StorageError: the store refused, or its answer was lost.
        """
        try:
            with object_errors("create", self):
                self.store.filesystem.pipe_file(self.key, data, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def _found(self) -> bytes | None:
        try:
            return self.read_bytes()
        except NotFoundError:
            return None

    def put(self, data: bytes) -> None:
        """Write an object, in place of one that may be there."""
        self.store.check_put_if_absent()
        announce("put", self)
        with object_errors("write", self):
            self.store.filesystem.pipe_file(self.key, data)

    def upload(self, local: Path) -> None:
        """Write a finished local file as an object whose name its content decides.

        Raises:
            StorageError: the store refused.
        """
        self.store.check_put_if_absent()
        announce("put", self)
        with object_errors("write", self):
            self.store.filesystem.put_file(str(local), self.key)

    def remove(self) -> bool:
        """Remove an object that may be gone already; False where the store says that it was."""
        announce("remove", self)
        try:
            with object_errors("remove", self):
                self.store.filesystem.rm_file(self.key)
        except NotFoundError:
            return False
        return True


def read_blocks(filesystem: Any, key: str, size: int) -> Iterator[bytes]:
    """Return the bytes of a remote file block by block, several requests at a time.

    Raises:
        NotFoundError: there is none.
        CorruptDataError: it is shorter than `size`.
    """
    starts = list(range(0, size, _BLOCK))
    for first in range(0, len(starts), _REQUESTS):
        batch = starts[first : first + _REQUESTS]
        ends = [min(start + _BLOCK, size) for start in batch]
        with object_errors("read", key):
            blocks = filesystem.cat_ranges([key] * len(batch), batch, ends, on_error="raise")
        for start, end, block in zip(batch, ends, blocks, strict=True):
            if len(block) != end - start:
                raise CorruptDataError(f"{key!r} ended before its {size} bytes", path=key)
            yield block


def read_objects(paths: Sequence[ObjectPath]) -> list[bytes]:
    """Read many small objects, several requests at a time.

    Raises:
        NotFoundError: one of them is not there.
    """
    with ThreadPoolExecutor(_REQUESTS, "objects") as pool:
        return list(pool.map(ObjectPath.read_bytes, paths))


def remove_objects(paths: Sequence[ObjectPath]) -> int:
    """Remove many objects, several requests at a time; returns how many there were."""
    if not paths:
        return 0
    with ThreadPoolExecutor(_REQUESTS, "objects") as pool:
        return sum(pool.map(ObjectPath.remove, paths))


def open_filesystem(url: str, options: Mapping[str, Any]) -> "tuple[AbstractFileSystem, str]":
    """Return the file system of a URL, and the URL's path in it.

    Raises:
        MissingDependencyError: the library for the protocol is not installed.
        DefinitionError: fsspec does not know the protocol, or the options do not fit it.
    """
    import fsspec  # noqa: PLC0415 -- local roots do not pay for it

    protocol = url.partition("://")[0]
    try:
        # What others write must be seen: no listing is remembered.
        filesystem, path = fsspec.core.url_to_fs(url, **{"use_listings_cache": False, **options})
    except ImportError as error:
        raise MissingDependencyError(
            f"reaching {url!r} needs a file system that is not installed",
            hint=f"pip install 'featurestore[{_PIP[protocol]}]'" if protocol in _PIP else str(error),
        ) from error
    except (ValueError, TypeError) as error:
        raise DefinitionError(
            f"cannot read {url!r}: {error}", hint="give a path, or a URL that fsspec knows", path=url
        ) from error
    return filesystem, str(path)


@contextmanager
def object_errors(action: str, path: object) -> Iterator[None]:
    """Turn what a store's library raises into ours.

    Raises:
        NotFoundError: no such object.
        AlreadyExistsError: there is one.
        StorageError: everything else: no answer, no permission, no such bucket, …
    """
    try:
        with storage_errors(action, str(path)):
            yield
    except _foreign_errors() as error:
        raise StorageError(
            f"cannot {action} {str(path)!r}: {type(error).__name__}: {error}",
            hint="check the endpoint, the credentials and the network; the same call may succeed later",
            path=str(path),
        ) from error


def _foreign_errors() -> tuple[type[BaseException], ...]:
    loaded = ((sys.modules.get(module), name) for module, name in _FOREIGN)
    return tuple(getattr(module, name) for module, name in loaded if module is not None)


def _object_info(found: Mapping[str, Any]) -> ObjectInfo:
    at = found.get("LastModified") or found.get("last_modified") or found.get("created")
    # fsspec leaves the type open: datetimes, or seconds since 1970.
    seconds = at if isinstance(at, (int, float)) else 0 if at is None else at.timestamp()
    return ObjectInfo(int(found["size"] or 0), int(seconds * 10**9))


def default_cache_folder() -> str:
    """Return where copies are kept unless the settings say otherwise: the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return str(Path(base).expanduser() / "featurestore")
