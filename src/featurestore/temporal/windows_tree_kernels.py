"""Windows of readers who may know less than the reader before them.

Readers are answered in the order of what they know. A row enters a tree when the next of them knows it,
and never leaves; each reader asks for its own range of rows. One tree serves all windows, and the cost is
O(log rows) per row and per answer, however often a later reader knows less.
"""

import numpy as np
import numpy.typing as npt

from featurestore.core.time import INT64_MAX, BoolArray, Int64Array
from featurestore.temporal.exact_kernels import UInt64Array
from featurestore.temporal.jit import kernel
from featurestore.temporal.windows_extreme_kernels import bits_of_key, fill_keys, tree_put
from featurestore.temporal.windows_range_kernels import known_order
from featurestore.temporal.windows_sum_kernels import (
    MEAN,
    STD,
    SUM,
    VAR,
    bit_length,
    change_set,
    read_set,
    scan,
)

FloatArray = npt.NDArray[np.float64]
Int32Matrix = npt.NDArray[np.int32]
U64 = np.uint64

# Rows of one leaf: those at the ends of a range are looked at one by one, and the tree stays small.
LEAF_BITS = 4
LEAF = 1 << LEAF_BITS
_ZERO = U64(0)


@kernel
def add_limbs(total: UInt64Array, other: UInt64Array) -> None:
    """Add one integer of as many limbs to another, modulo their width."""
    carry = _ZERO
    for k in range(len(total)):
        value = total[k] + carry
        carry = U64(value < carry)
        total[k] = value + other[k]
        carry += U64(total[k] < value)


@kernel
def subtract_limbs(total: UInt64Array, other: UInt64Array) -> None:
    """Subtract one integer of as many limbs from another, modulo their width."""
    borrow = _ZERO
    for k in range(len(total)):
        value = total[k] - borrow
        borrow = U64(total[k] < borrow) + U64(value < other[k])
        total[k] = value - other[k]


@kernel
def sum_of_leaves(
    first: int,
    last: int,
    tree: tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64], npt.NDArray[np.uint64]],
    counts: Int64Array,
    total: UInt64Array,
    squares: UInt64Array,
) -> None:
    """Add leaves `[first, last)` of a Fenwick tree, whose node n ends with leaf n - 1."""
    while last > first:
        counts += tree[0][last]
        add_limbs(total, tree[1][last, : len(total)])
        add_limbs(squares, tree[2][last, : len(squares)])
        last -= last & -last
    while first > last:
        counts -= tree[0][first]
        subtract_limbs(total, tree[1][first, : len(total)])
        subtract_limbs(squares, tree[2][first, : len(squares)])
        first -= first & -first


@kernel
def sum_of_rows(
    first: int,
    last: int,
    known: Int64Array,
    cut: int,
    late: bool,
    values: tuple[Int64Array, BoolArray, int],
    least: int,
    counts: Int64Array,
    total: UInt64Array,
    squares: UInt64Array,
) -> None:
    """Add those of rows `[first, last)` that are known by `cut` (all, if they are not late), one by one."""
    for i in range(first, last):
        if not late or known[i] <= cut:
            change_set(i, True, values, least, counts, total, squares)


