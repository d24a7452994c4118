"""A device that does everything as late, as early and in as odd an order as a real one may.

Copies and array operations are queued on two streams. A queue keeps its own order; between the queues only
events order anything. At every call a random few of the operations that may run are run, the rest later or
when somebody waits. A pinned slot that is overwritten too soon, or a buffer that is read before its copy,
therefore gives wrong values here on a CPU, as it would on a GPU.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Run = Callable[[], None]


class FakeEvent:
    """A point of a stream; it has happened once everything before it has run."""

    def __init__(self) -> None:
        self.happened = False


class FakeArray:
    """An array whose values exist once the consumer's stream got there; shape and type are known at once."""

    def __init__(
        self,
        device: "FakeDevice",
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        read: Callable[[], npt.NDArray[Any]],
    ) -> None:
        self.device, self.dtype, self.shape, self.read = device, dtype, shape, read

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __getitem__(self, key: Any) -> "FakeArray":
        shape = np.broadcast_to(np.empty(1, np.uint8), self.shape)[key].shape
        return FakeArray(self.device, self.dtype, shape, lambda: self.read()[key])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        del copy
        self.device.synchronize()
        return np.array(self.read(), dtype=dtype)


class FakeDevice:
    """Runs queued operations in a random order that the events allow.

    Args:
        eager: Chance, at every call, that one more queued operation runs.
        favour: The stream whose operations run first whenever they may; None for chance.
        forget: Names of ordering calls to ignore (`side_wait`, `consumer_wait`, `host_wait`): tests forget
            one to see that the values then come out wrong.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        eager: float = 0.5,
        favour: str | None = None,
        forget: Sequence[str] = (),
        memory: int = 1 << 30,
    ) -> None:
        self._random = np.random.default_rng(seed)
        self._eager = eager
        self._favour = favour
        self._forget = frozenset(forget)
        self._memory = memory
        self._queues: dict[str, deque[Run | FakeEvent]] = {"side": deque(), "consumer": deque()}
        self._lock = threading.RLock()
        self.copies = 0
        self.pinned_bytes = 0
        self.device_bytes = 0

    name = "fake device"

    def free_bytes(self) -> int:
        """Return what was said at the start."""
        return self._memory

    def pinned(self, size: int) -> npt.NDArray[np.uint8]:
        """Allocate host memory, filled with a pattern that no test expects."""
        self.pinned_bytes += size
        return np.full(size, 0xA5, np.uint8)

    def empty(self, size: int) -> npt.NDArray[np.uint8]:
        """Allocate device memory, filled with another."""
        self.device_bytes += size
        return np.full(size, 0x5A, np.uint8)

    def copy(self, target: npt.NDArray[np.uint8], offset: int, source: npt.NDArray[np.uint8]) -> None:
        """Queue a copy that reads `source` when it runs."""
        self.copies += 1

        def run() -> None:
            target[offset : offset + source.size] = source

        self._queue("side", run)

    def side_event(self) -> FakeEvent:
        """Mark a point of the side stream."""
        return self._mark("side")

    def consumer_event(self) -> FakeEvent:
        """Mark a point of the consumer's stream."""
        return self._mark("consumer")

    def side_wait(self, event: FakeEvent) -> None:
        """Let the side stream wait."""
        if "side_wait" not in self._forget:
            self._queue("side", event)

    def consumer_wait(self, event: FakeEvent) -> None:
        """Let the consumer's stream wait."""
        if "consumer_wait" not in self._forget:
            self._queue("consumer", event)

    def host_wait(self, event: FakeEvent) -> None:
        """Run what must run until the event has happened."""
        if "host_wait" in self._forget:
            return
        with self._lock:
            while not event.happened:
                self._run_one()

    def synchronize(self) -> None:
        """Run everything on the consumer's stream, and what it waits for."""
        with self._lock:
            while self._queues["consumer"]:
                self._run_one()

    def upload(self, values: npt.NDArray[Any]) -> FakeArray:
        """Copy now; the values may be changed afterwards."""
        kept = np.array(values)
        return FakeArray(self, kept.dtype, kept.shape, lambda: kept)

    def view(
        self, buffer: npt.NDArray[np.uint8], offset: int, dtype: str, shape: tuple[int, ...]
    ) -> FakeArray:
        """See device bytes as they are when an operation reads them."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape)) * kind.itemsize
        return FakeArray(self, kind, shape, lambda: buffer[offset : offset + size].view(kind).reshape(shape))

    def take(self, array: FakeArray, index: FakeArray) -> FakeArray:
        """Gather rows; garbage in the index gives garbage and no error, as on a device."""
        shape = (*index.shape, *array.shape[1:])
        return self._operation(
            array.dtype, shape, lambda: np.take(array.read(), index.read(), axis=0, mode="wrap")
        )

    def cast(self, array: FakeArray, dtype: str) -> FakeArray:
        """Change the type."""
        kind = np.dtype(dtype)
        return self._operation(kind, array.shape, lambda: array.read().astype(kind))

    def where(self, mask: FakeArray, array: FakeArray, other: FakeArray) -> FakeArray:
        """Choose by a byte mask."""
        shape = np.broadcast_shapes(mask.shape, array.shape, other.shape)
        return self._operation(
            array.dtype, shape, lambda: np.where(mask.read() != 0, array.read(), other.read())
        )

    def concat(self, arrays: Sequence[FakeArray]) -> FakeArray:
        """Join along the last axis."""
        shape = (*arrays[0].shape[:-1], sum(a.shape[-1] for a in arrays))
        return self._operation(
            arrays[0].dtype, shape, lambda: np.concatenate([a.read() for a in arrays], axis=-1)
        )

    def reshape(self, array: FakeArray, shape: tuple[int, ...]) -> FakeArray:
        """See in another shape."""
        return FakeArray(self, array.dtype, shape, lambda: array.read().reshape(shape))

    def _operation(
        self, dtype: np.dtype[Any], shape: tuple[int, ...], compute: Callable[[], npt.NDArray[Any]]
    ) -> FakeArray:
        box: list[npt.NDArray[Any]] = []

        def run() -> None:
            box.append(np.array(compute(), dtype=dtype))

        self._queue("consumer", run)
        return FakeArray(self, dtype, shape, lambda: box[0])

    def _mark(self, stream: str) -> FakeEvent:
        event = FakeEvent()

        def run() -> None:
            event.happened = True

        self._queue(stream, run)
        return event

    def _queue(self, stream: str, item: Run | FakeEvent) -> None:
        with self._lock:
            self._queues[stream].append(item)
            while self._random.random() < self._eager and any(self._queues.values()):
                self._run_one()

    def _run_one(self) -> None:
        """Run the head of a random queue that may go on."""
        ready = [
            name
            for name, queue in self._queues.items()
            if queue and (not isinstance(queue[0], FakeEvent) or queue[0].happened)
        ]
        assert ready, "both streams wait for events that nobody will record"
        chosen = self._favour if self._favour in ready else ready[int(self._random.integers(len(ready)))]
        head = self._queues[str(chosen)].popleft()
        if not isinstance(head, FakeEvent):
            head()
