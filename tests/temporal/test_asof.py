"""The as-of search on arrays: exact edges by hand, everything else against the oracle."""

import numpy as np
import pytest
from hypothesis import given, settings

from featurestore.core.time import INT64_MAX, INT64_MIN
from featurestore.errors import DefinitionError, SchemaError
from featurestore.temporal import asof, threads
from featurestore.temporal.asof import asof_indices, last_known_indices
from featurestore.temporal.merge import is_mergeable
from featurestore.temporal.rows import Rows
from featurestore.testing.oracle import asof_oracle_of
from featurestore.testing.strategies import JoinCase, join_cases, random_case


def side(
    event: list[int],
    codes: list[int] | None = None,
    known: list[int] | None = None,
    sequence: list[int] | None = None,
) -> Rows:
    def ints(values: list[int] | None) -> "np.ndarray[tuple[int], np.dtype[np.int64]] | None":
        return None if values is None else np.array(values, np.int64)

    return Rows(
        np.array([0] * len(event) if codes is None else codes, np.int32),
        np.array(event, np.int64),
        ints(known),
        ints(sequence),
    )


def choose(
    spine: Rows,
    rows: Rows,
    direction: str = "backward",
    tolerance_ns: int | None = None,
    boundary: str = "inclusive",
    count: int | None = 1,
) -> list[int]:
    found = asof_indices(
        spine,
        rows,
        entities=8,
        direction=direction,
        tolerance_ns=tolerance_ns,
        boundary=boundary,
        threads=count,
    )
    assert found.dtype == np.int32
    return [int(row) for row in found]


@pytest.mark.parametrize(
    ("event_ns", "tolerance_ns", "row"),
    [
        pytest.param(10, None, 0, id="the same instant is visible"),
        pytest.param(9, None, -1, id="one tick before is not"),
        pytest.param(15, 5, 0, id="an age equal to the ttl is visible"),
        pytest.param(16, 5, -1, id="one tick past the ttl is not"),
        pytest.param(10, 0, 0, id="a ttl of zero takes the same instant"),
        pytest.param(11, 0, -1, id="a ttl of zero takes nothing older"),
        pytest.param(INT64_MAX, None, 0, id="the last instant sees it"),
        pytest.param(INT64_MIN, None, -1, id="the first instant does not"),
    ],
)
def test_the_bounds_of_time(event_ns: int, tolerance_ns: int | None, row: int) -> None:
    assert choose(side([event_ns]), side([10]), tolerance_ns=tolerance_ns) == [row]