@kernel
def sum_by_tree(
    tasks: Int64Array,
    values: tuple[Int64Array, BoolArray, int],
    low: Int32Matrix,
    high: npt.NDArray[np.int32],
    known: Int64Array,
    cutoffs: Int64Array,
    late: BoolArray,
    windows: Int64Array,
    slots: Int64Array,
    out: Int64Array,
    real: FloatArray,
) -> int:
    """Answer what `sum_by_moves` does, for readers in any order of their windows and of what they know."""
    bits, valid, kind = values
    overflow = 0
    of_squares = (slots[:, VAR] >= 0) | (slots[:, STD] >= 0)
    of_total = (slots[:, SUM] >= 0) | (slots[:, MEAN] >= 0) | of_squares
    for k in range(len(tasks)):
        lo, hi, is_late = tasks[k, 2], tasks[k, 3], late[tasks[k, 4]]
        least, most, _ = scan(bits, valid, kind, lo, hi)
        width, rows_bits = most - least + 53, bit_length(hi - lo) + 1
        limbs = ((width + rows_bits + 63) // 64 + 1) * int(of_total.any())
        square_limbs = ((2 * width + rows_bits + 63) // 64 + 2) * int(of_squares.any())
        nodes = ((hi - lo) >> LEAF_BITS) + 2
        tree = (
            np.zeros((nodes, 4), np.int64),
            np.zeros((nodes, limbs), np.uint64),
            np.zeros((nodes, square_limbs), np.uint64),
        )
        counts = np.zeros(4, np.int64)
        total, squares = np.zeros(limbs, np.uint64), np.zeros(square_limbs, np.uint64)
        scratch = (np.zeros(limbs, np.uint64), np.zeros(square_limbs + 2, np.uint64))
        by_known = known_order(known, lo, hi, is_late)
        by_cutoff = known_order(cutoffs, tasks[k, 0], tasks[k, 1], is_late)
        entered = 0
        for at in range(len(by_cutoff)):
            q = by_cutoff[at]
            cut = cutoffs[q]
            while entered < len(by_known) and (not is_late or known[by_known[entered]] <= cut):
                i = by_known[entered]
                node = ((i - lo) >> LEAF_BITS) + 1
                while node < nodes:
                    change_set(i, True, values, least, tree[0][node], tree[1][node], tree[2][node])
                    node += node & -node
                entered += 1
            for w in range(len(windows)):
                a, b = int(low[windows[w], q]), int(high[q])
                total_w, squares_w = total[: limbs * of_total[w]], squares[: square_limbs * of_squares[w]]
                counts[:] = 0
                total_w[:] = _ZERO
                squares_w[:] = _ZERO
                first, last = (a - lo + LEAF - 1) >> LEAF_BITS, (b - lo) >> LEAF_BITS
                whole = first < last
                if whole:
                    sum_of_leaves(first, last, tree, counts, total_w, squares_w)
                head, tail = (lo + first * LEAF, lo + last * LEAF) if whole else (b, b)
                sum_of_rows(a, head, known, cut, is_late, values, least, counts, total_w, squares_w)
                sum_of_rows(tail, b, known, cut, is_late, values, least, counts, total_w, squares_w)
                if read_set(
                    kind, least - 1075, counts, total_w, squares_w, scratch, slots[w], out[q], real[q]
                ):
                    overflow = q + 1
    return overflow


@kernel
def extremes_by_tree(
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
    """Answer what `extremes_by_moves` does, for readers in any order of what they may know."""
    for k in range(len(tasks)):
        lo, hi = tasks[k, 2], tasks[k, 3]
        size = 1
        while size < hi - lo:
            size *= 2
        keys = np.empty(hi - lo, np.int64)
        fill_keys(values, lo, hi, greatest, keys)
        tree = np.full(2 * size, INT64_MAX, np.int64)
        by_known = known_order(known, lo, hi, True)
        by_cutoff = known_order(cutoffs, tasks[k, 0], tasks[k, 1], True)
        entered = 0
        for at in range(len(by_cutoff)):
            q = by_cutoff[at]
            while entered < len(by_known) and known[by_known[entered]] <= cutoffs[q]:
                tree_put(tree, by_known[entered] - lo, keys[by_known[entered] - lo])
                entered += 1
            for w in range(len(windows)):
                a, b = size + int(low[windows[w], q]) - lo, size + int(high[q]) - lo
                least = INT64_MAX
                while a < b:
                    if a & 1:
                        least = min(least, tree[a])
                        a += 1
                    if b & 1:
                        b -= 1
                        least = min(least, tree[b])
                    a >>= 1
                    b >>= 1
                out[q, slots[w]] = bits_of_key(least, values[2], greatest)
