"""Threads for what waits for a commit, so that the event loop never does."""

import asyncio
import contextlib
import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from featurestore.errors import OnlineStoreTimeoutError
from featurestore.serve.metrics import Metrics

P = ParamSpec("P")
T = TypeVar("T")


class WriteThreads:
    """One worker's threads for writes; how many writes wait is a gauge.

    More threads than four do not help: commits are grouped by the store's own writer.
    """

    def __init__(self, metrics: Metrics, count: int = 4) -> None:
        """Start none yet."""
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="write")

    async def run(self, left_s: float, method: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Return what a method returns, from a thread that traces on behalf of this task.

        Raises:
            OnlineStoreTimeoutError: not done in time; it may still be done.
        """
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()
        self._metrics.queued(1)
        work = self._threads.submit(lambda: context.run(method, *args, **named))

        def done(_: "Future[T]") -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and its counts with it
                loop.call_soon_threadsafe(self._metrics.queued, -1)

        work.add_done_callback(done)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(work), left_s)
        except TimeoutError as error:
            raise OnlineStoreTimeoutError(
                "the write was not done in time; it may still be", hint="number deliveries to send them again"
            ) from error

    def close(self) -> None:
        """Finish what is queued."""
        self._threads.shutdown(wait=True)
