"""Ordered prefetch: steps are built by threads ahead of the consumer and come out in order."""

import atexit
import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import partial
from queue import SimpleQueue
from typing import Final, Generic, TypeVar

from featurestore.errors import FeatureStoreError, StorageError
from featurestore.loaders.stats import Stats

T = TypeVar("T")
Task = Callable[[], object]

_open: Final["weakref.WeakSet[Workers]"] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Let running tasks end before the interpreter takes apart what they use."""
    for workers in list(_open):
        workers.close(wait=True)


_forks: Final = [0]


def _count_fork() -> None:
    _forks[0] += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


def forks() -> int:
    """Say how many forks this process is away from the first; no system call, so cheap for every batch."""
    return _forks[0]


class Workers:
    """Threads that run tasks in the order in which they were given.

    A `ThreadPoolExecutor` with its futures costs as much per task as a small batch, most of it in waking
    threads; here a task is one entry of a C queue.
    """

    def __init__(self, count: int, name: str) -> None:
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=_run_tasks, args=(self._tasks,), name=f"{name}-{i}", daemon=True)
            for i in range(count)
        ]
        for thread in self._threads:
            thread.start()
        _open.add(self)

    def submit(self, task: Task) -> None:
        """Run a task, which must not raise, on one of the threads."""
        self._tasks.put(task)

    def close(self, *, wait: bool) -> None:
        """End the threads after the tasks already given; with `wait`, once they have ended."""
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads if wait else ():
            if thread is not threading.current_thread():
                thread.join()


def _run_tasks(tasks: "SimpleQueue[Task | None]") -> None:
    while (task := tasks.get()) is not None:
        task()
        del task  # what it holds must not stay until the next one comes


def delivered(take: Callable[[], T], close: Callable[[], None]) -> T:
    """Return what `take` gives; whatever went wrong in a thread ends all of them and reaches the consumer.

    Raises:
        FeatureStoreError: what went wrong, as it was raised there.
        StorageError: the same, where it was an `OSError` or a cancelled task.
    """
    try:
        return take()
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
        self._pending: deque[SimpleQueue[list[T | BaseException]]] = deque()
        self._made: deque[T | BaseException] = deque()
        self._workers = Workers(threads, "featurestore-loader") if threads else None
        self._ended = False
        self._fill()

    @property
    def depth(self) -> int:
        """Steps that are ready and waiting."""
        return len(self._made) + self._group * sum(not done.empty() for done in self._pending)

    def take(self) -> T | None:
        """Return the next step's result, None after the last.

        Raises:
            FeatureStoreError: what went wrong in the thread.
            StorageError: the same, where it was an `OSError`.
        """
        return delivered(self._take, self.close)

    def close(self, *, wait: bool = True) -> None:
        """Drop what is pending and end the threads."""
        self._ended = True
        self._pending.clear()
        self._made.clear()
        if self._workers is not None:
            self._workers.close(wait=wait)
            self._workers = None

    def _take(self) -> T | None:
        if self._ended:
            return None
        if self._workers is None:
            if self._next >= self._stop:
                return None
            self._next += 1
            return self._timed(self._next - 1)
        if not self._made:
            if not self._pending:
                self.close()
                return None
            self._made.extend(self._pending.popleft().get())
            self._fill()
        found = self._made.popleft()
        if isinstance(found, BaseException):
            raise found
        return found

    def _fill(self) -> None:
        while self._workers is not None and self._next < self._stop and len(self._pending) < self._ahead:
            # The first group is one step, so that it comes soon.
            count = 1 if self._next == self._first else min(self._group, self._stop - self._next)
            done: SimpleQueue[list[T | BaseException]] = SimpleQueue()
            self._pending.append(done)
            self._workers.submit(partial(self._several, self._next, count, done))
            soon = None if self._hint is None else self._hint(self._next)
            if soon is not None:
                self._workers.submit(partial(self._ahead_of_time, soon))
            self._next += count

    def _several(self, step: int, count: int, done: "SimpleQueue[list[T | BaseException]]") -> None:
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
        done.put(made)

    def _ahead_of_time(self, work: Callable[[], object]) -> None:
        """Do work that a step will ask for; an error in it is that step's, which will meet it again."""
        if not self._ended:
            with contextlib.suppress(BaseException):  # a thread that ends here would leave steps unmade
                work()

    def _timed(self, step: int) -> T:
        started = time.perf_counter()
        result = self._build(step)
        self._stats.built(time.perf_counter() - started)
        return result
