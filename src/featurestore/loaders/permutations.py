"""Permutations by random keys, and streams dealt out in turn: compiled where numba is there, NumPy otherwise.

Bit for bit the same either way: the order is a promise.
"""

import importlib
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.core.time import Int64Array
from featurestore.loaders import gather as rows_gather

Int32Array = npt.NDArray[np.int32]


def permutation_of_keys(keys: npt.NDArray[np.uint32] | npt.NDArray[np.uint64]) -> Int64Array:
    """Order `0 … n-1` by random keys, the upper 22 bits of short ones and 48 of long ones, stable.

    Cost: O(n), radix passes.
    """
    kernels = _kernels()
    if kernels is not None:
        ordered: Int64Array = (kernels.radix_order if keys.dtype == np.uint32 else kernels.radix_order_wide)(
            np.ascontiguousarray(keys)
        )
        return ordered
    shifts = (0, 16) if keys.dtype == np.uint32 else (16, 32, 48)
    if keys.dtype == np.uint32:
        keys = keys >> np.uint32(10)
    order = np.arange(keys.size)
    for shift in shifts:
        digit = (keys >> keys.dtype.type(shift)).astype(np.uint16)
        order = order[np.argsort(digit[order], kind="stable")]
    return order


def fill_blocks(
    blocks: Int64Array, *, block_rows: int, phase: int, start: int, length: int, out: npt.NDArray[Any]
) -> None:
    """Write the rows of blocks cut from a ring of `length` rows, from `phase` on, that begins at row `start`.

    Args:
        blocks: Numbers of whole blocks; what is left of `out` takes the rows behind the last whole block.
    """
    kernels = _kernels()
    if kernels is not None:
        kernels.fill_blocks(blocks, block_rows, phase, start, length, out)
        return
    whole = blocks.size * block_rows
    out[:whole] = (blocks[:, None] * block_rows + np.arange(block_rows)).reshape(-1)
    out[whole:] = length // block_rows * block_rows + np.arange(out.size - whole)
    out += phase
    np.subtract(out, length, out=out, where=out >= length)
    out += start


def deal(
    fetch: npt.NDArray[Any], keys: npt.NDArray[np.uint32], edges: Int64Array, *, with_places: bool
) -> tuple[Int32Array | None, npt.NDArray[Any]]:
    """Permute each stream's rows by its keys and deal the streams out in turn.

    Args:
        fetch: `(n,)` rows of all streams, one stream after the other.
        edges: `(streams + 1,)` where each stream begins; none is longer than one before it by position, and
            lengths differ by at most one.

    Returns:
        `(n,)` place in `fetch` of each delivered row where it was asked for, and the rows themselves.
    """
    kernels = _kernels()
    if kernels is not None:
        placed, rows = kernels.deal(fetch, keys, edges, with_places)
        return (placed if with_places else None), rows
    sizes = np.diff(edges)
    places = np.full((int(sizes.max(initial=0)), sizes.size), -1, np.int32)
    for stream, (start, stop) in enumerate(pairwise(edges.tolist())):
        places[: stop - start, stream] = permutation_of_keys(keys[start:stop]) + start
    flat = places.reshape(-1)
    flat = flat[flat >= 0]
    return (flat if with_places else None), fetch[flat]


def _kernels() -> ModuleType | None:
    if rows_gather.compiled() is None:
        return None
    return importlib.import_module("featurestore.loaders.order_kernels")
