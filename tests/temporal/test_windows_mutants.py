"""Mutants of the window kernels: every bound, order and exact sum is changed once, and cases must notice."""

import ast
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cache
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pytest
from tests.temporal import test_retain
from tests.temporal.mutants import FOLDER, PACKAGE, loaded, survivors
from tests.temporal.test_exact import limbs_of, number_of
from tests.temporal.test_retain import check_asof, check_windows
from tests.temporal.test_windows import (
    cuts_are_small_and_whole,
    parts_hold_rows_a_few_times,
    tasks_have_rows,
)
from tests.temporal.window_cases import WindowCase, functions_of, random_columns, random_window_case
from tests.temporal.windows_same import SAME

from featurestore.core.time import INT64_MAX, INT64_MIN
from featurestore.errors import ExpressionError, FeatureStoreError
from featurestore.temporal import retain, windows_answers, windows_batch, windows_order
from featurestore.temporal.rows import Rows
from featurestore.temporal.windows import Window, window_aggregate
from featurestore.testing.strategies import random_case
from featurestore.testing.window_oracle import oracle_aggregate, rounded, same

U64 = np.uint64
_LOW: Final = (1 << 64) - 1
# What compiled instructions do, in Python's own integers.
INSTRUCTIONS: Final[dict[str, Any]] = {
    "mul_high": lambda a, b: U64((int(a) * int(b)) >> 64),
    "shift_high": lambda a, by: U64(((int(a) << int(by)) >> 64) & _LOW),
    "shift_low": lambda a, by: U64((int(a) << int(by)) & _LOW),
    "leading_zeros": lambda a: U64(64 - int(a).bit_length()),
    # A negative number wraps, as it does in compiled code.
    "U64": lambda value: U64(int(value) & _LOW),
    "math": SimpleNamespace(ldexp=lambda value, by: _scaled(float(value), int(by)), sqrt=math.sqrt),
}


def _scaled(value: float, by: int) -> float:
    try:
        return math.ldexp(value, by)
    except OverflowError:
        return math.copysign(math.inf, value)


# Which other kernel modules each one is made of.
PARTS: Final[dict[str, tuple[str, ...]]] = {
    "exact_kernels": (),
    "windows_range_kernels": (),
    "windows_order_kernels": (),
    "windows_sum_kernels": ("exact_kernels", "windows_range_kernels"),
    "windows_extreme_kernels": ("windows_range_kernels",),
    "windows_pick_kernels": (),
    "windows_distinct_kernels": ("windows_range_kernels",),
    "windows_tree_kernels": (
        "exact_kernels",
        "windows_range_kernels",
        "windows_sum_kernels",
        "windows_extreme_kernels",
    ),
}

# The modules of which every mutant was looked at.
HELD: Final = tuple(PARTS)


def imported(tree: ast.Module, parts: Mapping[str, SimpleNamespace]) -> dict[str, Any]:
    """Return what a module imports from other kernel modules, as plain Python."""
    names: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            part = parts.get(node.module.removeprefix(PACKAGE))
            if part is not None:
                names |= {alias.name: getattr(part, alias.name) for alias in node.names}
    return names


def plain(changed: str, tree: ast.Module) -> dict[str, SimpleNamespace]:
    """Return all kernel modules as plain Python, one of them changed; tasks are a few rows long."""
    found: dict[str, SimpleNamespace] = {}
    for name, parts in PARTS.items():
        if name != changed and changed not in parts:
            found[name] = unchanged(name)
            continue
        source = tree if name == changed else ast.parse((FOLDER / f"{name}.py").read_text())
        found[name] = _plain_one(name, source, found)
    return found


def _plain_one(name: str, tree: ast.Module, found: Mapping[str, SimpleNamespace]) -> SimpleNamespace:
    small = {"windows_range_kernels": {"TASK_ROWS": 4}, "windows_tree_kernels": {"LEAF_BITS": 1, "LEAF": 2}}
    return loaded(tree, name, imported(tree, found) | INSTRUCTIONS | small.get(name, {}))


@cache
def unchanged(name: str) -> SimpleNamespace:
    """Return a kernel module as plain Python, as it is."""
    parts = {part: unchanged(part) for part in PARTS[name]}
    return _plain_one(name, ast.parse((FOLDER / f"{name}.py").read_text()), parts)


