"""Where the catalog's commit files live: a flat folder in which a file is put once and never changed."""

from collections.abc import Mapping
from typing import Any, Protocol

from featurestore.errors import AlreadyExistsError, NotFoundError
from featurestore.storage.files import (
    TEMPORARY,
    AnyPath,
    fsync_folder,
    make_folders,
    put_if_absent,
    read_file,
    remove_files,
    root_path,
    storage_errors,
)
from featurestore.storage.objects import PROBE, CachePlace, ObjectPath, default_cache_folder


class CatalogStore(Protocol):
    """A flat folder of small immutable files.

    The one promise that everything rests on: of many callers of `put_if_absent` with one name exactly one
    is told True, its bytes are there whole and durable, and nobody ever sees others or a part of them.

    Attributes:
        remote: Whether every look costs a request.
    """

    remote: bool

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Create a file with all of its bytes; False where there is another of that name already."""
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
        """Remove a file that may be gone already."""
        ...


class CatalogFolder:
    """A folder below the root: files on a local disk, or objects in a store with conditional writes."""

    def __init__(self, folder: AnyPath) -> None:
        self._folder = folder
        self._ready = False
        self.remote = isinstance(folder, ObjectPath)

    def __repr__(self) -> str:
        return f"CatalogFolder({str(self._folder)!r})"

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Create a file with all of its bytes; False where there is another of that name already."""
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
        return sorted(name for name in found if not name.startswith((TEMPORARY, PROBE)))

    def remove(self, name: str) -> None:
        """Remove a file that may be gone already."""
        remove_files([self._folder / name])


def open_catalog_store(root: str, storage_options: Mapping[str, Any] | None = None) -> CatalogStore:
    """Return the store of a folder or URL."""
    # Commits are decoded once and kept in memory: this folder never uses the cache tier.
    cache = CachePlace(default_cache_folder(), 1)
    return CatalogFolder(root_path(root, storage_options or {}, cache))