@pytest.mark.parametrize(
    ("direction", "boundary", "row"),
    [
        pytest.param("backward", "inclusive", 2, id="backward takes the last of the same instant"),
        pytest.param("backward", "exclusive", 0, id="backward exclusive takes the one before"),
        pytest.param("forward", "inclusive", 1, id="forward takes the first of the same instant"),
        pytest.param("forward", "exclusive", 3, id="forward exclusive takes the one after"),
        pytest.param("nearest", "inclusive", 2, id="nearest at no distance is backward"),
        pytest.param("nearest", "exclusive", 0, id="nearest at equal distances is backward"),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_ties_of_time(direction: str, boundary: str, row: int, count: int) -> None:
    assert choose(side([10]), side([9, 10, 10, 11]), direction, None, boundary, count) == [row]


def test_nearest_takes_the_strictly_nearer_one() -> None:
    assert choose(side([10]), side([7, 12]), "nearest") == [1]
    assert choose(side([10]), side([8, 12]), "nearest") == [0]
    assert choose(side([10]), side([8, 13]), "nearest", 1) == [-1]


@pytest.mark.parametrize("direction", ["backward", "forward", "nearest"])
def test_null_keys_match_nothing_on_either_side(direction: str) -> None:
    assert choose(side([5, 5], [-1, 0]), side([5, 5], [-1, -1]), direction) == [-1, -1]


def test_rows_of_other_entities_are_never_taken() -> None:
    assert choose(side([10, 10], [0, 1]), side([9, 8], [1, 2])) == [-1, 0]


def test_a_late_row_hides_until_it_is_known_and_then_wins_by_its_event_time() -> None:
    rows = side([10, 20], known=[10, 50])
    assert choose(side([30, 49, 50, 60]), rows) == [0, 0, 1, 1]


def test_a_correction_of_an_old_event_does_not_displace_a_newer_one() -> None:
    assert choose(side([60]), side([10, 20, 10], known=[10, 20, 50])) == [1]


def test_a_correction_of_the_same_event_wins_once_it_is_known() -> None:
    rows = side([10, 10], known=[30, 10])
    assert choose(side([29, 30]), rows) == [1, 0]


def test_a_row_never_known_is_never_seen_even_by_a_reader_who_may_know_everything() -> None:
    spine = side([10, 10], known=[INT64_MAX, 10])
    assert choose(spine, side([5, 6], known=[5, INT64_MAX])) == [0, 0]


def test_the_ttl_is_counted_from_the_event_and_not_from_when_it_was_known() -> None:
    rows = side([10], known=[18])
    assert choose(side([18, 20, 21]), rows, tolerance_ns=10) == [0, 0, -1]


def test_a_knowledge_cutoff_of_the_reader_bounds_rows_without_known_times() -> None:
    spine = side([30, 30], known=[15, 40])
    assert choose(spine, side([10, 20])) == [0, 1]
    assert choose(spine, side([20, 40]), "forward") == [-1, 1]


def test_without_any_known_times_a_forward_join_may_look_ahead() -> None:
    assert choose(side([10]), side([12]), "forward") == [0]


def test_sequence_breaks_ties_before_position_and_after_known() -> None:
    assert choose(side([10]), side([10, 10], sequence=[7, 3])) == [0]
    assert choose(side([10]), side([10, 10], known=[9, 10], sequence=[7, 3])) == [1]
    assert choose(side([10]), side([10, 10], sequence=[7, 3]), "forward") == [1]


@pytest.mark.parametrize("direction", ["backward", "forward", "nearest"])
def test_distances_over_the_whole_of_int64_do_not_wrap(direction: str) -> None:
    low, high = side([INT64_MIN]), side([INT64_MAX])
    expected = {"backward": [0], "forward": [-1], "nearest": [0]}[direction]
    assert choose(high, low, direction) == expected
    assert choose(high, low, direction, INT64_MAX) == [-1]
    mirrored = {"backward": [-1], "forward": [0], "nearest": [0]}[direction]
    assert choose(low, high, direction) == mirrored
    assert choose(low, high, direction, INT64_MAX) == [-1]


@pytest.mark.parametrize("direction", ["backward", "forward", "nearest"])
def test_empty_sides(direction: str) -> None:
    assert choose(side([]), side([1]), direction) == []
    assert choose(side([1]), side([]), direction) == [-1]


def test_read_only_and_strided_arrays_are_taken_as_they_are() -> None:
    event = np.arange(20, dtype=np.int64)[::2]
    codes = np.zeros(10, np.int32)
    for array in (event, codes):
        array.flags.writeable = False
    assert choose(side([5]), Rows(codes, event)) == [2]
    assert choose(Rows(codes, event), Rows(codes, event)) == list(range(10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "sideways"}, "direction is 'sideways'"),
        ({"boundary": "open"}, "boundary is 'open'"),
        ({"tolerance_ns": -1}, "tolerance is -1 ns"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_by_name(options: dict[str, str], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        choose(side([1]), side([1]), **options)  # type: ignore[arg-type]


def test_arrays_that_do_not_fit_together_are_refused_by_name() -> None:
    with pytest.raises(SchemaError, match=r"rows.event_ns is int64 of shape \(2,\)"):
        choose(side([1]), Rows(np.zeros(1, np.int32), np.zeros(2, np.int64)))
    with pytest.raises(SchemaError, match=r"spine.codes is int64"):
        choose(Rows(np.zeros(1, np.int64), np.zeros(1, np.int64)), side([1]))
    for codes in ([8], [-2]):
        with pytest.raises(SchemaError, match=r"rows.codes holds -?\d to -?\d, where there are 8 entities"):
            choose(side([1]), side([1], codes))
        with pytest.raises(SchemaError, match=r"spine.codes holds"):
            choose(side([1], codes), side([1]))
    with pytest.raises(SchemaError, match="valid mask"):
        last_known_indices(
            side([1]),
            side([1]),
            [np.ones(2, np.bool_)],
            entities=1,
            tolerance_ns=None,
            boundary="inclusive",
        )


def test_a_merge_is_taken_only_where_order_and_range_allow_it() -> None:
    assert is_mergeable(side([1, 2]), side([1, 1, 2]))
    assert not is_mergeable(side([2, 1]), side([1, 2]))
    assert not is_mergeable(side([1, 2]), side([2, 1]))
    assert not is_mergeable(side([1, 2]), side([1, 2], known=[1, 2]))
    assert not is_mergeable(side([1], known=[1]), side([1]))
    assert is_mergeable(side([1]), side([1, 1], sequence=[1, 2]))
    assert not is_mergeable(side([1]), side([1, 1], sequence=[2, 1]))
    assert not is_mergeable(side([INT64_MIN, 0]), side([0, INT64_MAX]))


@pytest.mark.parametrize("place", [1, 2, 4095, 4096, 4097, 8191, 8192, 8193, 9999])
def test_a_fall_is_found_wherever_it_is(place: int) -> None:
    times = np.arange(10_000)
    codes = np.zeros(10_000, np.int32)
    assert is_mergeable(Rows(codes, times), side([1]))
    times[place] -= 1
    assert is_mergeable(Rows(codes, times), side([1])), "an equal time is no fall"
    times[place] -= 1
    assert not is_mergeable(Rows(codes, times), side([1]))
    assert not is_mergeable(side([1]), Rows(codes, times))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("entities", [1, 5])
@pytest.mark.parametrize("ahead", [0, 5000], ids=["rows go on after the last reader", "rows end before it"])
def test_either_side_may_go_on_after_the_other(
    count: int, entities: int, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "MIN_ROWS", 1)
    rng = np.random.default_rng(count)
    spine = Rows(
        rng.integers(0, entities, 3000).astype(np.int32), np.sort(rng.integers(0, 900, 3000)) + ahead
    )
    rows = Rows(rng.integers(0, entities, 3000).astype(np.int32), np.sort(rng.integers(0, 3000, 3000)))
    assert is_mergeable(spine, rows)
    for direction in ("backward", "forward", "nearest"):
        found = choose(spine, rows, direction, None, "inclusive", count)
        some = rng.integers(0, 3000, 12)
        part = Rows(spine.codes[some], spine.event_ns[some])
        assert [found[i] for i in some] == asof_oracle_of(part, rows, direction=direction)


@pytest.fixture
def every_row_is_worth_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MIN_ROWS", 1)
    monkeypatch.setattr(asof, "_SAMPLE_ROWS", 4)
    monkeypatch.setattr(asof, "_TANGLED_ROWS", 5)


def check_case(case: JoinCase, count: int) -> None:
    rule = {"tolerance_ns": case.tolerance_ns, "boundary": case.boundary}
    found = asof_indices(
        case.spine,
        case.rows,
        entities=case.entities,
        direction=case.direction,
        tolerance_ns=case.tolerance_ns,
        boundary=case.boundary,
        threads=count,
    )
    expected = asof_oracle_of(case.spine, case.rows, direction=case.direction, **rule)  # type: ignore[arg-type]
    assert found.tolist() == expected
    valid = np.array(case.valid, np.bool_)
    known = last_known_indices(
        case.spine,
        case.rows,
        [valid, None],
        entities=case.entities,
        tolerance_ns=case.tolerance_ns,
        boundary=case.boundary,
        threads=count,
    )
    last = asof_oracle_of(case.spine, case.rows, valid=case.valid, **rule)  # type: ignore[arg-type]
    assert known[0].tolist() == last
    assert known[1].tolist() == asof_oracle_of(case.spine, case.rows, **rule)  # type: ignore[arg-type]


@settings(max_examples=700, deadline=None)
@given(join_cases())
def test_every_drawn_case_agrees_with_the_oracle(case: JoinCase) -> None:
    check_case(case, 1)


@pytest.mark.usefixtures("every_row_is_worth_a_thread")
@pytest.mark.parametrize("block", range(4))
def test_thousands_of_random_cases_agree_with_the_oracle_on_one_to_four_threads(block: int) -> None:
    for seed in range(900):
        check_case(random_case(900 * block + seed), 1 + seed % 4)


@pytest.mark.soak
@pytest.mark.usefixtures("every_row_is_worth_a_thread")
@pytest.mark.parametrize("block", range(40))
@pytest.mark.timeout(1200)
def test_a_hundred_thousand_random_cases_agree_with_the_oracle(block: int) -> None:
    for seed in range(2500):
        check_case(random_case(1_000_000 + 2500 * block + seed), 1 + seed % 4)
