"""CuPy: the device tiers over CUDA without torch. The only file that imports cupy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cupy
import numpy as np
import numpy.typing as npt

from featurestore.loaders.device_tier import device_tier
from featurestore.loaders.loader import Loader
from featurestore.loaders.options import options_of, rank_of
from featurestore.loaders.prepare import prepare
from featurestore.storage.shards import ShardSet


class CupyDevice:
    """The `Device` of CuPy: the current CUDA device with a side stream."""

    def __init__(self) -> None:
        self._side = cupy.cuda.Stream(non_blocking=True)

    @property
    def name(self) -> str:
        """Say which device."""
        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        return str(properties["name"].decode())

    def free_bytes(self) -> int:
        """Return free device memory, with what CuPy's pool holds and does not use."""
        return int(cupy.cuda.runtime.memGetInfo()[0]) + int(cupy.get_default_memory_pool().free_bytes())

    def pinned(self, size: int) -> npt.NDArray[np.uint8]:
        """Allocate page-locked memory."""
        memory = cupy.cuda.alloc_pinned_memory(size)
        return np.frombuffer(memory, np.uint8, size)

    def empty(self, size: int) -> Any:
        """Allocate device bytes on the current stream."""
        return cupy.empty(size, cupy.uint8)

    def copy(self, target: Any, offset: int, source: npt.NDArray[np.uint8]) -> None:
        """Enqueue a copy on the side stream."""
        target[offset : offset + source.size].set(source, stream=self._side)

    def side_event(self) -> Any:
        """Mark a point of the side stream."""
        return self._side.record()

    def consumer_event(self) -> Any:
        """Mark a point of the current stream."""
        return cupy.cuda.get_current_stream().record()

    def side_wait(self, event: Any) -> None:
        """Let the side stream wait."""
        self._side.wait_event(event)

    def consumer_wait(self, event: Any) -> None:
        """Let the current stream wait."""
        cupy.cuda.get_current_stream().wait_event(event)

    def host_wait(self, event: Any) -> None:
        """Block until the event has happened."""
        event.synchronize()

    def upload(self, values: npt.NDArray[Any]) -> Any:
        """Copy a small host array; CuPy stages it in pinned memory of its own and does not wait."""
        return cupy.asarray(np.array(values))

    def view(self, buffer: Any, offset: int, dtype: str, shape: tuple[int, ...]) -> Any:
        """See device bytes as an array."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape)) * kind.itemsize
        return buffer[offset : offset + size].view(kind).reshape(shape)

    def take(self, array: Any, index: Any) -> Any:
        """Gather rows into a new array."""
        return cupy.take(array, index, axis=0)

    def cast(self, array: Any, dtype: str) -> Any:
        """Change the type."""
        return array.astype(dtype, copy=False)

    def where(self, mask: Any, array: Any, other: Any) -> Any:
        """Choose by a mask."""
        return cupy.where(mask != 0, array, other)

    def concat(self, arrays: Sequence[Any]) -> Any:
        """Join along the last axis."""
        return cupy.concatenate(list(arrays), axis=-1)

    def reshape(self, array: Any, shape: tuple[int, ...]) -> Any:
        """See in another shape."""
        return array.reshape(shape)


def open_cupy_loader(dataset: str | Path | ShardSet, version: int | None = None, **options: Any) -> Loader:
    """Open a loader of CuPy arrays (any library takes them by DLPack); arguments as for `open_loader`.

    Raises:
        DefinitionError: an unknown `io`.
    """
    chosen = options_of(options)
    rank, world = rank_of(chosen)
    prepared = prepare(dataset, version, chosen, rank=rank, world=world)
    return Loader(prepared, device_tier(prepared, CupyDevice()))
