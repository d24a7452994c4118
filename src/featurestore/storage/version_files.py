"""The large files of Arrow versions: in each version's folder, or among objects shared by all versions.

On a disk versions share files by hard links. Objects have no links: there the files of all versions lie in
`files/` beside the versions, shards named by their content, and a version's folder holds small JSON alone.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from featurestore.errors import NotFoundError
from featurestore.storage.cache import file_cache
from featurestore.storage.files import AnyPath, link_or_copy, make_folders, nameless_copy
from featurestore.storage.objects import ObjectPath

FILES: Final = "files"
Opened = TypeVar("Opened")


def object_of(versions: ObjectPath, name: str) -> ObjectPath:
    """Return an object of all versions by name; `versions` is the folder of all versions."""
    return versions / FILES / name


def shard_name(xxh3: str) -> str:
    """Name a shard's object by its content: versions that share it share the object."""
    return f"{xxh3}.arrow"


def open_shard_file(
    folder: AnyPath,
    name: str,
    xxh3: str,
    size: int | None,
    opener: Callable[[Path], Opened],
    *,
    fresh: bool = False,
) -> Opened:
    """Open or map a shard's file; a remote one is fetched into the cache first, and verified.

    Args:
        folder: The version's folder.
        size: Its bytes; `None`: the store is asked.
        fresh: Fetch a remote one again even if there is a copy.

    Raises:
        NotFoundError: it is gone.
        CorruptDataError: the store holds other bytes than were written.
    """
    if isinstance(folder, Path):
        return opener(folder / name)
    remote = object_of(folder.parent, shard_name(xxh3))
    cache = file_cache(remote.store.cache)
    return cache.use(xxh3, size or partial(_size_of, remote), remote.read_blocks, opener, fresh=fresh)


def _size_of(remote: ObjectPath) -> int:
    found = remote.info()
    if found is None:
        raise NotFoundError(f"{str(remote)!r} is gone", hint="restore it, or recreate the version")
    return found.size


@contextmanager
def fetched(path: AnyPath, size: int) -> Iterator[Path]:
    """Give a file of the root on this machine while the block runs: itself, or a fresh copy, not cached.

    Raises:
        NotFoundError: it is gone.
        CorruptDataError: it is shorter than `size`.
    """
    if isinstance(path, Path):
        yield path
        return
    scratch = make_folders(Path(path.store.cache.folder) / "scratch")
    with nameless_copy(path.read_blocks(size), scratch) as descriptor:
        yield Path(f"/dev/fd/{descriptor}")


def share_files(source: AnyPath, target: AnyPath, names: Iterable[str]) -> None:
    """Let one version's folder have files of another; objects are shared already.

    Raises:
        NotFoundError: a file is gone.
    """
    if isinstance(source, Path) and isinstance(target, Path):
        for name in names:
            link_or_copy(source / name, target / name)
