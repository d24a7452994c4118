"""Rows stored entity by entity: their order, and readers that find their newest row part by part."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from featurestore.core.time import INT64_MAX, INT64_MIN
from featurestore.temporal.parted import Part, group_rows, take_newest, within_tolerance
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


@pytest.mark.parametrize(
    ("now", "look_back_ns", "row"),
    [
        pytest.param(10, None, 0, id="the same instant is visible"),
        pytest.param(9, None, -1, id="one tick before is not"),
        pytest.param(15, 5, 0, id="an age equal to the reach counts"),
        pytest.param(16, 5, -1, id="one tick further does not"),
        pytest.param(INT64_MAX, None, 0, id="the last instant sees it"),
    ],
)
def test_the_bounds_of_time(now: int, look_back_ns: int | None, row: int) -> None:
    case = replace(
        random_case(0),
        spine=Rows(np.zeros(1, np.int32), np.array([now])),
        rows=Rows(np.zeros(1, np.int32), np.array([10])),
        entities=1,
    )
    assert newest_of(case, [], look_back_ns) == [row]


def test_a_reach_across_all_of_int64_does_not_wrap() -> None:
    case = replace(
        random_case(0),
        spine=Rows(np.zeros(1, np.int32), np.array([INT64_MAX])),
        rows=Rows(np.zeros(1, np.int32), np.array([INT64_MIN])),
        entities=1,
    )
    assert newest_of(case, [], None) == [0]
    assert newest_of(case, [], INT64_MAX) == [-1]


@settings(max_examples=100, deadline=None)
@given(sides(entities=4, most=14))
@example(Rows(np.array([1, 1, 0, 0], np.int32), np.array([1, 2, 1, 2])))
def test_rows_are_parted_by_entity_event_known_sequence_and_position(rows: Rows) -> None:
    grouped = group_rows(rows, entities=4)
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
