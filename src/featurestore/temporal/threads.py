"""Splitting kernels over threads: they release the GIL, so plain threads run them side by side."""

import itertools
import queue
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

from featurestore.errors import DefinitionError
from featurestore.temporal.jit import lazy_module

# Below this many rows per thread, handing work over costs more than it saves.
MIN_ROWS: Final = 1 << 16

_numba = lazy_module("numba")


def check_count(value: object, what: str) -> None:
    """Check that a number of threads or rows is one.

    Raises:
        DefinitionError: it is no integer, or not positive.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise DefinitionError(f"{what} is {value!r}", hint="a positive integer, or None")


def thread_count(threads: int | None, rows: int) -> int:
    """How many threads `rows` rows are worth; `None` asks for as many as there are cores."""
    wanted = int(_numba.config.NUMBA_DEFAULT_NUM_THREADS) if threads is None else threads
    return max(1, min(wanted, rows // MIN_ROWS))


def split(count: int, parts: int) -> list[tuple[int, int]]:
    """Cut `range(count)` into `parts` neighbouring ranges of nearly equal length."""
    return list(pairwise(count * part // parts for part in range(parts + 1)))


class _Job:
    """Tasks that a caller and the workers who get to it take one after the other."""

    def __init__(self, tasks: Sequence[Callable[[], None]]) -> None:
        self.tasks = tasks
        self.turns = itertools.count()  # one `next` is one step of the interpreter: no two get the same
        self.left = len(tasks)
        self.lock = threading.Lock()
        self.done = threading.Event()
        self.failures: list[BaseException] = []

    def work(self) -> None:
        while (turn := next(self.turns)) < len(self.tasks):
            try:
                self.tasks[turn]()
            except BaseException as failure:  # noqa: BLE001 -- raised again in the caller, whatever it is
                self.failures.append(failure)
            with self.lock:
                self.left -= 1
                if self.left == 0:
                    self.done.set()


class _Crew:
    """Worker threads that wait for jobs. They end with the process and do not survive a fork."""

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self.workers: list[threading.Thread] = []

    def grow(self, count: int) -> None:
        while len(self.workers) < count:
            worker = threading.Thread(target=self.serve, name="featurestore-kernel", daemon=True)
            worker.start()
            self.workers.append(worker)

    def serve(self) -> None:
        while True:
            self.jobs.get().work()


_crews: list[_Crew] = []


def _crew(count: int) -> _Crew:
    """Return the process's workers, at least `count`: new ones in a process that was forked."""
    # Without a lock, which a fork could leave locked: two callers at once cost a spare worker at most.
    if not _crews or not all(worker.is_alive() for worker in _crews[-1].workers):
        _crews[:] = [_Crew()]
    crew = _crews[-1]
    crew.grow(count)
    return crew


def run_parallel(tasks: Sequence[Callable[[], None]]) -> None:
    """Run the tasks side by side, the caller taking its part; the first failure is raised.

    A caller whose workers are busy elsewhere does everything itself, so calls from many threads, or from
    within a task, cannot wait for each other.
    """
    if len(tasks) <= 1:
        for task in tasks:
            task()
        return
    job, crew = _Job(tasks), _crew(len(tasks) - 1)
    for _ in tasks[1:]:
        crew.jobs.put(job)
    job.work()
    job.done.wait()
    if job.failures:
        raise job.failures[0]


def run_in_turn(tasks: Sequence[Callable[[], None]], wide: int) -> None:
    """Run any number of tasks, so many side by side; who is free takes the next one."""
    turns = itertools.count()

    def lane() -> None:
        while (turn := next(turns)) < len(tasks):
            tasks[turn]()

    run_parallel([lane] * min(wide, len(tasks)))
