"""Ordered prefetch: steps are built by threads ahead of the consumer and come out in order."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

from featurestore.errors import FeatureStoreError, StorageError
from featurestore.loaders.stats import Stats

T = TypeVar("T")


@contextmanager
def closing_on_error(close: Callable[[], None]) -> Iterator[None]:
    """End the threads by `close` before whatever went wrong in them reaches the consumer.

    Raises:
        FeatureStoreError: what went wrong in a thread, as it was raised there.
        StorageError: the same, where it was an `OSError` or a cancelled task.
    """
    try:
        yield
    except FeatureStoreError:
        close()
        raise
    except (OSError, CancelledError) as error:
        close()
        raise StorageError(f"a loader thread failed: {error}") from error
    except BaseException:
        close()
        raise


class OrderedPrefetch(Generic[T]):
    """Calls `build(step)` for `start … stop-1` on threads and hands the results out in order.

    Threads take `group` steps at a time (handing a task to a thread costs as much as a small batch); at most
    `ahead` groups are under way before the consumer. An error comes out at the step where it happened, with
    its traceback; nothing after it does. Without threads a step is built when it is asked for.

    Args:
        hint: Called with the first step of a group when it is handed out; returns work that will be needed
            soon, or None.
    """

    def __init__(
        self,
        build: Callable[[int], T],
        start: int,
        stop: int,
        *,
        threads: int,
        ahead: int,
        stats: Stats,
        group: int = 1,
        hint: Callable[[int], Callable[[], object] | None] | None = None,
    ) -> None:
        self._build = build
        self._next = start
        self._first = start
        self._stop = stop
        self._ahead = max(1, ahead)
        self._group = group
        self._hint = hint
        self._stats = stats
        self._pending: deque[Future[list[T | BaseException]]] = deque()
        self._made: deque[T | BaseException] = deque()
        self._pool = (
            ThreadPoolExecutor(threads, thread_name_prefix="featurestore-loader") if threads else None
        )
        self._ended = False
        self._fill()

    @property
    def depth(self) -> int:
        """Steps that are ready and waiting."""
        return len(self._made) + self._group * sum(1 for future in self._pending if future.done())

    def take(self) -> T | None:
        """Return the next step's result, None after the last.

        Raises:
            FeatureStoreError: what went wrong in the thread.
            StorageError: the same, where it was an `OSError`.
        """
        with closing_on_error(self.close):
            return self._take()

    def close(self, *, wait: bool = True) -> None:
        """Drop what is pending and end the threads."""
        self._ended = True
        for future in self._pending:
            future.cancel()
        self._pending.clear()
        self._made.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=wait, cancel_futures=True)

    def _take(self) -> T | None:
        if self._ended:
            return None
        if self._pool is None:
            if self._next >= self._stop:
                return None
            self._next += 1
            return self._timed(self._next - 1)
        if not self._made:
            if not self._pending:
                self.close()
                return None
            self._made.extend(self._pending.popleft().result())
            self._fill()
        found = self._made.popleft()
        if isinstance(found, BaseException):
            raise found
        return found

    def _fill(self) -> None:
        while self._pool is not None and self._next < self._stop and len(self._pending) < self._ahead:
            # The first group is one step, so that it comes soon.
            count = 1 if self._next == self._first else min(self._group, self._stop - self._next)
            self._pending.append(self._pool.submit(self._several, self._next, count))
            soon = None if self._hint is None else self._hint(self._next)
            if soon is not None:
                self._pool.submit(soon)
            self._next += count

    def _several(self, step: int, count: int) -> list[T | BaseException]:
        """Build steps up to the first that fails, whose error stands in its place."""
        made: list[T | BaseException] = []
        for number in range(step, step + count):
            if self._ended:
                break
            try:
                made.append(self._timed(number))
            except BaseException as error:  # noqa: BLE001 - raised again in the consumer, at this step
                made.append(error)
                break
        return made

    def _timed(self, step: int) -> T:
        started = time.perf_counter()
        result = self._build(step)
        self._stats.built(time.perf_counter() - started)
        return result
