"""Where the catalog's commit files live: a flat folder in which a file is put once and never changed."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from featurestore.errors import AlreadyExistsError, NotFoundError, StorageError
from featurestore.storage.files import (
    TEMPORARY,
    fsync_folder,
    make_folders,
    put_if_absent,
    read_file,
    storage_errors,
)

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_PROBE: Final = ".probe-"


class CatalogStore(Protocol):
    """A flat folder of small immutable files.

    The one promise that everything rests on: of many callers of `put_if_absent` with one name exactly one
    is told True, its bytes are there whole and durable, and nobody ever sees others or a part of them.
    """

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Create a file with all of its bytes; False where there is one of that name already."""
        ...

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, `None` where there is none."""
        ...

    def has(self, name: str) -> bool:
        """Tell whether a file is there."""
        ...

    def names(self) -> list[str]:
        """Return the names of all files, sorted, without temporary ones."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file that may be gone already; only probes are ever removed."""
        ...


class LocalCatalogStore:
    """A folder on a local disk: temporary file, fsync, hard link, fsync of the folder."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._ready = False

    def __repr__(self) -> str:
        return f"LocalCatalogStore({str(self._folder)!r})"

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Create a file with all of its bytes; False where there is one of that name already."""
        if not self._ready:
            make_folders(self._folder)
            self._ready = True
        try:
            put_if_absent(self._folder / name, data)
        except AlreadyExistsError:
            fsync_folder(self._folder)  # what is built on it must not outlive it
            return False
        return True

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, `None` where there is none."""
        try:
            return read_file(self._folder / name)
        except NotFoundError:
            return None

    def has(self, name: str) -> bool:
        """Tell whether a file is there."""
        return (self._folder / name).exists()

    def names(self) -> list[str]:
        """Return the names of all files, sorted, without temporary ones."""
        try:
            with storage_errors("list", self._folder):
                found = [path.name for path in self._folder.iterdir()]
        except NotFoundError:
            return []
        return sorted(name for name in found if not name.startswith((TEMPORARY, _PROBE)))

    def remove(self, name: str) -> None:
        """Remove a file that may be gone already."""
        with storage_errors("remove", self._folder / name):
            (self._folder / name).unlink(missing_ok=True)


class FsspecCatalogStore:
    """A folder behind an fsspec URL: S3 by `If-None-Match: *`, Azure by `overwrite=False`."""

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        import fsspec  # noqa: PLC0415 -- only remote catalogs need it

        self.url = url
        filesystem, path = fsspec.core.url_to_fs(url, **dict(storage_options or {}))
        self._fs: AbstractFileSystem = filesystem
        self._path = str(path).rstrip("/")

    def __repr__(self) -> str:
        return f"FsspecCatalogStore({self.url!r})"

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Create a file with all of its bytes; False where there is one of that name already."""
        target = f"{self._path}/{name}"
        try:
            with storage_errors("create", target):
                self._create(target, data)
        except AlreadyExistsError:
            return False
        return True

    def _create(self, target: str, data: bytes) -> None:
        protocol = self._fs.protocol if isinstance(self._fs.protocol, str) else self._fs.protocol[0]
        if protocol in {"abfs", "az", "abfss"}:
            self._fs.pipe_file(target, data, overwrite=False)
        else:
            self._fs.pipe_file(target, data, mode="create")

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, `None` where there is none."""
        target = f"{self._path}/{name}"
        try:
            with storage_errors("read", target):
                return bytes(self._fs.cat_file(target))
        except NotFoundError:
            return None

    def has(self, name: str) -> bool:
        """Tell whether a file is there."""
        target = f"{self._path}/{name}"
        try:
            with storage_errors("look for", target):
                self._fs.info(target, refresh=True)
        except NotFoundError:
            return False
        return True

    def names(self) -> list[str]:
        """Return the names of all files, sorted, without temporary ones."""
        try:
            with storage_errors("list", self._path):
                self._fs.invalidate_cache(self._path)
                found = [str(path).rpartition("/")[2] for path in self._fs.ls(self._path, detail=False)]
        except NotFoundError:
            return []
        return sorted(name for name in found if not name.startswith((TEMPORARY, _PROBE)))

    def remove(self, name: str) -> None:
        """Remove a file that may be gone already."""
        target = f"{self._path}/{name}"
        try:
            with storage_errors("remove", target):
                self._fs.rm_file(target)
        except NotFoundError:
            return


def probe(store: CatalogStore) -> None:
    """Check that a store keeps the promise of `put_if_absent`, by putting one name twice.

    Raises:
        StorageError: the second put went through or changed the bytes: two appliers at once would lose
            one of their commits without a word.
    """
    name = f"{_PROBE}{uuid.uuid4().hex}"
    try:
        first = store.put_if_absent(name, b"first")
        second = store.put_if_absent(name, b"second")
        kept = store.read(name)
    finally:
        store.remove(name)
    if not first or second or kept != b"first":
        raise StorageError(
            f"{store!r} does not honour put-if-absent: it took a second file of one name",
            hint="use a store with conditional writes (AWS S3, Azure Blob, Google Cloud Storage, a recent "
            "MinIO or Ceph), or a local disk",
        )


def open_catalog_store(root: str | Path, storage_options: Mapping[str, Any] | None = None) -> CatalogStore:
    """Return the store of a folder or URL."""
    text = str(root)
    if "://" not in text:
        return LocalCatalogStore(text)
    if text.startswith("file://"):
        return LocalCatalogStore(text.removeprefix("file://"))
    return FsspecCatalogStore(text, storage_options)
