"""Effects: announced to observers before they happen, and errors of the system turned into ours."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from featurestore.errors import AlreadyExistsError, FeatureStoreError, NotFoundError, StorageError

Observer = Callable[[str, str], None]

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


def announce(operation: str, path: object) -> None:
    """Tell the observers what is about to happen; one of them may raise instead."""
    for observer in _observers:
        observer(operation, str(path))


@contextmanager
def storage_errors(action: str, path: object) -> Iterator[None]:
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
