"""Count, sum, mean, variance: exact whatever came before, by prefix sums or by moving edges."""

import math

import numpy as np
import numpy.typing as npt

from featurestore.core.time import BoolArray, Int64Array
from featurestore.temporal.exact_kernels import (
    UInt64Array,
    double_of_128,
    double_of_limbs,
    float_exponent,
    limbs_add,
    limbs_magnitude,
    limbs_spread,
    limbs_subtract,
    magnitude,
    mul_high,
    scale_by,
    shift_high,
    shift_low,
    spread_of,
)
from featurestore.temporal.jit import kernel
from featurestore.temporal.windows_range_kernels import INSERT, READ, known_order, moves

FloatArray = npt.NDArray[np.float64]
Int32Matrix = npt.NDArray[np.int32]
U64 = np.uint64

FLOAT, INT, UINT = 0, 1, 2
COUNT, SUM, MEAN, VAR, STD = 0, 1, 2, 3, 4
_ZERO, _ONE = U64(0), U64(1)
# The largest |exponent| span a 128-bit sum of 85-bit integers and a 192-bit sum of their squares can hold.
_SPREAD_WIDTH = 85


@kernel
def scan(bits: Int64Array, valid: BoolArray, kind: int, lo: int, hi: int) -> tuple[int, int, bool]:
    """Return the smallest and greatest exponent of the rows' values and whether NaN or infinity is there."""
    if kind != FLOAT:
        return 1075, 1075 + 11, False
    least, most, special = 2047, 0, False
    for i in range(lo, hi):
        if len(valid) and not valid[i]:
            continue
        e = float_exponent(bits[i])
        if e == 2047:
            special = True
        elif bits[i] << 1 != 0:
            least = min(least, e)
            most = max(most, e)
    if most == 0:
        return 1075, 1075, special
    return least, most, special


@kernel
def bit_length(value: int) -> int:
    """Return how many bits a non-negative integer has."""
    n = 0
    while value > 0:
        value >>= 1
        n += 1
    return n


@kernel
def fits_prefix(least: int, most: int, rows: int, squares: bool) -> bool:
    """Whether 128-bit sums (and 192-bit sums of squares) of `rows` values hold every partial sum."""
    width = most - least + 53
    if squares and (width > _SPREAD_WIDTH or 2 * width + bit_length(rows) > 191):
        return False
    return width + bit_length(rows) <= 126


@kernel
def write_totals(
    count: int, special: int, total: float, exponent: int, slots: Int64Array, out: FloatArray, whole: bool
) -> None:
    """Write sum and mean: `total * 2**exponent`; `special` 1 to 7: NaN, +inf and -inf seen, as bits."""
    value = total
    if special:
        value = np.nan
        if special == 2:
            value = np.inf
        elif special == 4:
            value = -np.inf
    if slots[SUM] >= 0 and not whole:
        out[slots[SUM]] = scale_by(value, exponent)
    if slots[MEAN] >= 0:
        out[slots[MEAN]] = scale_by(value / count, exponent)


@kernel
def write_spread(
    count: int, special: int, spread: float, exponent: int, slots: Int64Array, out: FloatArray
) -> None:
    """Write variance and standard deviation from `count * sum(x*x) - sum(x)**2 = spread * 4**exponent`."""
    value = spread / float(count * (count - 1))
    if special:
        value = np.nan
    if slots[VAR] >= 0:
        out[slots[VAR]] = scale_by(value, 2 * exponent)
    if slots[STD] >= 0:
        out[slots[STD]] = scale_by(math.sqrt(value), exponent)


@kernel
def special_of(bits: int) -> int:
    """Return 0 for a finite double, 1 for NaN, 2 for infinity, 4 for negative infinity."""
    if (bits >> 52) & 2047 != 2047:
        return 0
    if bits << 12 != 0:
        return 1
    return 4 if bits < 0 else 2


