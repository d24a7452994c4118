"""Compiled loops that bring columns into entity order, and answers back into the readers' order."""

from typing import Any

import numpy.typing as npt

from featurestore.core.time import Int64Array
from featurestore.temporal.jit import kernel
from featurestore.temporal.rows import Int32Array

_BLOCK = 64


@kernel
def count_codes(codes: Int32Array, starts: Int64Array, ends: Int64Array) -> int:
    """Fill the bounds of each entity's rows in grouped order; return how many rows have an entity."""
    ends[:] = 0
    for i in range(len(codes)):
        if codes[i] >= 0:
            ends[codes[i]] += 1
    total = 0
    for c in range(len(starts)):
        starts[c] = total
        total += ends[c]
        ends[c] = total
    return total


@kernel
def scatter(codes: Int32Array, starts: Int64Array, values: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
    """Copy values next to those of their entity: reads in order, writes to one stream per entity."""
    place = starts.copy()
    for i in range(len(codes)):
        code = codes[i]
        if code >= 0:
            out[place[code]] = values[i]
            place[code] += 1


@kernel
def scatter_places(codes: Int32Array, starts: Int64Array, out: Int32Array) -> None:
    """Write the source position of each grouped row."""
    place = starts.copy()
    for i in range(len(codes)):
        code = codes[i]
        if code >= 0:
            out[place[code]] = i
            place[code] += 1


@kernel
def take(values: npt.NDArray[Any], order: Int32Array, lo: int, hi: int, out: npt.NDArray[Any]) -> None:
    """Copy `values[order[lo:hi]]` to `out[lo:hi]`."""
    for k in range(lo, hi):
        out[k] = values[order[k]]


@kernel
def transpose(rows: Int64Array, lo: int, hi: int, out: Int64Array) -> None:
    """Write columns `out[f, i] = rows[i, f]` for `lo <= i < hi`, a cache-sized block at a time."""
    for begin in range(lo, hi, _BLOCK):
        end = min(begin + _BLOCK, hi)
        for f in range(rows.shape[1]):
            for i in range(begin, end):
                out[f, i] = rows[i, f]
