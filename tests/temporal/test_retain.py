"""Carried state: what is kept answers every later reader like everything would have."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.temporal.window_cases import WindowCase, random_window_case, subset

from featurestore.core.time import INT64_MAX, INT64_MIN, Int64Array
from featurestore.temporal.asof import asof_indices, last_known_indices
from featurestore.temporal.retain import earliest_used, retained_indices
from featurestore.temporal.rows import BOUNDARIES, DIRECTIONS, Int32Array, Rows
from featurestore.temporal.windows import window_aggregate
from featurestore.testing.strategies import random_case
from featurestore.testing.window_oracle import same


def later_readers(spine: Rows, at_ns: int) -> Rows:
    """Return the readers with no older event or knowledge time than `at_ns`."""
    known = spine.event_ns if spine.known_ns is None else spine.known_ns
    return subset(spine, np.flatnonzero((spine.event_ns >= at_ns) & (known >= at_ns)))


def source_places(found: Int32Array, kept: Int64Array) -> list[int]:
    return [int(kept[f]) if f >= 0 else -1 for f in found]


def check_asof(seed: int) -> int:
    """Compare as-of answers over kept rows with those over all; return how many rows were dropped."""
    case = random_case(seed)
    rng = np.random.default_rng(seed)
    at = int(rng.integers(-2, 25))
    spine = later_readers(case.spine, at)
    valid = np.array(case.valid, np.bool_)
    kept = retained_indices(
        case.rows,
        entities=case.entities,
        at_ns=at,
        ttl_ns=case.tolerance_ns,
        newest=True,
        last_known=[valid],
        window_ns=0,
    )
    less = subset(case.rows, kept)
    for boundary in BOUNDARIES:
        rules: dict[str, Any] = {
            "entities": case.entities,
            "tolerance_ns": case.tolerance_ns,
            "boundary": boundary,
        }
        for direction in DIRECTIONS:
            every = asof_indices(spine, case.rows, direction=direction, **rules)
            some = asof_indices(spine, less, direction=direction, **rules)
            assert source_places(some, kept) == every.tolist(), (seed, direction, boundary)
        every = last_known_indices(spine, case.rows, [valid], **rules)[0]
        some = last_known_indices(spine, less, [valid[kept]], **rules)[0]
        assert source_places(some, kept) == every.tolist(), (seed, boundary)
    return len(case.rows) - len(kept)


def check_windows(seed: int) -> int:
    """Compare aggregates over kept rows with those over all; return how many rows were dropped."""
    case = random_window_case(seed)
    at = int(np.random.default_rng(seed).integers(-2, 25))
    spine = later_readers(case.spine, at)
    longest = max(w.window_ns + w.tile_ns for w in case.windows)
    kept = retained_indices(
        case.rows,
        entities=case.entities,
        at_ns=at,
        ttl_ns=None,
        newest=False,
        last_known=[],
        window_ns=longest,
    )
    less: WindowCase = case.kept(kept)
    every = window_aggregate(spine, case.rows, case.columns, case.windows, entities=case.entities)
    some = window_aggregate(spine, less.rows, less.columns, case.windows, entities=case.entities)
    for window in case.windows:
        assert same(some[window.name].to_pylist(), every[window.name].to_pylist()), (seed, window)
    return len(case.rows) - len(kept)


def test_kept_rows_answer_every_later_as_of_join() -> None:
    assert sum(map(check_asof, range(1_500))) > 1_500


def test_kept_rows_answer_every_later_window_bit_for_bit() -> None:
    assert sum(map(check_windows, range(1_000))) > 500


@pytest.mark.soak
def test_kept_rows_answer_like_all_rows_in_a_hundred_thousand_cases() -> None:
    for seed in range(50_000):
        check_asof(seed)
        check_windows(seed)


def places(rows: Rows, **options: Any) -> list[int]:
    rule: dict[str, Any] = {"ttl_ns": None, "newest": True, "last_known": [], "window_ns": 0, **options}
    return [int(place) for place in retained_indices(rows, entities=2, at_ns=10, **rule)]


def rows_of(events: list[int], known: list[int] | None = None, codes: list[int] | None = None) -> Rows:
    return Rows(
        np.array(codes or [0] * len(events), np.int32),
        np.array(events, np.int64),
        None if known is None else np.array(known, np.int64),
    )


def test_only_the_newest_row_of_the_past_stays() -> None:
    assert places(rows_of([1, 7, 7, 3])) == [2]
    assert places(rows_of([1, 7, 5], codes=[0, 1, 1])) == [0, 1]


def test_rows_at_and_after_the_cut_stay_and_the_one_before_for_exclusive_readers() -> None:
    assert places(rows_of([8, 9, 10, 11])) == [1, 2, 3]


def test_a_row_older_than_its_ttl_goes_and_one_exactly_as_old_stays() -> None:
    assert places(rows_of([7]), ttl_ns=3) == [0]
    assert places(rows_of([7]), ttl_ns=2) == []


def test_a_late_row_stays_only_while_it_can_still_win() -> None:
    assert places(rows_of([5, 7, 8], [5, 7, 20])) == [1, 2]
    assert places(rows_of([5, 7, 6], [5, 7, 20])) == [1]
    assert places(rows_of([7, 7], [7, 20])) == [0, 1]


def test_a_row_known_at_the_cut_itself_is_visible_there() -> None:
    assert places(rows_of([7], [10])) == [0]
    assert places(rows_of([6, 7], [6, 10])) == [1]


def test_a_row_that_the_first_row_beats_goes() -> None:
    assert places(rows_of([7, 6], [7, 20])) == [0]
    assert places(rows_of([7, 5])) == [0]


def test_ties_of_events_stay_by_known_then_by_sequence() -> None:
    assert places(rows_of([7, 7], [9, 8])) == [0]
    assert places(rows_of([7, 7], [8, 9])) == [1]
    tied = Rows(np.zeros(2, np.int32), np.array([7, 7]), None, np.array([5, 3]))
    assert places(tied) == [0]
    assert places(Rows(tied.codes, tied.event_ns, np.array([8, 8]), np.array([5, 3]))) == [0]


def test_rows_never_known_and_rows_without_a_key_go() -> None:
    assert places(rows_of([12, 13], [INT64_MAX, 13])) == [1]
    assert places(rows_of([12, 13], codes=[-1, 0])) == [1]


def test_a_window_keeps_what_it_may_still_look_back_to() -> None:
    rows = rows_of([4, 5, 6, 12])
    assert places(rows, newest=False, window_ns=5) == [2, 3]
    assert places(rows, newest=False, window_ns=6) == [1, 2, 3]
    assert places(rows, newest=False, window_ns=INT64_MAX) == [0, 1, 2, 3]


def test_each_column_keeps_its_own_newest_value() -> None:
    rows = rows_of([1, 2, 3])
    masks = [np.array([True, False, False]), np.array([True, True, False]), None]
    assert places(rows, newest=False, last_known=masks) == [0, 1, 2]


def test_entities_may_each_have_a_cut_of_their_own() -> None:
    """Entities with cuts of their own are kept as if each were alone."""
    for seed in range(200):
        case = random_case(seed)
        cuts = np.random.default_rng(seed).integers(-2, 25, case.entities)
        rule: dict[str, Any] = {
            "entities": case.entities,
            "ttl_ns": case.tolerance_ns,
            "newest": True,
            "last_known": [np.array(case.valid, np.bool_)],
            "window_ns": seed % 7,
        }
        kept = retained_indices(case.rows, at_ns=cuts, **rule)
        alone = [
            place
            for entity, cut in enumerate(cuts)
            for place in retained_indices(case.rows, at_ns=int(cut), **rule)
            if case.rows.codes[place] == entity
        ]
        assert kept.tolist() == sorted(alone), seed


def test_readers_go_back_to_their_newest_row_or_to_the_start_of_their_window() -> None:
    rows = rows_of([1, 7, 9, 12], [1, 7, 11, 12], codes=[0, 0, 0, 1])

    def earliest(*, ttl_ns: int | None = None, newest: bool = True, window_ns: int = 0) -> list[int]:
        cut = np.array([10, 10])
        bounds = {"ttl_ns": ttl_ns, "newest": newest, "window_ns": window_ns}
        return [int(t) for t in earliest_used(rows, entities=2, at_ns=cut, **bounds)]  # type: ignore[arg-type]

    assert earliest() == [7, INT64_MIN]
    assert earliest(ttl_ns=3) == [7, 7]
    assert earliest(ttl_ns=2) == [8, 8]
    assert earliest(window_ns=3) == [7, INT64_MIN]
    assert earliest(window_ns=5) == [6, INT64_MIN]
    assert earliest(newest=False, window_ns=3) == [8, 8]
    assert earliest(newest=False, window_ns=INT64_MAX) == [10 - INT64_MAX + 1] * 2
    assert earliest(newest=False) == [10, 10]


def test_nothing_is_kept_where_nothing_reads() -> None:
    assert places(rows_of([1, 11]), newest=False) == []
    assert pa.array(places(rows_of([])), pa.int64()).to_pylist() == []
