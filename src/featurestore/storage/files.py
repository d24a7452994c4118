"""Files that survive a crash: written whole, fsynced, and made visible by one atomic step.

A path is a file on a local disk or an object in a store: the same calls serve both. Every effect is announced
to observers first, which is how the fault harness kills, fails or records at every numbered step.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any, Final, overload

from featurestore.errors import StorageError
from featurestore.storage.effects import Observer, announce, observed, storage_errors
from featurestore.storage.objects import CachePlace, ObjectPath, ObjectStore, read_objects, remove_objects

__all__ = [
    "TEMPORARY",
    "AnyPath",
    "Observer",
    "announce",
    "create_folders",
    "fsync_file",
    "fsync_folder",
    "is_remote",
    "link_or_copy",
    "make_folders",
    "nameless_copy",
    "observed",
    "publish_folder",
    "put_if_absent",
    "read_file",
    "read_files",
    "remove_files",
    "remove_folder",
    "replace_file",
    "root_path",
    "storage_errors",
    "write_file",
]

AnyPath = Path | ObjectPath
TEMPORARY: Final = ".tmp-"


def root_path(root: str, options: Mapping[str, Any], cache: CachePlace) -> AnyPath:
    """Return a root as a path: a local folder, or a name in the store that a URL means.

    Raises:
        MissingDependencyError: the library for the URL's protocol is not installed.
        DefinitionError: fsspec does not know the protocol, or the options do not fit it.
    """
    if is_remote(root):
        return ObjectStore(root, options, cache).root
    return Path(root.removeprefix("file://"))


def is_remote(root: str) -> bool:
    """Say whether a root is a URL of a store of objects."""
    return "://" in root and not root.startswith("file://")


def fsync_file(path: str | Path) -> None:
    """Force a file's bytes to the disk."""
    announce("fsync", path)
    with storage_errors("fsync", path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def fsync_folder(path: str | AnyPath) -> None:
    """Force a folder's entries to the disk, so that new names survive a power loss.

    An object is durable once its store has answered.
    """
    if isinstance(path, ObjectPath):
        return
    announce("fsync_folder", path)
    with storage_errors("fsync", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@overload
def make_folders(path: ObjectPath) -> ObjectPath: ...
@overload
def make_folders(path: str | Path) -> Path: ...
def make_folders(path: str | AnyPath) -> AnyPath:
    """Create a folder and its parents, each durable in its own parent; existing ones are kept.

    Stores of objects have no folders: there is nothing to create.
    """
    if isinstance(path, ObjectPath):
        return path
    for folder in create_folders(path):
        fsync_folder(folder)
    return Path(path)


def create_folders(path: str | Path) -> list[str]:
    """Create a folder and its parents; returns the folders that have a new name in them.

    The caller forces these to the disk (`fsync_folder`) before anybody relies on the new ones.
    """
    folder = str(path)
    missing = []
    while not os.path.exists(folder):  # noqa: PTH110 -- texts: partitions are many
        missing.append(folder)
        folder = os.path.dirname(folder) or "."  # noqa: PTH120 -- as above
    for created in reversed(missing):
        announce("mkdir", created)
        with storage_errors("create", created), suppress(FileExistsError):
            os.mkdir(created)  # noqa: PTH102 -- as above
    return [os.path.dirname(created) or "." for created in missing]  # noqa: PTH120 -- as above


def write_file(path: str | AnyPath, data: bytes | memoryview) -> None:
    """Write a new file and fsync it; its folder entry becomes durable with `fsync_folder`.

    Raises:
        AlreadyExistsError: the file is there already.
        StorageError: disk full or no permission; the torn file is removed.
        OSError: never leaves this function.
    """
    if isinstance(path, ObjectPath):
        path.put_if_absent(bytes(data))
        return
    announce("write", path)
    with storage_errors("write", path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                announce("fsync", path)
                os.fsync(file.fileno())
        except OSError:
            Path(path).unlink(missing_ok=True)
            raise


def read_file(path: str | AnyPath) -> bytes:
    """Read a whole file.

    Raises:
        NotFoundError: there is none.
    """
    if isinstance(path, ObjectPath):
        return path.read_bytes()
    with storage_errors("read", path):
        return Path(path).read_bytes()


def read_files(paths: Sequence[AnyPath]) -> list[bytes]:
    """Read many small files; objects several at a time.

    Raises:
        NotFoundError: one of them is not there.
    """
    remote = [path for path in paths if isinstance(path, ObjectPath)]
    if remote and len(remote) == len(paths):
        return read_objects(remote)
    return [read_file(path) for path in paths]


def put_if_absent(path: str | AnyPath, data: bytes) -> None:
    """Create a file with all of its bytes, durably, or leave what is there: one of many writers wins.

    Raises:
        AlreadyExistsError: another writer was first. (In a store of objects, with other bytes: a lost answer
            cannot be told from a second call, so what must be told apart carries a number of its own.)
        StorageError: the file system has no hard links, the store no conditional writes, or it refused.
    """
    if isinstance(path, ObjectPath):
        path.put_if_absent(data)
        return
    target = Path(path)
    staged = target.parent / f"{TEMPORARY}{target.name}-{uuid.uuid4().hex[:12]}"
    write_file(staged, data)
    try:
        announce("link", target)
        with storage_errors("create", target):
            os.link(staged, target)
    finally:
        staged.unlink(missing_ok=True)
    fsync_folder(target.parent)


def replace_file(path: str | AnyPath, data: bytes) -> None:
    """Give a file new bytes in one step, durably: readers see the old or the new ones, never a mix."""
    if isinstance(path, ObjectPath):
        path.put(data)
        return
    target = Path(path)
    staged = target.parent / f"{TEMPORARY}{target.name}-{uuid.uuid4().hex[:12]}"
    write_file(staged, data)
    try:
        announce("replace", target)
        with storage_errors("replace", target):
            staged.replace(target)
    finally:
        staged.unlink(missing_ok=True)
    fsync_folder(target.parent)


def publish_folder(staged: str | AnyPath, target: str | AnyPath) -> None:
    """Make a folder of fsynced files visible under its name in one step, durably.

    Objects cannot be renamed: there the folder holds one, the manifest, and is put again under its name.

    Raises:
        AlreadyExistsError: the target is there already.
        StorageError: the two are not in one place, or the disk refused.
        FileExistsError: never leaves this function; nor does OSError.
        OSError: see above.
    """
    if isinstance(staged, ObjectPath) and isinstance(target, ObjectPath):
        _publish_objects(staged, target)
        return
    if isinstance(staged, ObjectPath) or isinstance(target, ObjectPath):
        raise StorageError(f"cannot publish {str(staged)!r} as {str(target)!r}: not in one store")
    fsync_folder(staged)
    announce("rename", target)
    with storage_errors("publish", target):
        try:
            Path(staged).rename(target)
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                raise FileExistsError(error.errno, error.strerror) from error
            raise
    fsync_folder(Path(target).parent)


def _publish_objects(staged: ObjectPath, target: ObjectPath) -> None:
    found = list(staged.objects())
    for path in found:
        (target / path.name).put_if_absent(path.read_bytes())
    remove_objects(found)


@contextmanager
def nameless_copy(blocks: Iterable[bytes], folder: str | Path | None = None) -> Iterator[int]:
    """Hold bytes in a file of this machine while the block runs; gives its descriptor.

    The file has no name: nothing of it stays, however the process ends.

    Args:
        folder: On which disk; `None`: where the system keeps temporary files.

    Raises:
        StorageError: there is no room for it.
        FeatureStoreError: what the blocks raise.
    """
    with TemporaryFile(dir=folder) as copy:
        with storage_errors("write", folder or gettempdir()):
            for block in blocks:
                copy.write(block)
            copy.flush()
        yield copy.fileno()


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a finished file a second name; where the file system cannot, copy and fsync it.

    Raises:
        NotFoundError: the file is gone.
        FileNotFoundError: never leaves this function.
    """
    announce("link", target)
    with storage_errors("link", source):
        try:
            os.link(source, target)
            return
        except FileNotFoundError:
            raise
        except OSError:
            shutil.copyfile(source, target)
    fsync_file(target)


def remove_files(paths: Iterable[str | AnyPath]) -> int:
    """Remove files that may be gone already; returns how many were there."""
    removed = 0
    remote = []
    for path in paths:
        if isinstance(path, ObjectPath):
            remote.append(path)
            continue
        announce("remove", path)
        with storage_errors("remove", path):
            try:
                Path(path).unlink()
                removed += 1
            except FileNotFoundError:
                continue
    return removed + remove_objects(remote)


def remove_folder(path: str | AnyPath) -> None:
    """Remove a folder and all that is in it, if it is there."""
    if isinstance(path, ObjectPath):
        remove_objects(list(path.objects()))
        return
    announce("remove", path)
    with storage_errors("remove", path):
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            return
