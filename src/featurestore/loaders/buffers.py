"""Host buffers that return to their pool when the last array over them is gone.

A fresh 2 MB array costs more in page faults than the copy that fills it; a buffer handed out again while
the trainer still looks at it corrupts training in silence. So a batch's memory is leased: arrays keep the
lease alive, and only when the last of them is collected does the memory serve another batch.
"""

import math
from collections import deque
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_ALIGN: Final = 64


class _Lease:
    """Owns one buffer for as long as any array over it lives."""

    __slots__ = ("__array_interface__", "__weakref__", "_buffer", "_pool")

    def __init__(
        self,
        pool: "BufferPool",
        buffer: npt.NDArray[np.uint8],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        self._pool = pool
        self._buffer = buffer
        self.__array_interface__ = {
            **buffer.__array_interface__,
            "shape": shape,
            "typestr": dtype.str,
            "descr": [("", dtype.str)],
        }

    def __del__(self) -> None:
        self._pool.give_back(self._buffer)


class BufferPool:
    """Writable, 64-byte aligned arrays whose memory is used again; safe for threads.

    What came back last is handed out first: it is likely still in a cache.

    Args:
        idle: Buffers of one size kept when nobody uses them; more are freed.
    """

    def __init__(self, idle: int) -> None:
        self._idle = idle
        self._free: dict[int, deque[npt.NDArray[np.uint8]]] = {}
        self.allocated = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return an uninitialized C-contiguous array."""
        size = max(_ALIGN, -(-math.prod(shape) * dtype.itemsize // _ALIGN) * _ALIGN)
        try:
            buffer = self._free.setdefault(size, deque()).pop()
        except IndexError:
            buffer = _aligned(size)
            self.allocated += 1
        return np.asarray(_Lease(self, buffer, shape, dtype))

    def give_back(self, buffer: npt.NDArray[np.uint8]) -> None:
        """Take a buffer nobody refers to; called when its lease dies."""
        free = self._free.setdefault(buffer.size, deque())
        if len(free) < self._idle:
            free.append(buffer)


def _aligned(size: int) -> npt.NDArray[np.uint8]:
    raw = np.empty(size + _ALIGN, np.uint8)
    offset = -raw.ctypes.data % _ALIGN
    return raw[offset : offset + size]
