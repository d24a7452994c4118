"""Reading the next pieces while the present one is worked on."""

import queue
import threading
from collections.abc import Generator, Iterable
from contextlib import suppress
from typing import Final, TypeVar

Item = TypeVar("Item")

# Pieces that wait at most: enough to even out, few enough not to count as memory.
_AHEAD: Final = 3


class _End:
    """Says that nothing more comes, and why if it should have.

    Attributes:
        error: What the source raised.
    """

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def read_ahead(items: Iterable[Item]) -> Generator[Item, None, None]:
    """Yield the items, taken from their source by a thread of its own; what the source raises is raised here.

    The thread starts with the first item asked for. Leaving early stops the thread after the item it is at.
    """
    waiting: queue.Queue[Item | _End] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def put(item: Item | _End) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                waiting.put(item, timeout=0.1)
                return

    def read() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                put(item)
                if stopped.is_set():
                    return
        except BaseException as failure:  # noqa: BLE001 -- raised again in the reader, whatever it is
            error = failure
        put(_End(error))

    reader = threading.Thread(target=read, name="read-ahead", daemon=True)
    reader.start()
    try:
        while not isinstance(item := waiting.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()
        reader.join()
