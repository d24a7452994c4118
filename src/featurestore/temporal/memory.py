"""Memory of answers and of what is on the way to them: Arrow's pool, in large pages where there are any."""

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Kind = TypeVar("Kind", bound=np.generic)

# Linux hands out memory by 4 KiB, at a fault each, unless it is told that 2 MiB at once are welcome: first
# writes to 64 MiB took 29 ms by 4 KiB and 5.6 ms by 2 MiB.
_LARGE_PAGE: Final = 1 << 21
_MADV_HUGEPAGE: Final = 14


def allocate(count: int, kind: np.dtype[Kind]) -> tuple[pa.Buffer, npt.NDArray[Kind]]:
    """Return an uninitialized buffer of Arrow's pool, which keeps pages for the next, and an array over it.

    Memory: what is asked for; from 2 MiB on less than 1 MiB more is used, and 4 MiB more of address space.
    """
    size, advise = count * kind.itemsize, _madvise()
    if advise is None or size < _LARGE_PAGE:
        buffer = pa.allocate_buffer(size)
        return buffer, np.frombuffer(buffer, kind)
    # Large pages that are this buffer's alone: the pool gives pages back by buffers, and a large page of
    # which a part is given back stays in small ones. A last page of which less than half is used stays so.
    pages = (size + _LARGE_PAGE // 2) // _LARGE_PAGE
    whole = pa.allocate_buffer(max(size, pages * _LARGE_PAGE) + _LARGE_PAGE)
    skip = -whole.address % _LARGE_PAGE
    # A hint: where it is refused, pages are small, and nothing else is different.
    advise(whole.address + skip, pages * _LARGE_PAGE, _MADV_HUGEPAGE)
    # Not through the slice, which cannot be written to.
    return whole.slice(skip, size), np.frombuffer(whole, kind, count, skip)


@cache
def _madvise() -> Callable[[int, int, int], Any] | None:
    """Return the system's call that says how memory will be used; `None` where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    call = ctypes.CDLL(None).madvise
    call.argtypes, call.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return call
