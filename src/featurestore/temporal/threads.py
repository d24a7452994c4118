"""Splitting kernels over threads: they release the GIL, so plain threads run them side by side."""

import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

from featurestore.temporal.jit import lazy_module

# Below this many rows per thread, starting a thread costs more than it saves.
MIN_ROWS: Final = 1 << 16

_numba = lazy_module("numba")


def thread_count(threads: int | None, rows: int) -> int:
    """How many threads `rows` rows are worth; `None` asks for as many as there are cores."""
    wanted = int(_numba.config.NUMBA_DEFAULT_NUM_THREADS) if threads is None else threads
    return max(1, min(wanted, rows // MIN_ROWS))


def split(count: int, parts: int) -> list[tuple[int, int]]:
    """Cut `range(count)` into `parts` neighbouring ranges of nearly equal length."""
    edges = [count * part // parts for part in range(parts + 1)]
    return list(pairwise(edges))


def run_parallel(tasks: Sequence[Callable[[], None]]) -> None:
    """Run the tasks side by side, the first one in the calling thread; the first failure is raised."""
    failures: list[BaseException] = []

    def guarded(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as failure:  # noqa: BLE001 -- carried to the caller below, whatever it is
            failures.append(failure)

    workers = [threading.Thread(target=guarded, args=(task,)) for task in tasks[1:]]
    for worker in workers:
        worker.start()
    if tasks:
        guarded(tasks[0])
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