@kernel
def fill_prefix(
    bits: Int64Array,
    valid: BoolArray,
    kind: int,
    lo: int,
    hi: int,
    least: int,
    squares: bool,
    prefix: UInt64Array,
) -> None:
    """Write running (count, sum: 2 limbs[, sum of squares: 3 limbs]) before each row, two's complement."""
    n, s0, s1, q0, q1, q2 = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
    prefix[0, :] = _ZERO
    for i in range(lo, hi):
        if len(valid) == 0 or valid[i]:
            n += _ONE
            raw = bits[i]
            if kind != FLOAT or float_exponent(raw) != 2047:
                m = magnitude(raw, kind)
                shift = U64(float_exponent(raw) - least) if kind == FLOAT else _ZERO
                if m == _ZERO:
                    shift = _ZERO
                low, high = shift_low(m, shift), shift_high(m, shift)
                if kind != UINT and raw < 0:
                    low = ~low + _ONE
                    high = ~high + U64(low == _ZERO)
                s0 += low
                s1 += high + U64(s0 < low)
                if squares:
                    shift += shift
                    p0, p1 = m * m, mul_high(m, m)
                    low = shift_low(p0, shift)
                    mid = shift_high(p0, shift) | shift_low(p1, shift)
                    q0 += low
                    carry = U64(q0 < low)
                    q1 += carry
                    carry = U64(q1 < carry)
                    q1 += mid
                    q2 += shift_high(p1, shift) + carry + U64(q1 < mid)
        k = i - lo + 1
        prefix[k, 0] = n
        prefix[k, 1] = s0
        prefix[k, 2] = s1
        if squares:
            prefix[k, 3] = q0
            prefix[k, 4] = q1
            prefix[k, 5] = q2


@kernel
def fill_specials(bits: Int64Array, valid: BoolArray, lo: int, hi: int, out: Int32Matrix) -> None:
    """Write running counts of NaN, infinity and negative infinity before each row."""
    out[0, :] = 0
    for i in range(lo, hi):
        k = i - lo
        out[k + 1, :] = out[k, :]
        if len(valid) == 0 or valid[i]:
            s = special_of(bits[i])
            if s:
                out[k + 1, s >> 1] += 1


@kernel
def any_spread(slots: Int64Array) -> bool:
    """Whether a variance or standard deviation is wanted of any window."""
    for w in range(len(slots)):
        if slots[w, VAR] >= 0 or slots[w, STD] >= 0:
            return True
    return False


@kernel
def sum_by_prefix(
    tasks: Int64Array,
    values: tuple[Int64Array, BoolArray, int],
    low: Int32Matrix,
    high: npt.NDArray[np.int32],
    windows: Int64Array,
    slots: Int64Array,
    out: Int64Array,
    real: FloatArray,
    wide: BoolArray,
) -> int:
    """Answer count, sum, mean, var and std of the tasks; mark those whose values need wider sums.

    Args:
        values: bits, validity (empty: all valid) and kind of a column, in sorted order.
        windows: which rows of `low` to answer.
        slots: `(len(windows), 5)`: which column of `out` takes count, sum, mean, var and std; -1: none.
        out: `(n, slots)` zeros; `real` is the same memory as doubles.

    Returns:
        1 + the reader whose integer sum does not fit int64, else 0.
    """
    bits, valid, kind = values
    squares = any_spread(slots)
    scratch = 1
    for k in range(len(tasks)):
        scratch = max(scratch, tasks[k, 3] - tasks[k, 2] + 1)
    prefix = np.empty((scratch, 6 if squares else 3), np.uint64)
    specials = np.empty((0, 3), np.int32)
    overflow = 0
    for k in range(len(tasks)):
        lo, hi = tasks[k, 2], tasks[k, 3]
        least, most, special = scan(bits, valid, kind, lo, hi)
        if not fits_prefix(least, most, hi - lo, squares):
            wide[k] = True
            continue
        fill_prefix(bits, valid, kind, lo, hi, least, squares, prefix)
        if special:
            if len(specials) == 0:
                specials = np.empty((scratch, 3), np.int32)
            fill_specials(bits, valid, lo, hi, specials)
        for q in range(tasks[k, 0], tasks[k, 1]):
            b = int(high[q]) - lo
            for w in range(len(windows)):
                a = int(low[windows[w], q]) - lo
                if b > a:
                    seen = seen_special(specials, a, b) if special else 0
                    if read_prefix(prefix[a], prefix[b], kind, seen, least - 1075, slots[w], out[q], real[q]):
                        overflow = q + 1
    return overflow


