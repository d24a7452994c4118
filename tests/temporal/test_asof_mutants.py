"""Mutants of the kernels: every bound, key check and tie rule is changed once, and the cases must notice.

The kernels are plain Python before they are compiled. Each mutant is the source of one kernel module with one
operator changed; it must fail (or fall into an endless loop) on a fixed set of cases against the oracle. A
mutant that means the same is listed with the reason.
"""

import ast
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final

import numpy as np
import pytest
from tests.temporal.mutants import loaded, survivors
from tests.temporal.test_streaming_merge import first_row_stays, goes_on_rightly

from featurestore.core.time import INT64_MAX, Int64Array
from featurestore.errors import FeatureStoreError, SchemaError
from featurestore.temporal import asof, merge, order, streaming_merge, threads
from featurestore.temporal.asof import asof_indices, last_known_indices
from featurestore.temporal.jit import kernel
from featurestore.temporal.merge_blocks import BLOCK, place_block
from featurestore.temporal.rows import BOUNDARIES, DIRECTIONS, Int32Array, Rows
from featurestore.testing.oracle import asof_oracle_of
from featurestore.testing.strategies import JoinCase, random_case

_SPEED: Final = "order or balance is found less often or later, and made or searched for instead"
_STEPS: Final = "more or fewer of the steps are left to the plain loop"
_WIDER: Final = "the search starts from a wider range"

_SCRATCH: Final = "rows, words = np.empty((2, hi - lo), np.int32), np.empty((2, hi - lo), np.uint64)"
_MANY_KEYS: Final = "if len(one) > spine + end - row:"
_MIDDLE: Final = "first, seen = cut_at(time, event[row:end], slack, (spine + end - row) >> 1)"

# Mutants that answer the same, by (function, changed line, change).
SAME: Final[dict[tuple[str, str, str], str]] = {
    ("count_before", "a = probe + 1", "Add to Sub"): _WIDER,
    ("count_before", "probe = min(hi - 1, a + step - 1)", "Sub to Add"): _WIDER,
    (
        "knowledge_tree",
        "begin += count",
        "Add to Sub",
    ): "minima lie over larger ones: fewer blocks are skipped",
    (
        "known_before",
        "if level < len(levels) and (place + 1) & ((1 << (_FAN_BITS * (level + 1))) - 1) == 0:",
        "Lt to LtE",
    ): "no place is that round before the search ends",
    (
        "known_after",
        "if level < len(levels) and place & ((1 << (_FAN_BITS * (level + 1))) - 1) == 0:",
        "Lt to LtE",
    ): "no place is that round before the search ends",
    (
        "search",
        "if before < 0 or (after >= 0 and np.uint64(event[after] - now) < np.uint64(now - event[before])):",
        "GtE to Gt",
    ): "with a row before, the row after is not the first",
    ("is_ascending", "if falls > 0:", "Gt to GtE"): _SPEED,
    ("is_ascending", "falls += part[i] < part[i - 1]", "Lt to LtE"): _SPEED,
    ("is_ascending", "if times[i] == times[i - 1] and ties[i] < ties[i - 1]:", "And to Or"): _SPEED,
    ("is_ascending", "if times[i] == times[i - 1] and ties[i] < ties[i - 1]:", "Lt to LtE"): _SPEED,
    ("count_falls", "falls += time[i] < time[i - 1]", "Add to Sub"): _SPEED,
    ("count_falls", "falls += time[i] < time[i - 1]", "Lt to LtE"): _SPEED,
    ("cut_merge", "total = len(time) + len(event)", "Add to Sub"): _SPEED,
    ("cut_at", "if middle + rows_before(event, time[middle - 1], slack) <= goal:", "LtE to Lt"): _SPEED,
    ("cut_at", "if middle + rows_before(event, time[middle - 1], slack) <= goal:", "Add to Sub"): _SPEED,
    ("merge_on", _MANY_KEYS, "Gt to GtE"): _SPEED,
    ("merge_on", _MANY_KEYS, "Sub to Add"): _SPEED,
    ("merge_on", _MANY_KEYS, "Add to Sub"): _SPEED,
    ("merge_on", _MIDDLE, "Sub to Add"): _SPEED,
    ("merge_on", _MIDDLE, "Add to Sub"): _SPEED,
    ("merge_two", "while steps > U64(16):", "Gt to GtE"): _STEPS,
    ("merge_places", "while steps > U64(16):", "Gt to GtE"): _STEPS,
    (
        "finish_merge",
        "distance = time[i] - event[row] if step < 0 else event[row] - time[i]",
        "Lt to LtE",
    ): "the step is never 0",
    ("codes_within", "bad += (codes[i] < -1) | (codes[i] >= entities)", "Add to Sub"): "counted down from 0",
    ("is_sorted_run", "if event[b] < event[a]:", "Lt to LtE"): _SPEED,
    ("is_sorted_run", "if known[b] < known[a]:", "Lt to LtE"): _SPEED,
    ("is_sorted_run", "if len(sequence) > 0 and sequence[b] < sequence[a]:", "Lt to LtE"): _SPEED,
    ("insertion_sort", "for k in range(lo + 1, hi):", "Add to Sub"): "a row that is not of the run stays",
    ("insertion_sort", "before = known[row] < known[other]", "Lt to LtE"): "they are not equal here",
    ("sort_runs", "if hi - lo <= 48:", "LtE to Lt"): _SPEED,
    ("sort_runs", "if hi - lo <= 48:", "Sub to Add"): _SPEED,
    ("sort_runs", _SCRATCH, "Sub to Add"): "more scratch space than is needed",
}


