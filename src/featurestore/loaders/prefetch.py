"""Ordered prefetch: steps are built by threads ahead of the consumer and come out in order."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from featurestore.errors import FeatureStoreError, StorageError
from featurestore.loaders.stats import Stats

T = TypeVar("T")


class OrderedPrefetch(Generic[T]):
    """Calls `build(step)` for `start … stop-1` on threads, at most `ahead` steps before the consumer.

    An error comes out at the step where it happened, with its traceback; nothing after it does. With no
    threads the step is built when it is asked for.
    """

    def __init__(
        self, build: Callable[[int], T], start: int, stop: int, *, threads: int, ahead: int, stats: Stats
    ) -> None:
        self._build = build
        self._next = start
        self._stop = stop
        self._ahead = max(1, ahead)
        self._stats = stats
        self._pending: deque[Future[T]] = deque()
        self._pool = (
            ThreadPoolExecutor(threads, thread_name_prefix="featurestore-loader") if threads else None
        )
        self._ended = False
        self._fill()

    @property
    def depth(self) -> int:
        """Steps that are ready and waiting."""
        return sum(1 for future in self._pending if future.done())

    def take(self) -> T | None:
        """Return the next step's result, None after the last.

        Raises:
            FeatureStoreError: what went wrong in the thread.
            StorageError: the same, where it was an `OSError`.
        """
        if self._pool is None:
            return self._take_now()
        if self._ended or not self._pending:
            self.close()
            return None
        try:
            result = self._pending.popleft().result()
        except FeatureStoreError:
            self.close()
            raise
        except CancelledError as error:
            self.close()
            raise StorageError("the loader was closed while a batch was being made") from error
        except OSError as error:
            self.close()
            raise StorageError(f"a loader thread failed: {error}") from error
        except BaseException:
            self.close()
            raise
        self._fill()
        return result

    def close(self, *, wait: bool = True) -> None:
        """Drop what is pending and end the threads."""
        self._ended = True
        for future in self._pending:
            future.cancel()
        self._pending.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=wait, cancel_futures=True)

    def _take_now(self) -> T | None:
        if self._ended or self._next >= self._stop:
            return None
        self._next += 1
        return self._timed(self._next - 1)

    def _fill(self) -> None:
        while self._pool is not None and self._next < self._stop and len(self._pending) < self._ahead:
            self._pending.append(self._pool.submit(self._timed, self._next))
            self._next += 1

    def _timed(self, step: int) -> T:
        started = time.perf_counter()
        result = self._build(step)
        self._stats.built(time.perf_counter() - started)
        return result