@kernel
def seen_special(specials: Int32Matrix, a: int, b: int) -> int:
    """Return which of NaN, infinity and negative infinity lie in rows `[a, b)`, as bits."""
    seen = 0
    for s in range(3):
        if specials[b, s] > specials[a, s]:
            seen |= 1 << s
    return seen


@kernel
def read_prefix(
    before: UInt64Array,
    after: UInt64Array,
    kind: int,
    seen: int,
    exponent: int,
    slots: Int64Array,
    out: Int64Array,
    real: FloatArray,
) -> bool:
    """Write what lies between two running sums; True where an integer sum does not fit int64."""
    n = after[0] - before[0]
    out[slots[COUNT]] = np.int64(n)
    if n == _ZERO:
        return False
    s0 = after[1] - before[1]
    s1 = after[2] - before[2] - U64(after[1] < before[1])
    negative = (s1 >> U64(63)) != _ZERO
    if negative:
        s0 = ~s0 + _ONE
        s1 = ~s1 + U64(s0 == _ZERO)
    overflow = False
    if kind != FLOAT and slots[SUM] >= 0:
        overflow = s1 != _ZERO or s0 > U64(2**63 - 1) + U64(negative)
        out[slots[SUM]] = np.int64(_ZERO - s0 if negative else s0)
    if slots[SUM] >= 0 or slots[MEAN] >= 0:
        total = double_of_128(s1, s0)
        write_totals(int(n), seen, -total if negative else total, exponent, slots, real, kind != FLOAT)
    if n > _ONE and (slots[VAR] >= 0 or slots[STD] >= 0):
        q0 = after[3] - before[3]
        borrow = U64(after[3] < before[3])
        q1 = after[4] - before[4]
        under = U64(after[4] < before[4]) | U64(q1 < borrow)
        q1 -= borrow
        q2 = after[5] - before[5] - under
        write_spread(int(n), seen, spread_of(n, q2, q1, q0, s1, s0), exponent, slots, real)
    return overflow


@kernel
def add_value(
    limbs: UInt64Array, count: int, value: tuple[int, int], kind: int, least: int, insert: bool, square: bool
) -> None:
    """Insert or remove one finite value (or its square) in an integer of `count` limbs."""
    raw = value[0]
    m = magnitude(raw, kind)
    if m == _ZERO:
        return
    shift = float_exponent(raw) - least if kind == FLOAT else 0
    if square:
        if insert:
            limbs_add(limbs, count, m * m, 2 * shift)
            limbs_add(limbs, count, mul_high(m, m), 2 * shift + 64)
        else:
            limbs_subtract(limbs, count, m * m, 2 * shift)
            limbs_subtract(limbs, count, mul_high(m, m), 2 * shift + 64)
    elif insert == (kind == UINT or raw >= 0):
        limbs_add(limbs, count, m, shift)
    else:
        limbs_subtract(limbs, count, m, shift)