def put_in_place(changed: str, tree: ast.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    found = plain(changed, tree)
    monkeypatch.setattr(windows_batch, "_ranges", found["windows_range_kernels"])
    found["windows_sum_kernels"].exact = found["exact_kernels"]
    monkeypatch.setattr(windows_batch, "_sums", found["windows_sum_kernels"])
    monkeypatch.setattr(windows_batch, "_extremes", found["windows_extreme_kernels"])
    monkeypatch.setattr(windows_batch, "_picks", found["windows_pick_kernels"])
    monkeypatch.setattr(windows_batch, "_distinct", found["windows_distinct_kernels"])
    monkeypatch.setattr(windows_batch, "_trees", found["windows_tree_kernels"])
    monkeypatch.setattr(windows_batch, "_SPARE_TASKS", 0)
    monkeypatch.setattr(windows_order, "_kernels", found["windows_order_kernels"])
    monkeypatch.setattr(windows_answers, "_kernels", found["windows_order_kernels"])


@cache
def cases() -> list[tuple[WindowCase, dict[str, list[Any]], int]]:
    """Small cases of every kind, with the oracle's answers, and how many readers a batch of them takes."""
    found = [random_window_case(seed, most_spine=8, most_rows=24) for seed in range(120)]
    found += [_every_function(seed) for seed in range(8)]
    found += [_ends_of_time(longest) for longest in (INT64_MAX, 9, 9)] + [_long_windows(20), _long_windows(4)]
    found += [_steps_back(seed) for seed in range(18)] + [_steps_back(seed, late=False) for seed in range(6)]
    found += [_carries()]
    found += [_spans("sum", range(66, 76), count) for count in (2, 3, 7)]
    found += [_spans("std", range(30, 44), count) for count in (2, 3, 7)]
    return [
        (
            case,
            oracle_aggregate(case.spine, case.rows, case.columns, case.windows),
            (1 << 15, 1, 4, 1 << 15)[n % 4],
        )
        for n, case in enumerate(found)
    ]


def _every_function(seed: int) -> WindowCase:
    """Every function of every column, over rows enough for blocks, trees and several tasks."""
    rng = np.random.default_rng(seed)
    case = random_case(900 + seed, most_spine=14, most_rows=150)
    known = case.rows.event_ns + rng.integers(0, 30, len(case.rows)) if seed % 2 else None
    rows = Rows(case.rows.codes, np.sort(rng.integers(0, 300, len(case.rows))), known)
    spine = Rows(case.spine.codes, rng.integers(0, 320, len(case.spine)))
    columns = random_columns(rng, len(rows))
    windows = [
        Window(
            column, function, (40, 250)[n % 2], 0, 3 if function == "last_n" else None, f"{column} {function}"
        )
        for column in (*columns, "*")
        for n, function in enumerate(functions_of(column))
    ]
    return WindowCase(spine, rows, case.entities, columns, windows)


def _ends_of_time(longest: int) -> WindowCase:
    """Windows that reach beyond int64, and bounds at its ends."""
    event = np.array([INT64_MIN, INT64_MIN + 1, INT64_MIN + 5, -1, 0, 1, INT64_MAX - 1, INT64_MAX])
    rows = Rows(np.zeros(8, np.int32), event)
    spine = Rows(np.zeros(16, np.int32), np.concatenate([event, event]))
    spans = [
        (1, 0),
        (4, 0),
        (4, 4),
        (4, 3),
        (5, 5),
        (INT64_MAX, 0),
        (INT64_MAX, INT64_MAX),
        (INT64_MAX - 1, 7),
    ]
    windows = [Window("*", "count", w, tile, None, f"{w} {tile}") for w, tile in spans if w <= longest]
    return WindowCase(spine, rows, 1, {}, windows)


def _long_windows(readers: int) -> WindowCase:
    """Windows over many blocks of rows of one entity; the least of some is 0."""
    rng = np.random.default_rng(1)
    rows = Rows(np.zeros(400, np.int32), np.arange(400))
    spine = Rows(np.zeros(readers, np.int32), rng.integers(0, 420, readers))
    columns = {"x": pa.array(rng.permutation(400) * 1.0), "zero": pa.array([0.0, 7.0] * 200)}
    windows = [
        Window(column, function, length, 0, None, f"{column} {function} {length}")
        for column in columns
        for function in ("min", "max", "sum", "std", "n_distinct", "first", "last")
        for length in (33, 70, 130, 390)
    ]
    return WindowCase(spine, rows, 1, columns, windows)


def _steps_back(seed: int, late: bool = True) -> WindowCase:
    """Rows, and readers who know less than the one before them often, now and then, or just as much."""
    rng = np.random.default_rng(seed)
    count = 40
    codes = np.sort(rng.integers(0, 2, count)).astype(np.int32)
    known = 3 * rng.integers(0, 8, count) if late else None
    rows = Rows(codes, np.tile(np.arange(20), 2), known)
    spine_codes = np.sort(rng.integers(0, 2, 24)).astype(np.int32)
    times = np.sort(rng.integers(0, 30, 24))
    dips = times // 3 * 3 - 6 * (rng.random(24) < 0.2)
    cutoffs = (rng.integers(0, 24, 24), dips, times // 6 * 6)[seed % 3]
    spine = Rows(spine_codes, times, cutoffs)
    columns = {
        "x": pa.array(rng.integers(-3, 4, count) * 1.5),
        "word": pa.array(rng.choice(["a", "b", "c"], count)),
    }
    windows = [
        Window(
            column, function, length, 0, 2 if function == "last_n" else None, f"{column} {function} {length}"
        )
        for column in columns
        for function in functions_of(column)
        for length in (4, 15)
    ]
    return WindowCase(spine, rows, 2, columns, windows)


def _whole(columns: dict[str, pa.Array], functions: Sequence[str]) -> WindowCase:
    """Return a case whose only reader sees every row, with each function of each column."""
    count = len(next(iter(columns.values())))
    rows = Rows(np.zeros(count, np.int32), np.arange(count))
    spine = Rows(np.zeros(1, np.int32), np.array([count]))
    windows = [Window(c, f, 999, 0, None, f"{c} {f}") for c in columns for f in functions]
    return WindowCase(spine, rows, 1, columns, windows)


def _carries() -> WindowCase:
    """Squares whose running sum is all ones in its middle word when the lowest one carries."""
    values = [2**64 - 1, 2**32, 2**32 - 1, 2**32 - 1, 5]
    return _whole({"x": pa.array(values, pa.uint64())}, ("mean", "var", "std"))


def _spans(function: str, exponents: Sequence[int], count: int) -> WindowCase:
    """Doubles that lie so many powers of 2 apart: sums of 128 bits just hold them, or just not."""
    columns = {
        str(exponent): pa.array([(2.0 - 2.0**-52) * 2.0**exponent] * count + [1.0 + 2.0**-52, -3.0])
        for exponent in exponents
    }
    return _whole(columns, (function,))


def _overflows(values: list[int], late: bool, steps: bool = False) -> bool:
    """Whether a sum of integers is refused."""
    count = len(values)
    known = np.array([count] * (count - 1) + [0]) if late else None
    rows = Rows(np.zeros(count, np.int32), np.arange(count), known)
    spine = Rows(np.zeros(1, np.int32), np.array([count]))
    if steps:  # the second reader knows less than the first, but all there is
        spine = Rows(np.zeros(2, np.int32), np.array([count, count + 1]), np.array([count + 9, count]))
    windows = [Window("x", "sum", 99, 0, None, "s")]
    try:
        window_aggregate(spine, rows, {"x": pa.array(values)}, windows, entities=1)
    except ExpressionError:
        return True
    return False


def refuses_what_does_not_fit() -> bool:
    fits = ([INT64_MAX], [INT64_MIN], [INT64_MAX - 1, 1], [INT64_MIN + 1, -1], [INT64_MAX, 5, -5])
    beyond = ([INT64_MAX, 1], [INT64_MIN, -1], [INT64_MAX] * 3, [INT64_MIN] * 4)
    return all(
        not any(_overflows(v, *how) for v in fits) and all(_overflows(v, *how) for v in beyond)
        for how in ((False,), (True,), (True, True))
    )


# Patterns of long runs of ones and zeros are where carries and ties are lost.
WORDS: Final = (0, 1, 2, 3, 2**52, 2**53 - 1, 2**53, 2**53 + 1, 2**63, 2**64 - 2, 2**64 - 1)


def rounds_exactly(exact: SimpleNamespace) -> bool:
    """Whether wide integers add, subtract and round as Python's own do."""
    rng = np.random.default_rng(0)
    return all(_rounds(exact, rng) and _adds(exact, rng) and _spreads(exact, rng) for _ in range(400))


def rounds_ties(exact: SimpleNamespace) -> bool:
    """Whether halves between two doubles go to the even one, and what is a little more or less does not."""
    for odd in (2**53 + 1, 2**53 + 3, 2**54 + 2, 2**63 + 2**10, 2**63 + 3 * 2**10):
        for shift in (0, 64, 128, 192):
            for near in (-1, 0, 1):
                value = (odd << shift) + near
                words = [U64((value >> (64 * k)) & _LOW) for k in range(4)]
                number, exponent = exact.double_of_limbs(np.array([*words, U64(0)]), 5)
                if not float(value) == exact.double_of_256(*reversed(words)) == number * 2.0**exponent:
                    return False
    return True


def cancels_exactly(exact: SimpleNamespace) -> bool:
    """Whether products of 256 bits, nearly equal ones too, leave just their difference."""
    rng = np.random.default_rng(1)

    def word() -> int:
        return int(rng.integers(2**63, dtype=np.uint64)) * 2 + int(rng.integers(2))

    for turn in range(400):
        high = word() >> int(rng.integers(0, 3))
        # The square's third word becomes all ones before the last carry comes in.
        target = (-1 - high * high - turn % 2) & _LOW
        low = -(-(target << 64) // high) if turn % 4 < 2 and 0 < target < high else word()
        n, total = word() | 1 << 63, (high << 64) | (low & _LOW)
        squares = -(-total * total // n) + (word() << int(rng.integers(60, 64))) * (turn % 3 == 0)
        if squares >= 2**192:
            continue
        wanted = n * squares - total * total
        s, q, out = limbs_of(total, 2), limbs_of(squares, 3), np.zeros(5, np.uint64)
        used = exact.limbs_spread(U64(n), q, 3, s, 2, out)
        spread = exact.spread_of(U64(n), q[2], q[1], q[0], s[1], s[0])
        if number_of(out[:used]) != wanted or spread != float(wanted):
            return False
    return True


def fits_rightly(sums: SimpleNamespace) -> bool:
    """Whether no sum that is said to fit can leave its limbs, and those that are common do fit."""
    for width in range(53, 130):
        for rows in sorted({max(2**k + near, 1) for k in range(1, 62) for near in (-1, 0)}):
            most = rows * (2**width - 1)
            if sums.fits_prefix(0, width - 53, rows, False) and most >= 2**127:
                return False
            fits = sums.fits_prefix(0, width - 53, rows, True)
            if fits and (width > 85 or most >= 2**127 or rows * (2**width - 1) ** 2 >= 2**191):
                return False
    return all(sums.fits_prefix(7, 7 + 11, 2**31, squares) for squares in (False, True))


def _word(rng: np.random.Generator) -> int:
    return int(
        rng.choice(np.array(WORDS, np.uint64)) if rng.random() < 0.7 else 2 * int(rng.integers(2**63)) + 1
    )


def _rounds(exact: SimpleNamespace, rng: np.random.Generator) -> bool:
    count = rng.integers(1, 5)
    words = [_word(rng) if place < count else 0 for place in range(4)]
    value = sum(word << (64 * k) for k, word in enumerate(words))
    number, exponent = exact.double_of_limbs(limbs_of(value, 5), 5)
    wide = exact.double_of_256(*(U64(word) for word in reversed(words)))
    near = rounded(Fraction(number) * 2**exponent)
    return bool(exponent % 2 == 0 and wide == float(value) == near)


def _adds(exact: SimpleNamespace, rng: np.random.Generator) -> bool:
    limbs, value, out = np.zeros(5, np.uint64), 0, np.zeros(5, np.uint64)
    for _ in range(6):
        word, shift, plus = _word(rng), int(rng.integers(0, 150)), rng.random() < 0.5
        (exact.limbs_add if plus else exact.limbs_subtract)(limbs, 5, U64(word), shift)
        value += (word << shift) if plus else -(word << shift)
    negative = bool(exact.limbs_magnitude(limbs, 5, out))
    return negative == (value < 0) and number_of(out) == abs(value)


def _spreads(exact: SimpleNamespace, rng: np.random.Generator) -> bool:
    values = [
        (_word(rng) << int(rng.integers(0, 21))) * int(rng.choice([-1, 1])) for _ in range(rng.integers(1, 7))
    ]
    n, total, squares = len(values), abs(sum(values)), sum(v * v for v in values)
    wanted = n * squares - total * total
    s, q, out = limbs_of(total, 2), limbs_of(squares, 3), np.zeros(5, np.uint64)
    used = exact.limbs_spread(U64(n), q, 3, s, 2, out)
    near = exact.spread_of(U64(n), q[2], q[1], q[0], s[1], s[0])
    return near == float(wanted) and number_of(out[:used]) == wanted


def cuts_rightly(monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether batches keep their bounds and their readers."""
    if not all(map(parts_hold_rows_a_few_times, (1_000, 100_000, 400_000))):
        return False
    monkeypatch.setattr(windows_order, "FEW_READERS", 1)
    monkeypatch.setattr(windows_order, "_FIRST_BATCHES", 2)
    for readers, rows in ((1, 3), (5, 9), (9, 5), (12, 30)):
        monkeypatch.setattr(windows_order, "BATCH_READERS", readers)
        monkeypatch.setattr(windows_order, "BATCH_ROWS", rows)
        if not all(map(cuts_are_small_and_whole, range(20))):
            return False
    return True


def notices(name: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether any case differs from the oracle under the kernels that are in place."""
    try:
        if name == "exact_kernels":
            exact = windows_batch._sums.exact
            if not (rounds_exactly(exact) and rounds_ties(exact) and cancels_exactly(exact)):
                return True
        parts = {
            "windows_range_kernels": lambda: tasks_have_rows(windows_batch._ranges),
            "windows_sum_kernels": lambda: fits_rightly(windows_batch._sums),
            "windows_order_kernels": lambda: cuts_rightly(monkeypatch),
        }
        if name in parts and not parts[name]():
            return True
        if not refuses_what_does_not_fit():
            return True
        for case, wanted, most in cases():
            monkeypatch.setattr(windows_order, "BATCH_READERS", most)
            monkeypatch.setattr(windows_order, "BATCH_ROWS", 2 * most)
            monkeypatch.setattr(windows_order, "FEW_READERS", 2)
            got = window_aggregate(
                case.spine, case.rows, case.columns, case.windows, entities=case.entities, threads=1
            )
            if not all(same(got[name].to_pylist(), answers) for name, answers in wanted.items()):
                return True
    except (FeatureStoreError, IndexError, ValueError, OverflowError, ZeroDivisionError, MemoryError):
        return True
    return False


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", HELD)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_mutant_of_a_window_kernel_survives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = survivors(
        name, lambda: notices(name, monkeypatch), lambda tree: put_in_place(name, tree, monkeypatch), SAME
    )
    assert not found, f"{len(found)} mutants survive:\n" + "\n".join(found)


EDGES: Final = [
    edge
    for name, edge in vars(test_retain).items()
    if name.startswith("test_") and not name.startswith("test_kept_rows")
]


def retained_wrongly() -> bool:
    try:
        for exact_edge in EDGES:
            exact_edge()
        for seed in range(60):
            check_asof(seed)
            check_windows(seed)
    except (AssertionError, IndexError, ValueError):
        return True
    return False


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_no_mutant_of_retention_survives(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(tree: ast.Module) -> None:
        monkeypatch.setattr(retain, "_kernels", loaded(tree, "retain_kernels", {}))

    found = survivors("retain_kernels", retained_wrongly, load, SAME)
    assert not found, f"{len(found)} mutants survive:\n" + "\n".join(found)
