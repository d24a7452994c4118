"""Tasks on a Ray cluster: workers read and write files under the store's root, the driver commits once.

Every node must see the root under the same path (a shared file system); one machine needs nothing.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, NodeDiedError, RayTaskError, WorkerCrashedError

from featurestore.errors import StorageError

Task = TypeVar("Task")
Answer = TypeVar("Answer")


class RayExecutor:
    """Runs tasks on the Ray cluster that this process is connected to, or on one that it starts.

    A task that fails is not run again by Ray: a run publishes all of its files or none, and the next one
    cleans up, so retrying is the caller's choice and never writes a file twice.

    Attributes:
        workers: How many tasks run at a time: the cluster's CPUs unless given.
    """

    shares_memory = False

    def __init__(self, workers: int = 0) -> None:
        if not ray.is_initialized():
            # Nothing leaves the machine, and Ray's own progress does not mix with ours.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
        self.workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]

    def run(self, work: Callable[[Task], Answer], tasks: Iterable[Task]) -> Iterator[Answer]:
        """Yield the answers as they come, in any order; the first error stops the rest and is raised.

        Raises:
            StorageError: a worker or a node died.
        """
        remote = ray.remote(max_retries=0)(_call)
        shared = ray.put(work)
        running: list[Any] = []
        try:
            for task in tasks:
                running.append(remote.remote(shared, task))
                if len(running) >= 2 * self.workers:
                    yield _first(running)
            while running:
                yield _first(running)
        finally:
            for reference in running:
                ray.cancel(reference, force=False)


def _call(work: Callable[[Any], Any], task: Any) -> Any:
    return work(task)


def _first(running: list[Any]) -> Any:
    # Takes the next finished task out of `running`.
    done, _ = ray.wait(running, num_returns=1)
    running.remove(done[0])
    try:
        return ray.get(done[0])
    except RayTaskError as error:
        # The worker's own error, typed as it was raised there.
        raise error.cause from error
    except (WorkerCrashedError, NodeDiedError, GetTimeoutError) as error:
        raise StorageError(
            "a Ray worker died; nothing was published",
            hint="most often memory: a lower budget or fewer workers help; the next run cleans up",
        ) from error
