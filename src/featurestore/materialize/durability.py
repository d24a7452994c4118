"""Forcing files to the disk beside the computation: waiting for a disk costs no core."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self

# Disks and journals take several fsyncs at a time; more than a few gain nothing.
_THREADS: Final = 4


class Durability:
    """Runs the last steps of written files: fsync, rename, fsync of the folder; safe for threads.

    Leaving the block waits for all of them and raises the first failure, so that what was written in it is
    durable behind it. A block that fails leaves without them: nothing of it was published.
    """

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(_THREADS, "durability")
        self._steps: list[Future[None]] = []
        self._lock = threading.Lock()
        return self

    def finish(self, step: Callable[[], None]) -> None:
        """Run a step soon.

        Raises:
            StorageError: an earlier step failed.
        """
        with self._lock:
            done = [f for f in self._steps if f.done()]
            self._steps = [*(f for f in self._steps if f not in done), self._pool.submit(step)]
        for ended in done:
            ended.result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            for step in self._steps:
                step.result()
