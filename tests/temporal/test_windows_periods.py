"""Periods of windows, and the answers of readers whom no batch reaches."""

import numpy as np
import pyarrow as pa
import pytest
from tests.temporal.test_windows import one_entity

from featurestore.core.time import INT64_MAX, INT64_MIN
from featurestore.temporal import windows_order
from featurestore.temporal.memory import allocate
from featurestore.temporal.rows import Rows
from featurestore.temporal.windows import FUNCTIONS, Window, window_aggregate


@pytest.mark.parametrize("reach", [1, 3, 12])
@pytest.mark.parametrize("seed", range(20))
def test_periods_are_all_readers_once_each_with_the_rows_it_may_see(
    seed: int, reach: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows_order, "PERIOD_ROWS", 10)
    rng = np.random.default_rng(seed)
    spine, rows = (one_entity(np.sort(rng.integers(0, 60, count)).tolist()) for count in (40, 100))
    cuts = windows_order.periods(spine, rows, reach, entities=1, threads=1)
    assert [q for first, last, _, _ in cuts for q in range(first, last)] == list(range(40))
    assert int((cuts[:, 3] - cuts[:, 2]).sum()) <= 125
    for first, last, row, row_end in cuts if len(cuts) > 1 else []:
        begin, end = spine.event_ns[first] - reach, spine.event_ns[last - 1]
        assert np.array_equal(
            np.arange(row, row_end), np.flatnonzero((begin < rows.event_ns) & (rows.event_ns <= end))
        )
    assert len(cuts) > 4 or reach == 12


@pytest.mark.parametrize(
    ("spine", "rows", "entities"),
    [
        pytest.param([1, 2, 4, 3], [1, 2, 3, 4], 1, id="readers out of order"),
        pytest.param([1, 2, 3, 4], [1, 3, 2, 4], 1, id="rows out of order"),
        pytest.param([1, 2, 3, 4], [1, 2, 3, 4], 2, id="more entities than a period has rows"),
        pytest.param([4], [1, 2, 3, 4, 4, 4, 4], 1, id="one reader"),
    ],
)
def test_nothing_is_cut_into_periods_that_are_wrong_or_not_worth_it(
    spine: list[int], rows: list[int], entities: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows_order, "PERIOD_ROWS", 1)
    sides = (one_entity(spine), one_entity(rows))
    assert windows_order.periods(*sides, 1, entities=entities, threads=1).tolist() == [
        [0, len(spine), 0, len(rows)]
    ]


def test_periods_reach_back_to_the_first_instant_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_order, "PERIOD_ROWS", 1)
    monkeypatch.setattr(windows_order, "_SHARED", 0)
    spine = one_entity([INT64_MIN, INT64_MIN + 1, INT64_MIN + 2, INT64_MIN + 3])
    rows = one_entity([INT64_MIN, INT64_MIN, INT64_MIN + 1, INT64_MIN + 3])
    cuts = windows_order.periods(spine, rows, 2, entities=1, threads=1)
    assert cuts.tolist() == [[0, 2, 0, 3], [2, 4, 2, 4]]
    windows = [Window("*", "count", 2, name="n")]
    assert window_aggregate(spine, rows, {}, windows, entities=1)["n"].to_pylist() == [2, 3, 1, 1]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("column", ["x", "word"])
def test_readers_without_a_key_or_rows_of_their_key_get_nothing_whatever_memory_held(
    function: str, column: str
) -> None:
    if column == "word" and function in {"sum", "mean", "std", "var"}:
        return
    used = [allocate(100_000, np.dtype(kind))[1] for kind in ("i8", "i4")]
    for array in used:
        array[:] = 7
    del array, used  # the pool hands it out again as it is
    spine = Rows(np.tile(np.array([-1, 0, 1, 2, 5], np.int32), 20_000), np.arange(100_000))
    rows = Rows(np.array([1, 3, 1, 3], np.int32), np.arange(4))
    columns = {"x": pa.array([1.0, 2.0, 4.0, 8.0]), "word": pa.array(["b", "c", "a", "d"])}
    windows = [Window(column, function, INT64_MAX, n=1 if function == "last_n" else None, name="y")]
    got = window_aggregate(spine, rows, columns, windows, entities=6)["y"].to_pylist()
    nothing = 0 if function in {"count", "n_distinct"} else None
    assert all(value == nothing for place, value in enumerate(got) if place % 5 != 2)
    assert got[7] != nothing
