"""Compiled loops of the order: radix permutations, streams dealt out. Imported by `permutations` only."""

from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.core.time import Int64Array
from featurestore.temporal.jit import kernel

Int32Array = npt.NDArray[np.int32]
AnyArray = npt.NDArray[Any]

_RADIX_BITS = 11
_TILE = 16


@kernel
def _radix(
    keys: npt.NDArray[np.uint32],
    order: Int32Array,
    other: Int32Array,
    counts: Int32Array,
) -> None:
    """Order by the upper 22 bits of short keys into `order`; `other` and `counts` are scratch."""
    n = keys.size
    low = np.uint32((1 << _RADIX_BITS) - 1)
    first, second = np.uint32(32 - 2 * _RADIX_BITS), np.uint32(32 - _RADIX_BITS)
    counts[:] = 0
    for i in range(n):
        key = keys[i]
        counts[0, (key >> first) & low] += 1
        counts[1, key >> second] += 1
    for turn in range(2):
        total = np.int32(0)
        for b in range(counts.shape[1]):
            count = counts[turn, b]
            counts[turn, b] = total
            total += count
    for i in range(n):
        bucket = (keys[i] >> first) & low
        other[counts[0, bucket]] = i
        counts[0, bucket] += 1
    for i in range(n):
        row = other[i]
        bucket = keys[row] >> second
        order[counts[1, bucket]] = row
        counts[1, bucket] += 1


@kernel
def radix_order(keys: npt.NDArray[np.uint32]) -> Int64Array:
    """Order `0 … n-1` by the upper 22 bits of 32-bit keys, stable: two counting passes of 11 bits."""
    order = np.empty(keys.size, np.int32)
    _radix(keys, order, np.empty(keys.size, np.int32), np.empty((2, 1 << _RADIX_BITS), np.int32))
    return order.astype(np.int64)


@kernel
def radix_order_wide(keys: npt.NDArray[np.uint64]) -> Int64Array:
    """Order `0 … n-1` by the upper 48 bits of 64-bit keys, stable: four counting passes of 12 bits."""
    n = keys.size
    size = np.uint64((1 << 12) - 1)
    order = np.arange(n)
    other = np.empty(n, np.int64)
    counts = np.empty(1 << 12, np.int64)
    for turn in range(4):
        shift = np.uint64(16 + turn * 12)
        counts[:] = 0
        for i in range(n):
            counts[(keys[i] >> shift) & size] += 1
        total = 0
        for b in range(counts.size):
            count = counts[b]
            counts[b] = total
            total += count
        for i in range(n):
            row = order[i]
            bucket = (keys[row] >> shift) & size
            other[counts[bucket]] = row
            counts[bucket] += 1
        order, other = other, order
    return order


@kernel
def fill_blocks(
    blocks: Int64Array, block_rows: int, phase: int, start: int, length: int, out: AnyArray
) -> None:
    """Write the rows of whole blocks of a ring of `length` rows; what is left of `out` is the ring's rest."""
    at = 0
    for b in range(blocks.size + 1):
        if b < blocks.size:
            row, count = blocks[b] * block_rows + phase, block_rows
        else:
            row, count = length // block_rows * block_rows + phase, out.size - at
        row -= length if row >= length else 0
        for _ in range(count):
            out[at] = start + row
            at += 1
            row += 1
            if row == length:
                row = 0


@kernel
def deal(
    fetch: AnyArray, keys: npt.NDArray[np.uint32], edges: Int64Array, with_places: bool
) -> tuple[Int32Array, AnyArray]:
    """Permute each stream by its keys and deal the streams out in turn: position `j · streams + s`."""
    streams = edges.size - 1
    longest = 0
    for s in range(streams):
        longest = max(longest, edges[s + 1] - edges[s])
    order = np.empty(longest, np.int32)
    other = np.empty(longest, np.int32)
    counts = np.empty((2, 1 << _RADIX_BITS), np.int32)
    permuted = np.empty_like(fetch)
    permuted_places = np.empty(fetch.size if with_places else 0, np.int32)
    for s in range(streams):
        start, stop = edges[s], edges[s + 1]
        _radix(keys[start:stop], order, other, counts)
        # While the stream's rows are in cache.
        for j in range(start, stop):
            permuted[j] = fetch[start + order[j - start]]
        if with_places:
            for j in range(start, stop):
                permuted_places[j] = start + order[j - start]
    rows = np.empty_like(fetch)
    _deal_out(permuted, edges, longest, rows)
    places = np.empty(permuted_places.size, np.int32)
    if with_places:
        _deal_out(permuted_places, edges, longest, places)
    return places, rows


@kernel
def _deal_out(values: AnyArray, edges: Int64Array, longest: int, out: AnyArray) -> None:
    """Write value `j` of stream `s` to `out[j · streams + s]`.

    Tile by tile, so that both sides stay in cache: strides of whole streams would fight for the same lines.
    """
    streams = edges.size - 1
    for first in range(0, longest, _TILE):
        for s in range(streams):
            start = edges[s]
            for j in range(first, min(first + _TILE, edges[s + 1] - start)):
                out[j * streams + s] = values[start + j]