@kernel
def change_set(
    i: int,
    insert: bool,
    values: tuple[Int64Array, BoolArray, int],
    least: int,
    counts: Int64Array,
    total: UInt64Array,
    squares: UInt64Array,
) -> None:
    """Insert or remove row `i` in a window's counts (valid, NaN, inf, -inf), sum and sum of squares."""
    bits, valid, kind = values
    if len(valid) and not valid[i]:
        return
    step = 1 if insert else -1
    counts[0] += step
    special = special_of(bits[i]) if kind == FLOAT else 0
    if special:
        counts[1 + (special >> 1)] += step
        return
    if len(total):
        add_value(total, len(total), (bits[i], 0), kind, least, insert, False)
    if len(squares):
        add_value(squares, len(squares), (bits[i], 0), kind, least, insert, True)


@kernel
def read_set(
    kind: int,
    exponent: int,
    counts: Int64Array,
    total: UInt64Array,
    squares: UInt64Array,
    scratch: tuple[UInt64Array, UInt64Array],
    slots: Int64Array,
    out: Int64Array,
    real: FloatArray,
) -> bool:
    """Write what a window's set amounts to; True where an integer sum does not fit int64."""
    n = counts[0]
    out[slots[COUNT]] = n
    if n == 0 or len(total) == 0:
        return False
    seen = 0
    for s in range(3):
        if counts[1 + s] > 0:
            seen |= 1 << s
    negative = limbs_magnitude(total, len(total), scratch[0])
    value, up = double_of_limbs(scratch[0], len(total))
    overflow = False
    if kind != FLOAT and slots[SUM] >= 0:
        s0 = scratch[0][0]
        rest = _ZERO
        for k in range(1, len(total)):
            rest |= scratch[0][k]
        overflow = rest != _ZERO or s0 > U64(2**63 - 1) + U64(negative)
        out[slots[SUM]] = np.int64(_ZERO - s0 if negative else s0)
    write_totals(n, seen, -value if negative else value, exponent + up, slots, real, kind != FLOAT)
    if n > 1 and len(squares) > 0:
        used = limbs_spread(U64(n), squares, len(squares), scratch[0], len(total), scratch[1])
        value, up = double_of_limbs(scratch[1], used)
        write_spread(n, seen, value, exponent + (up >> 1), slots, real)
    return overflow


@kernel
def sum_by_moves(
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
    """Answer what `sum_by_prefix` does, for rows known out of order and for any range of exponents.

    No reader may step back; those who do are for `sum_by_tree`.
    """
    bits, valid, kind = values
    overflow = 0
    for k in range(len(tasks)):
        task = tasks[k]
        lo, hi, is_late = task[2], task[3], late[task[4]]
        least, most, _ = scan(bits, valid, kind, lo, hi)
        width = most - least + 53
        rows_bits = bit_length(hi - lo) + 1
        total = np.zeros((width + rows_bits + 63) // 64 + 1, np.uint64)
        squares = np.zeros((2 * width + rows_bits + 63) // 64 + 2, np.uint64)
        scratch = (np.zeros(len(total), np.uint64), np.zeros(len(squares) + 2, np.uint64))
        counts = np.zeros(4, np.int64)
        by_known = known_order(known, lo, hi, is_late)
        live = np.zeros(hi - lo, np.bool_)
        operations = np.empty(2 * (hi - lo) + task[1] - task[0], np.int64)
        for w in range(len(windows)):
            total[:] = _ZERO
            squares[:] = _ZERO
            counts[:] = 0
            of_squares = squares if slots[w, VAR] >= 0 or slots[w, STD] >= 0 else squares[:0]
            of_total = total if slots[w, SUM] >= 0 or slots[w, MEAN] >= 0 or len(of_squares) else total[:0]
            made = moves(task, low[windows[w]], high, known, cutoffs, is_late, by_known, live, operations)
            for m in range(made):
                code, at = operations[m] & 3, operations[m] >> 2
                if code == READ:
                    if read_set(
                        kind,
                        least - 1075,
                        counts,
                        of_total,
                        of_squares,
                        scratch,
                        slots[w],
                        out[at],
                        real[at],
                    ):
                        overflow = at + 1
                else:
                    change_set(at, code == INSERT, values, least, counts, of_total, of_squares)
    return overflow
