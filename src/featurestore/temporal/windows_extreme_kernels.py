"""Smallest key in a range of rows: block minima in order, a tree where rows are known out of order.

Keys are int64 whose order is the values' order; greatest values are the smallest of `~key`.
"""

import numpy as np
import numpy.typing as npt

from featurestore.core.time import INT64_MAX, INT64_MIN, BoolArray, Int64Array
from featurestore.temporal.jit import kernel
from featurestore.temporal.windows_range_kernels import INSERT, READ, known_order, moves

Int32Matrix = npt.NDArray[np.int32]

BLOCK_BITS = 4
FLOAT_KIND = 0
_SIGN_KEPT = INT64_MAX


@kernel
def order_key(bits: int, kind: int, greatest: bool) -> int:
    """Map a value to a key: a double's bits (kind 0, NaN before all), an int64 (1) or a uint64 (2)."""
    key = bits
    if kind == 0:
        if bits & INT64_MAX > 0x7FF0000000000000:
            return INT64_MIN
        if bits < 0:
            key = bits ^ _SIGN_KEPT
    elif kind == 2:
        key = bits ^ INT64_MIN
    return ~key if greatest else key


@kernel
def bits_of_key(key: int, kind: int, greatest: bool) -> int:
    """Return the bits of the value a key stands for: the inverse of `order_key`."""
    if kind == 0:
        if key == INT64_MIN:
            return 0x7FF8000000000000
        bits = ~key if greatest else key
        return bits ^ _SIGN_KEPT if bits < 0 else bits
    bits = ~key if greatest else key
    return bits ^ INT64_MIN if kind == 2 else bits


@kernel
def fill_keys(
    values: tuple[Int64Array, BoolArray, int], lo: int, hi: int, greatest: bool, out: Int64Array
) -> None:
    """Write the keys of rows `[lo, hi)`; nulls come after all."""
    bits, valid, kind = values
    for i in range(lo, hi):
        out[i - lo] = INT64_MAX
        if len(valid) == 0 or valid[i]:
            out[i - lo] = order_key(bits[i], kind, greatest)


@kernel
def fill_blocks(
    keys: Int64Array, count: int, before: Int64Array, after: Int64Array, table: npt.NDArray[np.int64]
) -> None:
    """Write minima: from the block's start to a row, from a row to the block's end, over runs of blocks."""
    mask = (1 << BLOCK_BITS) - 1
    for i in range(count):
        before[i] = keys[i] if i & mask == 0 else min(before[i - 1], keys[i])
    for i in range(count - 1, -1, -1):
        after[i] = keys[i] if i & mask == mask or i == count - 1 else min(after[i + 1], keys[i])
    blocks = (count + mask) >> BLOCK_BITS
    for b in range(blocks):
        table[0, b] = after[b << BLOCK_BITS]
    level = 1
    while (1 << level) <= blocks:
        half = 1 << (level - 1)
        for b in range(blocks - 2 * half + 1):
            table[level, b] = min(table[level - 1, b], table[level - 1, b + half])
        level += 1


@kernel
def range_minimum(
    keys: Int64Array,
    before: Int64Array,
    after: Int64Array,
    table: npt.NDArray[np.int64],
    levels: Int64Array,
    a: int,
    b: int,
) -> int:
    """Return the smallest of `keys[a:b]`, `a < b`."""
    last = b - 1
    first_block, last_block = a >> BLOCK_BITS, last >> BLOCK_BITS
    if first_block == last_block:
        least = int(keys[a])
        for i in range(a + 1, b):
            least = min(least, keys[i])
        return least
    least = int(min(after[a], before[last]))
    inner = last_block - first_block - 1
    if inner > 0:
        level = levels[inner]
        least = int(min(least, table[level, first_block + 1], table[level, last_block - (1 << level)]))
    return least


@kernel
def extremes_by_blocks(
    tasks: Int64Array,
    values: tuple[Int64Array, BoolArray, int],
    greatest: bool,
    low: Int32Matrix,
    high: npt.NDArray[np.int32],
    windows: Int64Array,
    slots: Int64Array,
    out: Int64Array,
) -> None:
    """Write the least (greatest) value's bits per window to column `slots[w]`; empty windows stay alone."""
    size = 1
    for k in range(len(tasks)):
        size = max(size, tasks[k, 3] - tasks[k, 2])
    blocks = (size >> BLOCK_BITS) + 2
    levels = np.zeros(blocks + 1, np.int64)
    for n in range(2, blocks + 1):
        levels[n] = levels[n >> 1] + 1
    keys, before, after = np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size, np.int64)
    table = np.empty((levels[blocks] + 1, blocks), np.int64)
    for k in range(len(tasks)):
        lo, hi = tasks[k, 2], tasks[k, 3]
        fill_keys(values, lo, hi, greatest, keys)
        fill_blocks(keys, hi - lo, before, after, table)
        for q in range(tasks[k, 0], tasks[k, 1]):
            b = int(high[q]) - lo
            for w in range(len(windows)):
                a = int(low[windows[w], q]) - lo
                if b > a:
                    least = range_minimum(keys, before, after, table, levels, a, b)
                    out[q, slots[w]] = bits_of_key(least, values[2], greatest)


@kernel
def tree_put(tree: Int64Array, leaf: int, key: int) -> None:
    """Set a leaf of a tree of minima and everything above it that changes."""
    node = (len(tree) >> 1) + leaf
    tree[node] = key
    while node > 1:
        node >>= 1
        least = min(tree[2 * node], tree[2 * node + 1])
        if tree[node] == least:
            break
        tree[node] = least


@kernel
def extremes_by_moves(
    tasks: Int64Array,
    values: tuple[Int64Array, BoolArray, int],
    greatest: bool,
    low: Int32Matrix,
    high: npt.NDArray[np.int32],
    known: Int64Array,
    cutoffs: Int64Array,
    windows: Int64Array,
    slots: Int64Array,
    out: Int64Array,
) -> None:
    """Answer what `extremes_by_blocks` does for rows known out of order: O(log rows) per change.

    No reader may step back; those who do are for `extremes_by_tree`.
    """
    for k in range(len(tasks)):
        task = tasks[k]
        lo, hi = task[2], task[3]
        size = 1
        while size < hi - lo:
            size *= 2
        keys = np.empty(hi - lo, np.int64)
        fill_keys(values, lo, hi, greatest, keys)
        tree = np.empty(2 * size, np.int64)
        by_known = known_order(known, lo, hi, True)
        live = np.zeros(hi - lo, np.bool_)
        operations = np.empty(2 * (hi - lo) + task[1] - task[0], np.int64)
        for w in range(len(windows)):
            tree[:] = INT64_MAX
            made = moves(task, low[windows[w]], high, known, cutoffs, True, by_known, live, operations)
            for m in range(made):
                code, at = operations[m] & 3, operations[m] >> 2
                if code == READ:
                    out[at, slots[w]] = bits_of_key(tree[1], values[2], greatest)
                else:
                    tree_put(tree, at - lo, keys[at - lo] if code == INSERT else INT64_MAX)
