"""First, last and the last n values of a window."""

import numpy as np
import numpy.typing as npt

from featurestore.core.time import INT64_MAX, BoolArray, Int64Array
from featurestore.temporal.jit import kernel
from featurestore.temporal.rows import Int32Array

Int32Matrix = npt.NDArray[np.int32]


@kernel
def find_last(tree: Int64Array, lo: int, hi: int, cut: int) -> int:
    """Return the greatest leaf in `[lo, hi)` of a tree of minima that is at most `cut`, else -1."""
    if hi <= lo:
        return -1
    size = len(tree) >> 1
    node = size + hi - 1
    while tree[node] > cut:
        while node > 1 and node & 1 == 0:
            node >>= 1
        if node <= 1:
            return -1
        node -= 1
        if tree[node] > cut:
            continue
        while node < size:
            node = 2 * node + 1
            if tree[node] > cut:
                node -= 1
    return node - size if node - size >= lo else -1


@kernel
def find_first(tree: Int64Array, lo: int, hi: int, cut: int) -> int:
    """Return the smallest leaf in `[lo, hi)` of a tree of minima that is at most `cut`, else -1."""
    if hi <= lo:
        return -1
    size = len(tree) >> 1
    node = size + lo
    while tree[node] > cut:
        while node > 1 and node & 1 == 1:
            node >>= 1
        if node <= 1:
            return -1
        node += 1
        if tree[node] > cut:
            continue
        while node < size:
            node = 2 * node
            if tree[node] > cut:
                node += 1
    return node - size if node - size < hi else -1


@kernel
def usable_tree(known: Int64Array, valid: BoolArray, late: bool, lo: int, hi: int) -> Int64Array:
    """Build a tree of minima over when rows became known; nulls never are, rows of an ordered entity at 0."""
    size = 1
    while size < hi - lo:
        size *= 2
    tree = np.full(2 * size, INT64_MAX, np.int64)
    for i in range(lo, hi):
        if len(valid) == 0 or valid[i]:
            tree[size + i - lo] = known[i] if late else 0
    for node in range(size - 1, 0, -1):
        tree[node] = min(tree[2 * node], tree[2 * node + 1])
    return tree


@kernel
def pick_rows(
    tasks: Int64Array,
    valid: BoolArray,
    low: Int32Matrix,
    high: npt.NDArray[np.int32],
    known: Int64Array,
    cutoffs: Int64Array,
    late: BoolArray,
    windows: Int64Array,
    counts: Int64Array,
    order: Int32Array,
    outs: npt.NDArray[np.int32],
    width: int,
) -> None:
    """Write source positions: the first row (count 0) or the last rows, oldest first, that are not null.

    Args:
        windows: rows of `low`; `counts` has one entry for each: 0 for the first, k for the last k.
        order: source positions of the sorted rows.
        outs: `(len(windows), n * width)`, filled with -1; a reader's rows end its `width` slots.
    """
    for k in range(len(tasks)):
        lo, hi = tasks[k, 2], tasks[k, 3]
        is_late = late[tasks[k, 4]]
        plain = len(valid) == 0 and not is_late
        tree = usable_tree(known, valid, is_late, lo, lo if plain else hi)
        for w in range(len(windows)):
            for q in range(tasks[k, 0], tasks[k, 1]):
                a, b = low[windows[w], q] - lo, high[q] - lo
                cut = cutoffs[q] if is_late else 0
                end = (q + 1) * width
                for j in range(max(counts[w], 1)):
                    if plain:
                        found = -1 if b <= a else (a if counts[w] == 0 else b - 1)
                    elif counts[w] == 0:
                        found = find_first(tree, a, b, cut)
                    else:
                        found = find_last(tree, a, b, cut)
                    if found < 0:
                        break
                    outs[w, end - 1 - j] = order[lo + found]
                    b = found
