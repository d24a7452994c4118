"""One writer at a time for each dataset: a lock that the kernel frees however its holder dies, or a lease."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from featurestore.errors import CommitConflictError
from featurestore.materialize.context import Home
from featurestore.storage.files import make_folders, storage_errors
from featurestore.storage.lease import Lease
from featurestore.storage.objects import ObjectPath

_FIRST_STEP_S, _LAST_STEP_S = 0.002, 0.05
_leases: dict[ObjectPath, Lease] = {}


@contextmanager
def writing(home: Home, *, wait_s: float = 30.0) -> Iterator[None]:
    """Hold a dataset's writer lock while the block runs.

    Raises:
        CommitConflictError: another writer held it for all of `wait_s`, or for twice a lease's term.
    """
    if isinstance(home.lock, ObjectPath):
        wait_s = max(wait_s, 2 * home.lease_s)
        with Lease(home.lock, home.title, term_s=home.lease_s, wait_s=wait_s) as lease:
            _leases[home.lock] = lease
            try:
                yield
            finally:
                del _leases[home.lock]
        return
    make_folders(home.lock.parent)
    with storage_errors("lock", home.lock):
        descriptor = os.open(home.lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _acquire(descriptor, home, wait_s)
        yield
    finally:
        os.close(descriptor)


def check_writing(home: Home) -> None:
    """Make sure, before a commit, that this process is still the one writer.

    Raises:
        CommitConflictError: its lease passed to another.
    """
    if isinstance(home.lock, ObjectPath):
        _leases[home.lock].check()


def _acquire(descriptor: int, home: Home, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    step_s = _FIRST_STEP_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EWOULDBLOCK, errno.EAGAIN}:
                raise
            if time.monotonic() > deadline:
                raise CommitConflictError(
                    f"another process is writing {home.title!r}",
                    hint="wait for it, or run the same command again later",
                    name=home.title,
                ) from error
            time.sleep(step_s)
            step_s = min(2 * step_s, _LAST_STEP_S)
        else:
            return
