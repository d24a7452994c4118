"""Who runs the tasks of a plan: threads or processes; the answer never depends on it (PIT-6)."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures import (
    Executor as Pool,
)
from multiprocessing import current_process, get_context
from typing import Protocol, TypeVar

from featurestore.core.arguments import refuse
from featurestore.core.config import EXECUTORS
from featurestore.core.names import near
from featurestore.errors import DefinitionError, MissingDependencyError, StorageError

Task = TypeVar("Task")
Answer = TypeVar("Answer")


class Executor(Protocol):
    """Runs independent tasks.

    Attributes:
        workers: How many run at a time.
        shares_memory: Whether tasks may hold tables; otherwise they hold paths of files.
    """

    workers: int
    shares_memory: bool

    def run(self, work: Callable[[Task], Answer], tasks: Iterable[Task]) -> Iterator[Answer]:
        """Yield the answers as they come, in any order; the first error stops the rest and is raised.

        Tasks are taken one by one as there is room for them, by the thread that asks for answers: making one
        may take time, in which those that were taken run.
        """
        ...


class Threads:
    """Threads of this process: the default; kernels and codecs release the GIL."""

    shares_memory = True

    def __init__(self, workers: int = 0) -> None:
        self.workers = workers or len(os.sched_getaffinity(0))

    def run(self, work: Callable[[Task], Answer], tasks: Iterable[Task]) -> Iterator[Answer]:
        """Yield the answers as they come, in any order; the first error stops the rest and is raised."""
        if self.workers == 1:
            yield from map(work, tasks)
            return
        with ThreadPoolExecutor(self.workers, "materialize") as pool:
            yield from _drain(pool, work, tasks, self.workers)


class Processes:
    """Processes of this machine, spawned: deltalake, DuckDB and Numba do not survive a fork."""

    shares_memory = False

    def __init__(self, workers: int = 0) -> None:
        self.workers = workers or len(os.sched_getaffinity(0))

    def run(self, work: Callable[[Task], Answer], tasks: Iterable[Task]) -> Iterator[Answer]:
        """Yield the answers as they come, in any order; the first error stops the rest and is raised.

        Raises:
            StorageError: a worker process died.
            DefinitionError: asked for while a script is being imported by a worker.
        """
        from concurrent.futures.process import BrokenProcessPool  # noqa: PLC0415 -- with its pool

        if getattr(current_process(), "_inheriting", False):
            raise DefinitionError(
                "executor='processes' was asked for while a worker process was still importing the script",
                hint='put the call under if __name__ == "__main__":, or use executor="threads"',
            )

        try:
            with ProcessPoolExecutor(self.workers, get_context("spawn")) as pool:
                yield from _drain(pool, work, tasks, self.workers)
        except BrokenProcessPool as error:
            raise StorageError(
                "a worker process died; nothing was published",
                hint="most often memory: a lower budget or fewer workers help; in a script, the call must "
                'stand under if __name__ == "__main__"',
            ) from error


def executor_of(choice: "Executor | str | None", *, default: str, workers: int) -> Executor:
    """Return an executor by name, or the one given.

    Raises:
        DefinitionError: an unknown name.
        MissingDependencyError: Ray is not installed.
    """
    name = default if choice is None else choice
    if not isinstance(name, str):
        if not hasattr(name, "shares_memory") or isinstance(name, type):
            refuse("a run", "executor", name, f"give one of {', '.join(EXECUTORS)}, or an Executor")
        return name
    if name == "threads":
        return Threads(workers)
    if name == "processes":
        return Processes(workers)
    if name == "ray":
        return _ray(workers)
    raise DefinitionError(f"executor is {name!r}", hint=near(name, EXECUTORS))


def _ray(workers: int) -> Executor:
    try:
        from featurestore.materialize.ray_executor import RayExecutor  # noqa: PLC0415 -- an extra
    except ImportError as error:
        raise MissingDependencyError(
            "executor='ray' needs Ray, which is not installed", hint="pip install 'featurestore[ray]'"
        ) from error
    return RayExecutor(workers)


def _drain(
    pool: Pool, work: Callable[[Task], Answer], tasks: Iterable[Task], workers: int
) -> Iterator[Answer]:
    """Keep at most two tasks per worker in flight, so that answers do not pile up."""
    running: set[Future[Answer]] = set()
    try:
        for task in tasks:
            running.add(pool.submit(work, task))
            if len(running) < 2 * workers:
                continue
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (f.result() for f in done)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (f.result() for f in done)
    finally:
        for future in running:
            future.cancel()
