"""Forcing files to the disk beside the computation: waiting for a disk costs no core."""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self

from featurestore.storage.files import fsync_folder

# A journal takes all fsyncs that wait for it in one go: many at a time cost little more than one.
_THREADS: Final = 16


class Durability:
    """Runs the last steps of written files: fsync, then rename; safe for threads.

    Leaving the block waits for all of them, forces the folders with new names to the disk, each once, and
    raises the first failure, so that what was written in it is durable behind it. A block that fails leaves
    without them: nothing of it was published.
    """

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(_THREADS, "durability")
        self._steps: deque[Future[None]] = deque()
        self._folders: set[str] = set()
        self._lock = threading.Lock()
        return self

    def finish(self, step: Callable[[], None]) -> None:
        """Run a step soon.

        Raises:
            StorageError: an earlier step failed.
        """
        ended = []
        with self._lock:
            while self._steps and self._steps[0].done():
                ended.append(self._steps.popleft())
            self._steps.append(self._pool.submit(step))
        for earlier in ended:
            earlier.result()

    def keep_names(self, folders: Iterable[str]) -> None:
        """Force folders to the disk at the end, when their files have their names."""
        with self._lock:
            self._folders.update(folders)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                for step in self._steps:
                    step.result()
                folders = sorted(self._folders)
                shares = [folders[i::_THREADS] for i in range(min(_THREADS, len(folders)))]
                list(self._pool.map(_fsync_all, shares))
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _fsync_all(folders: Iterable[str]) -> None:
    for folder in folders:
        fsync_folder(folder)
