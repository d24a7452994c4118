"""Rows stored entity by entity: their order, and readers that find their newest row part by part."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from featurestore.core.time import DAY_NS, INT64_MAX, INT64_MIN
from featurestore.temporal import threads
from featurestore.temporal.parted import (
    Part,
    Taken,
    group_by_day,
    group_rows,
    keep_known,
    record_found,
    take_newest,
    within_tolerance,
)
from featurestore.temporal.rows import Rows
from featurestore.testing.oracle import asof_oracle_of
from featurestore.testing.strategies import JoinCase, join_cases, random_case, sides


def of(rows: Rows, positions: np.ndarray) -> Rows:
    """Return some rows."""
    return Rows(
        rows.codes[positions],
        rows.event_ns[positions],
        None if rows.known_ns is None else rows.known_ns[positions],
        None if rows.sequence is None else rows.sequence[positions],
    )


def stored_parts(case: JoinCase, cuts: list[int]) -> list[tuple[np.ndarray, Part]]:
    """Cut the rows by their times and store each piece parted; newest piece first, with source positions."""
    edges = [INT64_MIN, *sorted(set(cuts) - {INT64_MIN}), INT64_MAX]
    rows = case.rows
    parts = []
    for low, high in pairwise(edges):
        inside = (rows.event_ns >= low) & ((rows.event_ns < high) | (high == INT64_MAX))
        positions = np.flatnonzero(inside & (rows.codes >= 0))
        if not positions.size:
            continue
        grouped = group_rows(of(rows, positions), entities=case.entities)
        parted = grouped.parted(np.arange(len(grouped.firsts)))
        moved = positions if parted.positions is None else positions[parted.positions]
        piece = of(rows, moved)
        codes = rows.codes[positions][grouped.firsts]
        parts.append(
            (moved, Part(piece.event_ns, piece.known_ns, parted.offsets, codes, int(piece.event_ns.max())))
        )
    return parts[::-1]


def newest_of(
    case: JoinCase, cuts: list[int], look_back_ns: int | None, pending: np.ndarray | None = None
) -> list[int]:
    """Answer all readers part by part, as retrieval does; positions in the source."""
    spine = case.spine
    newest = np.full(len(spine), -1, np.int32)
    slots = np.full(case.entities, -1, np.int32)
    left = np.flatnonzero(spine.codes >= 0).astype(np.int32) if pending is None else pending
    for moved, part in stored_parts(case, cuts):
        taken = take_newest(spine, left, part, slots, look_back_ns=look_back_ns)
        newest[taken.readers] = moved[taken.rows]
        left = taken.left
        assert (slots == -1).all()
    return [int(row) for row in within_tolerance(spine, case.rows, newest, look_back_ns)]


def expected(case: JoinCase, tolerance_ns: int | None) -> list[int]:
    return asof_oracle_of(case.spine, case.rows, tolerance_ns=tolerance_ns)


@settings(max_examples=150, deadline=None)
@given(join_cases(), st.lists(st.integers(-1, 8), max_size=3))
def test_readers_find_what_the_oracle_finds_however_the_rows_are_cut(case: JoinCase, cuts: list[int]) -> None:
    assert newest_of(case, cuts, None) == expected(case, None)
    assert newest_of(case, cuts, case.tolerance_ns) == expected(case, case.tolerance_ns)


def test_larger_cases_agree_with_the_oracle() -> None:
    for seed in range(300):
        case = random_case(seed)
        cuts = np.random.default_rng(seed).integers(0, 400, 4).tolist()
        assert newest_of(case, cuts, case.tolerance_ns) == expected(case, case.tolerance_ns), seed


@settings(max_examples=50, deadline=None)
@given(join_cases(), st.randoms(use_true_random=False))
def test_the_order_in_which_readers_ask_does_not_matter(case: JoinCase, random: object) -> None:
    pending = np.flatnonzero(case.spine.codes >= 0).astype(np.int32)
    shuffled = pending.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis' Random
    assert newest_of(case, [3], None, shuffled) == newest_of(case, [3], None, pending)


BOUNDS = {
    "the same instant is visible": (10, 10, None, 0),
    "one tick before is not": (9, 10, None, -1),
    "an age equal to the reach counts": (15, 10, 5, 0),
    "one tick further does not": (16, 10, 5, -1),
    "the last instant sees it": (INT64_MAX, 10, None, 0),
    "the last instant sees the first": (INT64_MAX, INT64_MIN, None, 0),
    "a reach across all of int64 does not wrap": (INT64_MAX, INT64_MIN, INT64_MAX, -1),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_the_bounds_of_time(name: str) -> None:
    now, then, look_back_ns, row = BOUNDS[name]
    case = replace(
        random_case(0),
        spine=Rows(np.zeros(1, np.int32), np.array([now])),
        rows=Rows(np.zeros(1, np.int32), np.array([then])),
        entities=1,
    )
    assert newest_of(case, [], look_back_ns) == [row]


@settings(max_examples=100, deadline=None)
@given(sides(entities=4, most=14))
@example(Rows(np.array([1, 1, 0, 0], np.int32), np.array([1, 2, 1, 2])))
def test_rows_are_parted_by_entity_event_known_sequence_and_position(rows: Rows) -> None:
    check_parted(rows, 4)


def check_parted(rows: Rows, entities: int) -> None:
    """Compare with a sort."""
    grouped = group_rows(rows, entities=entities)
    # Entities by descending code: the order is the caller's.
    present = sorted(set(rows.codes[rows.codes >= 0].tolist()), reverse=True)
    codes = rows.codes[grouped.firsts]
    ranked = np.argsort(-codes, kind="stable")
    parted = grouped.parted(ranked)
    clocks = [c.tolist() for c in (rows.event_ns, rows.known_ns, rows.sequence) if c is not None]
    keyed = sorted(
        range(len(rows)),
        key=lambda i: (
            present.index(rows.codes[i]) if rows.codes[i] >= 0 else len(present),
            *(c[i] for c in clocks),
            i,
        ),
    )
    found = list(range(len(rows))) if parted.positions is None else parted.positions.tolist()
    assert found == keyed
    assert parted.codes.tolist() == [
        present.index(rows.codes[i]) if rows.codes[i] >= 0 else -1 for i in keyed
    ]
    counts = [int((rows.codes == code).sum()) for code in present]
    assert parted.offsets.tolist() == [0, *np.cumsum(counts).tolist()]
    assert (parted.positions is None) == (keyed == list(range(len(rows))))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-4 * DAY_NS, 4 * DAY_NS), st.integers(-1, 3)), max_size=30),
    st.sets(st.integers(-5, 5), min_size=1),
    st.integers(1, 3),
)
def test_readers_are_grouped_by_the_newest_day_that_is_not_after_theirs(
    readers: list[tuple[int, int]], some: set[int], count: int
) -> None:
    check_days(readers, some, count)


def check_days(readers: list[tuple[int, int]], some: set[int], count: int) -> None:
    """Group readers, (time, group) each, in a loop."""
    days = np.array(sorted(some), np.int32)
    time_ns = np.array([t for t, _ in readers], np.int64)
    group = np.array([g for _, g in readers], np.int32)
    order, ends = group_by_day(time_ns, lambda lo, hi: group[lo:hi], 3, days, threads=count)
    wanted: list[list[int]] = [[] for _ in range(3 * len(days) + 1)]
    for place, (time, own) in enumerate(readers):
        before = [slot for slot, day in enumerate(sorted(some)) if day * DAY_NS <= time]
        wanted[own * len(days) + before[-1] if before and 0 <= own < 3 else -1].append(place)
    assert order.tolist() == [place for places in wanted for place in places]
    assert ends.tolist() == np.cumsum([len(places) for places in wanted]).tolist()


def test_groups_are_asked_for_by_stretches_of_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MIN_ROWS", 1)
    time_ns, group = np.arange(10) * DAY_NS, np.arange(10, dtype=np.int32) % 2
    days = np.array([0, 3, 4], np.int32)
    asked = []

    def groups_of(lo: int, hi: int) -> np.ndarray:
        asked.append((lo, hi))
        return group[lo:hi]

    order, ends = group_by_day(time_ns, groups_of, 2, days, threads=3)
    assert sorted(asked) == [(0, 3), (3, 6), (6, 10)]
    assert order.tolist() == [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    assert ends.tolist() == [2, 2, 5, 6, 7, 10, 10]


def test_readers_whose_entity_is_not_known_are_left_out() -> None:
    spine = Rows(np.array([0, 1, -1, 2, 1], np.int32), np.zeros(5, np.int64))
    some = np.array([4, 2, 3, 1], np.int32)
    assert keep_known(spine, some, np.array([True, True, False, False])).tolist() == [4, 1]
    assert keep_known(spine, some, np.array([False, False, True, True])).tolist() == [2, 3]


def test_a_reader_that_found_a_row_points_to_its_own_place_and_knows_when_it_was() -> None:
    newest, event_ns = np.full(5, -1, np.int32), np.zeros(5, np.int64)
    taken = Taken(np.array([4, 0], np.int32), np.array([2, 1]), np.empty(0, np.int32))
    part = Part(np.array([7, 8, 9]), None, np.array([0, 3]), np.zeros(1, np.int32), 9)
    record_found(taken, part, newest, event_ns)
    assert newest.tolist() == [0, -1, -1, -1, 4]
    assert event_ns.tolist() == [8, 0, 0, 0, 9]


def test_a_reader_whose_newest_row_is_too_old_looks_no_further() -> None:
    readers = Rows(np.zeros(2, np.int32), np.array([20, 21]))
    part = Part(np.array([10, 15]), None, np.array([0, 1, 2]), np.array([0, 1], np.int32), 15)
    slots = np.full(2, -1, np.int32)
    taken = take_newest(readers, np.arange(2, dtype=np.int32), part, slots, look_back_ns=10)
    assert (taken.readers.tolist(), taken.rows.tolist(), taken.left.tolist()) == ([0], [0], [])
    later = replace(part, newest_ns=30)
    taken = take_newest(readers, np.arange(2, dtype=np.int32), later, slots, look_back_ns=0)
    assert not taken.readers.size
    assert not taken.left.size


def test_the_tolerance_counts_for_every_row_the_first_included() -> None:
    readers, rows = (Rows(np.zeros(3, np.int32), np.array(at)) for at in ([16, 15, 40], [10, 36, 0]))
    newest = np.array([0, 0, 1], np.int32)
    assert within_tolerance(readers, rows, newest, 5).tolist() == [-1, 0, 1]
    assert within_tolerance(readers, rows, newest, 3).tolist() == [-1, -1, -1]
    assert within_tolerance(readers, rows, newest, 6) is newest