@cache
def cases() -> list[tuple[JoinCase, list[int], list[int], int]]:
    """Small cases of every kind, with the oracle's answers, and on how many threads to run them."""
    found = [(random_case(seed, most_spine=10, most_rows=26), 1 + seed % 3) for seed in range(200)]
    found += [(_ordered(seed, 90, 4), 1 + seed % 2) for seed in range(48)]
    found += [(_ordered(seed, 420, 60), 2) for seed in range(6)]
    found += [(_lopsided(pair, seed), 2) for pair in LOPSIDED for seed in range(6)]
    found += [(_tangled(seed), 1) for seed in range(10)]
    found += [(_late(seed), 1) for seed in range(12)]
    found += [(_never(direction), 1) for direction in DIRECTIONS]
    found += [(_early(entities), 2) for entities in (1, 3)]
    found += [(_falling_ties(by), 1) for by in ("sequence", "known and sequence", "odd")]
    found += [(_one_fall(), 1)]
    return [(case, *_answers(case), count) for case, count in found]


def _ordered(seed: int, count: int, entities: int) -> JoinCase:
    """A case in time order and long enough for the two-stretch merge; either side may end first."""
    rng = np.random.default_rng(seed)
    entities = 1 if seed % 3 == 0 else entities
    low = 0 if seed % 3 == 0 else -1
    spans = ((40, 40), (2 * count, count), (count, 3 * count))[seed // 2 % 3]
    sides = []
    for span in spans:
        event = np.sort(rng.integers(0, span, count))
        sequence = rng.integers(0, 2, count) if seed % 4 == 1 else None
        if sequence is not None and seed % 8 == 1:
            sequence = sequence[np.lexsort((sequence, event))]
        sides.append(Rows(rng.integers(low, entities, count).astype(np.int32), event, None, sequence))
    direction = ("backward", "backward", "forward", "nearest")[seed // 3 % 4]
    boundary = BOUNDARIES[seed // 5 % 2]
    spine, rows = sides
    return JoinCase(spine, rows, entities, direction, boundary, (None, 0, 2)[seed // 7 % 3], (True,) * count)


# Spine rows and rows of each stretch of time: every one of them runs out first somewhere.
LOPSIDED: Final = [
    ((12, 76), (44, 44)),
    ((76, 12), (44, 44)),
    ((44, 44), (12, 76)),
    ((44, 44), (76, 12)),
    ((44, 44), (4, 84)),
    ((44, 44), (84, 4)),
    ((4, 84), (44, 44)),
    ((84, 4), (44, 44)),
    ((16, 72), (72, 16)),
    ((72, 16), (16, 72)),
]


def _lopsided(pair: Sequence[tuple[int, int]], seed: int) -> JoinCase:
    """A case without keys whose stretches, two for each of two threads, have unlike shares of both sides."""
    rng = np.random.default_rng(seed)
    stretches = [(44, 44), (44, 44), *pair] if seed % 2 else [*pair, *pair]
    sides = [
        np.concatenate(
            [np.sort(rng.integers(100 * k, 100 * k + 100, n[side])) for k, n in enumerate(stretches)]
        )
        for side in (0, 1)
    ]
    if seed % 3 == 2:
        sides[1][-1] = 500  # the last row is after every reader: the spine ends first
    spine, rows = (Rows(np.zeros(len(event), np.int32), event) for event in sides)
    return JoinCase(spine, rows, 1, "backward", BOUNDARIES[seed // 2 % 2], None, (True,) * len(rows))


def _tangled(seed: int) -> JoinCase:
    """Rows out of order whose every tie-break decides somewhere, in runs for the radix sort."""
    rng = np.random.default_rng(seed)
    count = (40, 160)[seed % 2]
    sides = [
        Rows(
            rng.integers(-1, 2, count).astype(np.int32),
            rng.integers(0, 4, count) << (20 if seed % 3 else 0),
            None if seed % 5 == 4 else rng.integers(0, 2, count) * (seed % 4 > 0),
            None if seed % 5 == 3 else rng.integers(-2, 2, count),
        )
        for _ in range(2)
    ]
    valid = tuple((rng.random(count) < 0.5).tolist())
    spine, rows = sides
    return JoinCase(spine, rows, 2, DIRECTIONS[seed % 3], "inclusive", None, valid)


def _never(direction: str) -> JoinCase:
    """Rows that are never known, and readers who may know everything."""
    rows = Rows(np.zeros(4, np.int32), np.arange(4), np.array([INT64_MAX, 0, INT64_MAX - 1, INT64_MAX]))
    spine = Rows(np.zeros(5, np.int32), np.arange(5), np.array([INT64_MAX] * 4 + [INT64_MAX - 2]))
    return JoinCase(spine, rows, 1, direction, "inclusive", None, (True,) * 4)


def _early(entities: int) -> JoinCase:
    """All rows lie before the spine, so that a cut by work finds no spine row."""
    codes = (np.arange(60) % entities).astype(np.int32)
    spine, rows = Rows(codes, np.arange(60) + 100), Rows(codes, np.arange(60))
    return JoinCase(spine, rows, entities, "backward", "inclusive", None, (True,) * 60)


def _falling_ties(by: str) -> JoinCase:
    """Ties fall only between rows of the same time: by sequence, or by sequence behind equal known times."""
    event, sequence = np.arange(20) // 2, 1 - np.arange(20) % 2
    if by == "odd":
        event, sequence = np.arange(1, 21) // 2, -np.arange(20)  # the last row is alone in its time
    rows = Rows(np.zeros(20, np.int32), event, event if "known" in by else None, sequence)
    spine = Rows(np.zeros(10, np.int32), np.arange(10))
    return JoinCase(spine, rows, 1, "backward", "inclusive", None, (True,) * 20)


def _one_fall() -> JoinCase:
    """A long spine with a single fall, at the edge of a block of the search for falls."""
    time = np.arange(4200)
    time[4096] = 0
    spine = Rows(np.zeros(4200, np.int32), time)
    rows = Rows(np.zeros(3, np.int32), np.array([1, 100, 4000]))
    return JoinCase(spine, rows, 1, "backward", "inclusive", None, (True,) * 3)


def _late(seed: int) -> JoinCase:
    """Hundreds of rows of one entity of which few are known: the knowledge tree must climb and descend."""
    rng = np.random.default_rng(seed)
    count = 700
    known = np.where(rng.random(count) < 0.004, np.arange(count), 5000 + rng.integers(0, 9, count))
    rows = Rows(np.zeros(count, np.int32), np.sort(rng.integers(0, count, count)), known)
    spine = Rows(np.zeros(6, np.int32), rng.integers(0, count, 6), np.full(6, count))
    direction = ("backward", "forward", "nearest")[seed % 3]
    return JoinCase(spine, rows, 1, direction, "inclusive", None, (True,) * count)


def _answers(case: JoinCase) -> tuple[list[int], list[int]]:
    rule: Any = {"tolerance_ns": case.tolerance_ns, "boundary": case.boundary}
    best = asof_oracle_of(case.spine, case.rows, direction=case.direction, **rule)
    return best, asof_oracle_of(case.spine, case.rows, valid=case.valid, **rule)


def notices() -> bool:
    """Whether any case differs from the oracle under the kernels that are in place."""
    if not all(refuses(code) for code in (3, -2)):
        return True
    for case, best, last, count in cases():
        rule: Any = {"entities": case.entities, "tolerance_ns": case.tolerance_ns, "boundary": case.boundary}
        try:
            found = asof_indices(case.spine, case.rows, direction=case.direction, threads=count, **rule)
            if found.tolist() != best:
                return True
            if len(case.rows) < 200:
                valid = np.array(case.valid, np.bool_)
                known = last_known_indices(case.spine, case.rows, [valid], threads=count, **rule)
                if known[0].tolist() != last:
                    return True
        except (FeatureStoreError, IndexError, ValueError, OverflowError, ZeroDivisionError):
            return True
    return False


def goes_wrong() -> bool:
    """Whether a merge that goes on from piece to piece differs from the oracle."""
    try:
        return not (first_row_stays() and all(goes_on_rightly(seed) for seed in range(12)))
    except (IndexError, ValueError, OverflowError):
        return True


def refuses(code: int) -> bool:
    """Whether a code that is neither null nor below the entities is refused."""
    bad, good = (Rows(np.array([c], np.int32), np.array([1])) for c in (code, 0))
    rule: Any = {"direction": "backward", "tolerance_ns": None, "boundary": "inclusive"}
    try:
        asof_indices(good, bad, entities=3, **rule)
    except SchemaError:
        return True
    except IndexError:
        return False
    return False


def place_block_in_python(
    time: Int64Array,
    spine: int,
    event: Int64Array,
    row: int,
    slack: int,
    fresh: int,
    out: Int32Array,
) -> np.int64:
    """Do what the vector instructions of `merge_blocks` do."""
    seen = [[int(event[row + k] - time[spine + a] - slack < 0) for k in range(BLOCK)] for a in range(BLOCK)]
    for a, rows in enumerate(seen):
        if fresh or any(rows):
            out[spine + a] = int(row) - 1 + sum(rows)
    return np.int64(-seen[-1][-1])


@kernel
def call_block(
    time: Int64Array, spine: int, event: Int64Array, row: int, slack: int, fresh: int, out: Int32Array
) -> int:
    return place_block(time, np.uint64(spine), event, np.uint64(row), slack, np.uint64(fresh), out)


@pytest.mark.parametrize("slack", [0, 1])
@pytest.mark.parametrize("fresh", [0, 1])
def test_a_block_in_vector_instructions_does_what_the_loop_does(slack: int, fresh: int) -> None:
    rng = np.random.default_rng(slack + 2 * fresh)
    for span in (3, 20, 2**61):
        for _ in range(100):
            time, event = (np.sort(rng.integers(-span, span, 20)) for _ in range(2))
            spine, row = (int(v) for v in rng.integers(0, 13, 2))
            outs = [np.arange(-20, 0, dtype=np.int32) for _ in range(2)]
            case = (time, spine, event, row, slack, fresh)
            assert call_block(*case, outs[0]) == place_block_in_python(*case, outs[1])
            assert outs[0].tolist() == outs[1].tolist()


def one_after_the_other(tasks: Sequence[Callable[[], None]]) -> None:
    for task in tasks:
        task()


@pytest.mark.parametrize("name", ["asof_kernels", "merge_kernels", "order_kernels"])
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_no_mutant_of_a_kernel_survives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MIN_ROWS", 1)
    monkeypatch.setattr(asof, "_SAMPLE_ROWS", 16)
    for module in (asof, merge, order):
        monkeypatch.setattr(module, "run_parallel", one_after_the_other)
    monkeypatch.setattr(merge, "run_in_turn", lambda tasks, _wide: one_after_the_other(tasks))
    owner: Any = {"asof_kernels": asof, "merge_kernels": merge, "order_kernels": order}[name]

    def load(tree: ast.Module) -> None:
        found = loaded(tree, name, {"place_block": place_block_in_python})
        monkeypatch.setattr(owner, "_kernels", found)
        if owner is merge:
            monkeypatch.setattr(streaming_merge, "_kernels", found)

    found = survivors(name, lambda: notices() or (owner is merge and goes_wrong()), load, SAME)
    assert not found, f"{len(found)} mutants survive:\n" + "\n".join(found)
