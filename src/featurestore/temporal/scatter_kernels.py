"""Compiled loops that write fixed-width values to the places where they belong."""

from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.core.time import Int64Array
from featurestore.temporal.gather_kernels import U64, UInt8Array, bit_of
from featurestore.temporal.jit import kernel
from featurestore.temporal.rows import Int32Array


@kernel
def scatter_fixed(
    values: npt.NDArray[np.unsignedinteger[Any]],
    bitmap: UInt8Array,
    offset: int,
    rows: Int64Array,
    places: Int32Array,
    out: npt.NDArray[np.unsignedinteger[Any]],
    absent: UInt8Array,
) -> None:
    """Copy `values[rows]` to `out[places]`; null values become zero, so that none lingers under a null.

    Args:
        values: as unsigned integers of their width: bits are copied, never converted.
        bitmap: bit `offset + k` says whether value k is there; empty where all are.
        absent: `(len(out),)` gets 1 where there is no value; not touched where `bitmap` is empty.
    """
    if len(bitmap) == 0:
        for k in range(len(rows)):
            out[U64(places[k])] = values[U64(rows[k])]
        return
    for k in range(len(rows)):
        row, place = U64(rows[k]), U64(places[k])
        bit = bit_of(bitmap, U64(offset) + row)
        out[place] = values[row] & (U64(0) - bit)
        absent[place] = U64(1) - bit
