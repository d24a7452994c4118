"""Windows by definition: a loop over rows and exact fractions, too simple to be wrong and too slow to use."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.core.time import INT64_MAX
from featurestore.temporal.rows import Rows
from featurestore.temporal.windows import Window


def visible_rows(spine: Rows, s: int, rows: Rows, window: Window) -> list[int]:
    """Return the positions of the rows in a reader's window, by (event, known, sequence, position)."""
    t = int(spine.event_ns[s])
    cutoff = t if spine.known_ns is None else int(spine.known_ns[s])
    start = t - window.window_ns
    if window.tile_ns:
        start = start // window.tile_ns * window.tile_ns
    found = []
    for r in range(len(rows)):
        event = int(rows.event_ns[r])
        known = event if rows.known_ns is None else int(rows.known_ns[r])
        if (
            spine.codes[s] >= 0
            and rows.codes[r] == spine.codes[s]
            and start < event <= t
            and known <= cutoff
            and not (rows.known_ns is not None and known == INT64_MAX)
        ):
            sequence = 0 if rows.sequence is None else int(rows.sequence[r])
            found.append((event, known, sequence, r))
    return [r for *_, r in sorted(found)]


def rounded(value: Fraction) -> float:
    """Round to the nearest double, ties to even; infinity beyond the greatest."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _rounded_wide(value: Fraction) -> Fraction:
    """Round to 53 significant bits as if exponents had no bounds."""
    if value == 0:
        return value
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    scale = Fraction(2) ** (60 - exponent)
    return Fraction(float(value * scale)) / scale


def float_sum(values: Sequence[float]) -> float:
    """Return the exact sum rounded once; NaN and infinities as IEEE addition has them."""
    if any(math.isnan(v) for v in values) or {math.inf, -math.inf} <= set(values):
        return math.nan
    for v in values:
        if math.isinf(v):
            return v
    return rounded(sum(map(Fraction, values), Fraction(0)))


def mean(values: Sequence[float]) -> float:
    """Return the exact sum, rounded to 53 bits, divided by the count."""
    if not all(math.isfinite(v) for v in values):
        return float_sum(values)
    total = _rounded_wide(sum(map(Fraction, values), Fraction(0)))
    return rounded(_rounded_wide(total / len(values)))


def _variance_parts(values: Sequence[float]) -> Fraction:
    """Return the sample variance in unbounded exponents: the exact spread rounded, divided, rounded."""
    n = len(values)
    total = sum(map(Fraction, values), Fraction(0))
    squares = sum((Fraction(v) ** 2 for v in values), Fraction(0))
    spread = _rounded_wide(n * squares - total * total)
    return _rounded_wide(spread / Fraction(float(n * (n - 1))))


def variance(values: Sequence[float]) -> float:
    """Return the sample variance, NaN if any value is not finite."""
    if not all(math.isfinite(v) for v in values):
        return math.nan
    return rounded(_variance_parts(values))


def deviation(values: Sequence[float]) -> float:
    """Return the square root of the sample variance, also where that itself is no double."""
    if not all(math.isfinite(v) for v in values):
        return math.nan
    exact = _variance_parts(values)
    if exact == 0:
        return 0.0
    shift = (exact.numerator.bit_length() - exact.denominator.bit_length()) // 2
    root = math.sqrt(float(exact / Fraction(4) ** shift))
    return rounded(Fraction(root) * Fraction(2) ** shift)


def is_nan(value: Any) -> bool:
    """Whether a value of any type is NaN."""
    return isinstance(value, float) and math.isnan(value)


def extreme(values: Sequence[Any], greatest: bool) -> Any:
    """Return the least or greatest value; NaN if there is one; -0.0 comes before 0.0."""
    if any(map(is_nan, values)):
        return math.nan

    def order(v: Any) -> Any:
        return (v, math.copysign(1.0, v)) if isinstance(v, float) else v

    return max(values, key=order) if greatest else min(values, key=order)


def distinct(values: Sequence[Any]) -> int:
    """Count different values; NaN is one value, -0.0 is 0.0."""
    return len({"NaN" if is_nan(v) else v for v in values})


def answer(window: Window, values: Sequence[Any], rows: int) -> Any:
    """Apply a window's function to its non-null values, oldest first; `rows` counts nulls too."""
    function, n = window.function, len(values)
    if function == "count":
        return rows if window.column == "*" else n
    if function == "n_distinct":
        return distinct(values)
    if n == 0 or (function in {"std", "var"} and n < 2):
        return None
    if function == "last_n":
        k = window.n or 1
        return [None] * (k - n) + list(values[-k:])
    whole = isinstance(values[0], int)
    numbers: Sequence[Any] = [Fraction(v) for v in values] if whole else values
    if function == "sum" and whole:
        return sum(values)
    simple = {"first": lambda: values[0], "last": lambda: values[-1]}
    simple |= {"min": lambda: extreme(values, False), "max": lambda: extreme(values, True)}
    exact = {"sum": float_sum, "mean": mean, "var": variance, "std": deviation}
    return exact[function](numbers) if function in exact else simple[function]()


def oracle_aggregate(
    spine: Rows, rows: Rows, columns: Mapping[str, pa.Array | pa.ChunkedArray], windows: Sequence[Window]
) -> dict[str, list[Any]]:
    """Answer every window for every reader, by name. Cost: O(n * m) per window, in Python."""
    values = {name: column.to_pylist() for name, column in columns.items()}
    out: dict[str, list[Any]] = {}
    for window in windows:
        answers = []
        for s in range(len(spine)):
            places = visible_rows(spine, s, rows, window)
            cells = [values[window.column][r] for r in places] if window.column != "*" else []
            answers.append(answer(window, [c for c in cells if c is not None], len(places)))
        out[window.name] = answers
    return out


def same(ours: Any, theirs: Any) -> bool:
    """Whether two answers are the same, bit for bit: NaN equals NaN, -0.0 does not equal 0.0."""
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, float) and isinstance(theirs, float):
        if math.isnan(ours) or math.isnan(theirs):
            return math.isnan(ours) and math.isnan(theirs)
        return np.float64(ours).tobytes() == np.float64(theirs).tobytes()
    return bool(ours == theirs)
