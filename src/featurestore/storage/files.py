"""Files that survive a crash: written whole, fsynced, and made visible by one atomic step.

Every effect on the disk passes through here and is announced to observers first, which is how the fault
harness kills, fails or records at every numbered step.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from featurestore.errors import AlreadyExistsError, FeatureStoreError, NotFoundError, StorageError

Observer = Callable[[str, str], None]

TEMPORARY: Final = ".tmp-"
_observers: list[Observer] = []
_HINTS: Final = {
    errno.ENOSPC: "the disk is full: free space and run the same command again, nothing was published",
    errno.EDQUOT: "the quota is used up: free space and run the same command again, nothing was published",
    errno.EFBIG: "the file would be larger than this process or file system allows",
    errno.EACCES: "permission is missing: check owner and mode of the folder",
    errno.EPERM: "permission is missing: check owner and mode of the folder",
    errno.EROFS: "the file system is mounted read-only",
    errno.EMFILE: "too many open files: raise `ulimit -n`",
    errno.EIO: "the device reported an error: check the disk",
}


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Call `observer(operation, path)` before every effect of this process while the block runs."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def announce(operation: str, path: str | Path) -> None:
    """Tell the observers what is about to happen; one of them may raise instead."""
    for observer in _observers:
        observer(operation, str(path))


@contextmanager
def storage_errors(action: str, path: str | Path) -> Iterator[None]:
    """Turn the operating system's errors into ours.

    Raises:
        NotFoundError: no such file.
        AlreadyExistsError: the file is there already.
        StorageError: everything else: disk full, permission, …
        FeatureStoreError: what the block itself raised, as it is.
    """
    try:
        yield
    except FeatureStoreError:
        raise
    except FileNotFoundError as error:
        raise NotFoundError(
            f"cannot {action} {str(path)!r}: no such file or folder", path=str(path)
        ) from error
    except FileExistsError as error:
        raise AlreadyExistsError(
            f"cannot {action} {str(path)!r}: it exists already", path=str(path)
        ) from error
    except OSError as error:
        raise StorageError(
            f"cannot {action} {str(path)!r}: {error.strerror or error}",
            hint=_HINTS.get(error.errno or 0, ""),
            path=str(path),
            errno=error.errno,
        ) from error


def fsync_file(path: str | Path) -> None:
    """Force a file's bytes to the disk."""
    announce("fsync", path)
    with storage_errors("fsync", path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def fsync_folder(path: str | Path) -> None:
    """Force a folder's entries to the disk, so that new names survive a power loss."""
    announce("fsync_folder", path)
    with storage_errors("fsync", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_folders(path: str | Path) -> Path:
    """Create a folder and its parents, each durable in its own parent; existing ones are kept."""
    folder = Path(path)
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for created in reversed(missing):
        announce("mkdir", created)
        with storage_errors("create", created):
            created.mkdir(exist_ok=True)
        fsync_folder(created.parent)
    return Path(path)


def write_file(path: str | Path, data: bytes | memoryview) -> None:
    """Write a new file and fsync it; its folder entry becomes durable with `fsync_folder`.

    Raises:
        AlreadyExistsError: the file is there already.
        StorageError: disk full or no permission; the torn file is removed.
        OSError: never leaves this function.
    """
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


def read_file(path: str | Path) -> bytes:
    """Read a whole file.

    Raises:
        NotFoundError: there is none.
    """
    with storage_errors("read", path):
        return Path(path).read_bytes()


def put_if_absent(path: str | Path, data: bytes) -> None:
    """Create a file with all of its bytes, durably, or leave what is there: one of many writers wins.

    Raises:
        AlreadyExistsError: another writer was first.
        StorageError: the file system has no hard links, or refused.
    """
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


def replace_file(path: str | Path, data: bytes) -> None:
    """Give a file new bytes in one step, durably: readers see the old or the new ones, never a mix."""
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


def publish_folder(staged: str | Path, target: str | Path) -> None:
    """Make a folder of fsynced files visible under its name in one step, durably.

    Raises:
        AlreadyExistsError: the target is there already.
        FileExistsError: never leaves this function; nor does OSError.
        OSError: see above.
    """
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


def remove_files(paths: Iterable[str | Path]) -> int:
    """Remove files that may be gone already; returns how many were there."""
    removed = 0
    for path in paths:
        announce("remove", path)
        with storage_errors("remove", path):
            try:
                Path(path).unlink()
                removed += 1
            except FileNotFoundError:
                continue
    return removed


def remove_folder(path: str | Path) -> None:
    """Remove a folder and all that is in it, if it is there."""
    announce("remove", path)
    with storage_errors("remove", path):
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            return
