"""Windows against a loop over exact fractions, against other engines, and against themselves."""

import math
import time
from decimal import Decimal
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from tests.temporal.window_cases import WindowCase, bits, random_window_case, subset, window_cases

from featurestore.core.time import INT64_MAX, INT64_MIN, Int64Array
from featurestore.errors import DefinitionError, ExpressionError, SchemaError
from featurestore.temporal import threads, windows_batch, windows_order
from featurestore.temporal.rows import Rows, frozen
from featurestore.temporal.windows import FUNCTIONS, Window, window_aggregate
from featurestore.temporal.windows_order import group_rows
from featurestore.testing.window_oracle import oracle_aggregate, same

SUMS = ("count", "sum", "mean", "min", "max", "std", "var")


def one_entity(times: list[int], known: list[int] | None = None) -> Rows:
    return Rows(
        np.zeros(len(times), np.int32),
        np.array(times, np.int64),
        None if known is None else np.array(known, np.int64),
    )


def aggregate(values: Any, function: str, *, at: int = 100, window: int = 1000, n: int | None = None) -> Any:
    column = values if isinstance(values, pa.Array) else pa.array(values)
    rows = one_entity(list(range(1, len(column) + 1)))
    windows = [Window("x", function, window, 0, n, "y")]
    return window_aggregate(one_entity([at]), rows, {"x": column}, windows, entities=1)["y"]


@settings(max_examples=300, deadline=None)
@given(case=window_cases())
def test_every_function_is_the_oracles_bit_for_bit(case: WindowCase) -> None:
    case.check()


def check_in_batches(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a case whole (every third one), or in short periods and small batches, on one or two threads."""
    most = (2**15, 1, 4)[seed % 3]
    monkeypatch.setattr(windows_order, "PERIOD_ROWS", most)
    monkeypatch.setattr(windows_order, "_SHARED", 0)
    monkeypatch.setattr(windows_order, "BATCH_READERS", most)
    monkeypatch.setattr(windows_order, "BATCH_ROWS", 2 * most)
    monkeypatch.setattr(windows_order, "FEW_READERS", 1 + seed % 2)
    random_window_case(seed).check(threads=1 + seed % 2)


def test_every_function_is_the_oracles_in_thousands_of_random_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MIN_ROWS", 1)
    for seed in range(2_000):
        check_in_batches(seed, monkeypatch)


@pytest.mark.soak
def test_every_function_is_the_oracles_in_a_hundred_thousand_random_cases(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "MIN_ROWS", 1)
    for seed in range(10_000, 110_000):
        check_in_batches(seed, monkeypatch)


def rows_of_first_reader(spine: windows_order.Grouped, rows: windows_order.Grouped, cut: Int64Array) -> int:
    """Count the rows of a part up to its first reader; 0 where it is no part but whole entities."""
    if cut[1] - cut[0] > 1:
        return 0
    time, event = spine.taken(spine.rows.event_ns, *cut[2:4]), rows.taken(rows.rows.event_ns, *cut[4:6])
    return int((event <= time[0]).sum())


def cuts_are_small_and_whole(seed: int) -> bool:
    """Whether batches hold few readers and rows, and every reader with a key is in exactly one of them."""
    rng = np.random.default_rng(seed)
    sides = []
    for count in (40, 60):
        codes = np.minimum(rng.geometric(0.3, count) - 2, 4).astype(np.int32)
        sides.append(group_rows(Rows(codes, rng.integers(0, 50, count)), entities=5, threads=1))
    spine, rows = sides
    cuts = windows_order.batches(spine, rows, 7, 1)
    readers = [q for cut in cuts for q in range(cut[2], cut[3])]
    wanted = [q for entity in range(5) for q in range(spine.starts[entity], spine.ends[entity])]
    small = True
    for cut in cuts:
        seen = rows_of_first_reader(spine, rows, cut)
        count, most = cut[3] - cut[2], max(windows_order.BATCH_READERS, seen // 2)
        few = cut[5] - cut[4] <= max(windows_order.BATCH_ROWS, 2 * seen) or count <= windows_order.FEW_READERS
        small = small and few and bool(count <= most)
    return small and readers == wanted


def tasks_have_rows(ranges: Any) -> bool:
    """Whether readers who see no row at all are left out of the tasks, and the others are in one."""
    bounds = frozen(np.array([0, 2])), frozen(np.array([2, 4]))
    low, high = np.array([[0, 0, 0, 1]], np.int32), np.array([0, 0, 1, 3], np.int32)
    out = np.empty((4, 5), np.int64)
    return bool(ranges.cut_tasks(bounds, low, high, out) == 1 and out[0].tolist() == [2, 4, 0, 3, 1])


def test_readers_who_see_no_row_are_no_task() -> None:
    assert tasks_have_rows(windows_batch._ranges)


@pytest.mark.parametrize(("readers", "rows"), [(1, 3), (5, 9), (9, 5), (12, 30)])
def test_batches_are_small_and_miss_no_reader(
    readers: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows_order, "BATCH_READERS", readers)
    monkeypatch.setattr(windows_order, "BATCH_ROWS", rows)
    monkeypatch.setattr(windows_order, "FEW_READERS", 1)
    assert all(map(cuts_are_small_and_whole, range(60)))


def parts_hold_rows_a_few_times(window: int, count: int = 400_000) -> bool:
    """Whether the parts of one hot entity are all of its readers, and hold each of its rows a few times."""
    side = group_rows(Rows(np.zeros(count, np.int32), np.arange(count)), entities=1, threads=1)
    cuts = windows_order.batches(side, side, window, 1)
    whole = cuts[0, 2] == 0 and (cuts[1:, 2] == cuts[:-1, 3]).all() and cuts[-1, 3] == count
    return bool(whole) and int((cuts[:, 5] - cuts[:, 4]).sum()) <= 4 * count


@pytest.mark.parametrize("window", [1_000, 10_000, 100_000, 200_000, 400_000])
def test_parts_of_a_hot_entity_hold_its_rows_a_few_times_however_long_the_window(window: int) -> None:
    assert parts_hold_rows_a_few_times(window)


def test_windows_of_many_blocks_of_rows_are_the_oracles() -> None:
    for seed in range(30):
        random_window_case(seed, most_spine=40, most_rows=500).check()


def test_windows_longer_than_a_task_are_cut_without_a_trace() -> None:
    rng = np.random.default_rng(3)
    times = np.sort(rng.integers(0, 10**6, 60_000))
    values = pa.array(rng.normal(size=60_000) * rng.choice([1e-9, 1.0, 1e9], 60_000))
    spine = one_entity(np.sort(rng.integers(0, 10**6, 3_000)).tolist())
    windows = [Window("x", f, w, 0, None, f"{f}{w}") for f in SUMS for w in (900, 300_000)]
    got = window_aggregate(spine, one_entity(times.tolist()), {"x": values}, windows, entities=1)
    for place in rng.integers(0, 3_000, 12):
        t = int(spine.event_ns[place])
        near = np.flatnonzero((times <= t) & (times > t - 300_000))
        rows, columns = one_entity(times[near].tolist()), {"x": values.take(pa.array(near))}
        wanted = oracle_aggregate(one_entity([t]), rows, columns, windows)
        for window in windows:
            assert same(got[window.name][int(place)].as_py(), wanted[window.name][0]), window


@pytest.mark.parametrize("late", [False, True])
def test_answers_do_not_depend_on_threads_or_on_the_order_of_rows(late: bool) -> None:
    rng = np.random.default_rng(5)
    spine_rows, rows_count = 60_000, 200_000
    event = np.sort(rng.integers(0, 10**9, rows_count))
    known = event + np.where(rng.random(rows_count) < 0.05, rng.integers(0, 10**7, rows_count), 0)
    codes = rng.integers(0, 50, rows_count).astype(np.int32)
    values = rng.normal(size=rows_count)
    spine = Rows(
        rng.integers(0, 50, spine_rows).astype(np.int32), np.sort(rng.integers(0, 10**9, spine_rows))
    )
    windows = [Window("x", f, w, 0, None, f"{f}{w}") for f in (*SUMS, "last") for w in (10**6, 10**8)]

    def run(order: Any, threads: int) -> dict[str, pa.Array]:
        rows = Rows(codes[order], event[order], known[order] if late else None)
        columns = {"x": pa.array(values[order])}
        return window_aggregate(spine, rows, columns, windows, entities=50, threads=threads)

    in_order = np.arange(rows_count)
    wanted = run(in_order, 1)
    orders = [in_order, np.argsort(codes, kind="stable"), rng.permutation(rows_count)]
    for count, order in zip((4, 2, 3), orders, strict=True):
        got = run(order, count)
        for name in wanted:
            assert np.array_equal(bits(got[name]), bits(wanted[name])), (name, count)


def test_sums_are_exact_after_millions_of_updates() -> None:
    count = 2_000_000
    values = np.tile([1e16, 3.0, -1e16, 1e-3], count // 4)
    spine = one_entity(list(range(count - 1_000, count + 1)))
    got = window_aggregate(
        spine,
        one_entity(list(range(1, count + 1))),
        {"x": pa.array(values)},
        [Window("x", "sum", 8, name="s")],
        entities=1,
    )["s"].to_pylist()
    wanted = [math.fsum(values[t - 8 : t]) for t in range(count - 1_000, count + 1)]
    assert got == wanted


@pytest.mark.parametrize(
    ("event_ns", "window_ns", "tile_ns", "counted"),
    [
        pytest.param(100, 10, 0, True, id="a row at the reader's own time is inside"),
        pytest.param(101, 10, 0, False, id="a row after the reader is outside"),
        pytest.param(91, 10, 0, True, id="a row just after the start is inside"),
        pytest.param(90, 10, 0, False, id="a row at the start is outside"),
        pytest.param(85, 10, 8, False, id="a tile's own start is outside: 100 - 10 = 90 falls to 88"),
        pytest.param(89, 10, 8, True, id="a tile takes in what is after its start"),
        pytest.param(88, 10, 8, False, id="a tile's start is a bound like any other"),
    ],
)
def test_the_bounds_of_a_window(event_ns: int, window_ns: int, tile_ns: int, counted: bool) -> None:
    windows = [Window("*", "count", window_ns, tile_ns, None, "n")]
    got = window_aggregate(one_entity([100]), one_entity([event_ns]), {}, windows, entities=1)["n"]
    assert got.to_pylist() == [int(counted)]


def test_a_tile_rounds_down_before_1970_too() -> None:
    windows = [Window("*", "count", 4, 4, None, "n")]
    rows = one_entity([-9, -8, -7, -3])
    got = window_aggregate(one_entity([-3]), rows, {}, windows, entities=1)["n"]
    assert got.to_pylist() == [2]  # starts at floor(-7 / 4) * 4 = -8


def test_windows_reach_the_ends_of_time() -> None:
    rows = one_entity([INT64_MIN, INT64_MIN + 1, 0, INT64_MAX])
    spine = one_entity([INT64_MIN, INT64_MIN + 1, INT64_MAX])
    windows = [Window("*", "count", w, 0, None, f"n{w}") for w in (1, INT64_MAX)]
    got = window_aggregate(spine, rows, {}, windows, entities=1)
    assert got["n1"].to_pylist() == [1, 1, 1]
    assert got[f"n{INT64_MAX}"].to_pylist() == [1, 2, 1]


@pytest.mark.parametrize(
    ("known_ns", "cutoff_ns", "counted"),
    [
        pytest.param(100, None, True, id="known at the reader's time counts"),
        pytest.param(101, None, False, id="known one tick later does not"),
        pytest.param(101, 101, True, id="a reader may know more than its own time"),
        pytest.param(95, 94, False, id="a reader may know less than its own time"),
        pytest.param(INT64_MAX, INT64_MAX, False, id="a row that is never known is never counted"),
    ],
)
def test_the_bounds_of_knowledge(known_ns: int, cutoff_ns: int | None, counted: bool) -> None:
    spine = one_entity([100], None if cutoff_ns is None else [cutoff_ns])
    windows = [Window("*", "count", 50, 0, None, "n")]
    got = window_aggregate(spine, one_entity([90], [known_ns]), {}, windows, entities=1)["n"]
    assert got.to_pylist() == [int(counted)]


def test_an_empty_window_counts_nothing_and_is_null_otherwise() -> None:
    for function in FUNCTIONS:
        n = 3 if function == "last_n" else None
        got = aggregate(pa.array([1.0]), function, at=0, n=n)
        assert got.to_pylist() == [0 if function in {"count", "n_distinct"} else None], function


def test_nulls_are_skipped_and_a_star_counts_them() -> None:
    column = pa.array([1, None, 3, None])
    assert aggregate(column, "count").to_pylist() == [2]
    assert aggregate(column, "last").to_pylist() == [3]
    assert aggregate(column, "first").to_pylist() == [1]
    rows = one_entity([1, 2, 3, 4])
    star = window_aggregate(one_entity([9]), rows, {}, [Window("*", "count", 99, name="n")], entities=1)
    assert star["n"].to_pylist() == [4]


def test_std_and_var_of_a_single_value_are_null_and_of_equal_values_zero() -> None:
    assert aggregate([5.5], "std").to_pylist() == [None]
    assert aggregate([5.5], "var").to_pylist() == [None]
    assert aggregate([1e200 / 3] * 7, "std").to_pylist() == [0.0]


def test_nan_is_a_value_that_sums_and_extremes_pass_on() -> None:
    values = [1.0, float("nan"), 2.0, float("nan")]
    for function in ("sum", "mean", "std", "var", "min", "max"):
        assert math.isnan(aggregate(values, function)[0].as_py()), function
    assert aggregate(values, "n_distinct").to_pylist() == [3]
    assert aggregate(values, "count").to_pylist() == [4]
    # It leaves with its row.
    assert aggregate(values, "sum", at=5, window=3).is_valid().to_pylist() == [True]
    assert aggregate([float("nan"), 2.0, 3.0], "sum", at=3, window=2).to_pylist() == [5.0]


def test_infinities_add_as_ieee_says() -> None:
    inf = float("inf")
    assert aggregate([1.0, inf, inf], "sum").to_pylist() == [inf]
    assert aggregate([1.0, -inf], "mean").to_pylist() == [-inf]
    assert math.isnan(aggregate([inf, -inf], "sum")[0].as_py())
    assert math.isnan(aggregate([1.0, inf], "std")[0].as_py())
    assert aggregate([1.0, inf, -inf], "max").to_pylist() == [inf]


def test_a_mean_and_a_deviation_survive_where_the_sum_overflows() -> None:
    assert aggregate([1.5e308, 1.5e308], "sum").to_pylist() == [float("inf")]
    assert aggregate([1.5e308, 1.5e308], "mean").to_pylist() == [1.5e308]
    assert aggregate([1e300, 3e300], "std")[0].as_py() == pytest.approx(math.sqrt(2) * 1e300, rel=1e-15)


def test_last_n_is_oldest_first_and_padded_on_the_left() -> None:
    got = aggregate(pa.array([1, None, 3, 4]), "last_n", n=2)
    assert got.type == pa.list_(pa.int64(), 2)
    assert got.to_pylist() == [[3, 4]]
    assert aggregate(pa.array([1, None]), "last_n", n=3).to_pylist() == [[None, None, 1]]


def test_ties_are_broken_by_known_sequence_and_position() -> None:
    rows = Rows(np.zeros(4, np.int32), np.full(4, 5), np.array([6, 5, 6, 6]), np.array([1, 9, 2, 2]))
    columns = {"x": pa.array(["known later", "known first", "higher", "last"])}
    windows = [Window("x", f, 9, 0, None, f) for f in ("first", "last")]
    got = window_aggregate(one_entity([7]), rows, columns, windows, entities=1)
    assert got["first"].to_pylist() == ["known first"]
    assert got["last"].to_pylist() == ["last"]


TYPED = [
    pa.array([3, 1, 2], pa.int8()),
    pa.array([3, 1, 2], pa.uint16()),
    pa.array([2**64 - 1, 0, 2**63], pa.uint64()),
    pa.array([INT64_MIN, INT64_MAX, 0], pa.int64()),
    pa.array([1.5, -0.0, 2.25], pa.float16()),
    pa.array([1.5, float("inf"), 2.25], pa.float32()),
    pa.array([True, False, True]),
    pa.array([3, 1, 2], pa.timestamp("ns", "America/New_York")),
    pa.array([3, 1, 2], pa.date32()),
    pa.array([3, 1, 2], pa.time32("ms")),
    pa.array([3, 1, 2], pa.duration("s")),
    pa.array(["b", "a", "ab"], pa.string()),
    pa.array(["b", "a", "ab"], pa.large_string()),
    pa.array([b"b", b"a", b"ab"], pa.binary()),
    pa.array(["b", "a", "b"]).dictionary_encode(),
    pa.array([Decimal("3.5"), Decimal("1.25"), Decimal(2)], pa.decimal128(20, 3)),
]


@pytest.mark.parametrize("column", TYPED, ids=lambda column: str(column.type))
def test_min_max_first_and_last_keep_the_columns_type(column: pa.Array) -> None:
    values = column.to_pylist()
    for function, wanted in (
        ("min", min(values)),
        ("max", max(values)),
        ("first", values[0]),
        ("last", values[-1]),
    ):
        got = aggregate(column, function)
        assert got.type == column.type
        assert got.to_pylist() == [wanted], function
    assert aggregate(column, "n_distinct").to_pylist() == [len(set(values))]
    assert aggregate(column, "last_n", n=2).to_pylist() == [values[1:]]


def test_first_last_and_last_n_take_any_type() -> None:
    nested = pa.array([{"a": [1]}, None, {"a": []}])
    assert aggregate(nested, "last").to_pylist() == [{"a": []}]
    assert aggregate(nested, "first").type == nested.type
    assert aggregate(nested, "last_n", n=2).to_pylist() == [[{"a": [1]}, {"a": []}]]
    assert aggregate(nested, "count").to_pylist() == [2]


def test_sums_of_integers_and_booleans_are_int64() -> None:
    assert aggregate(pa.array([200, 100], pa.uint8()), "sum").to_pylist() == [300]
    assert aggregate(pa.array([True, True, False]), "sum").to_pylist() == [2]
    assert aggregate([2**62, 2**62 - 1, 1 - 2**62], "sum").to_pylist() == [2**62]
    assert aggregate([2**62, 2**62 + 2], "mean").to_pylist() == [float(2**62)]


@pytest.mark.parametrize("late", [False, True])
def test_a_sum_beyond_int64_is_an_error_that_names_the_column(late: bool) -> None:
    rows = one_entity([1, 2, 3], [3, 2, 3] if late else None)
    windows = [Window("size", "sum", 9, 0, None, "s")]
    with pytest.raises(ExpressionError, match="'size' does not fit int64"):
        window_aggregate(one_entity([5]), rows, {"size": pa.array([2**62, 2**62, 1])}, windows, entities=1)


def test_a_null_key_or_time_sees_nothing_and_is_seen_by_nobody() -> None:
    spine = Rows(np.array([-1, 0], np.int32), np.array([9, 9]))
    rows = Rows(np.array([0, -1], np.int32), np.array([5, 6]))
    windows = [Window("x", f, 9, 0, None, f) for f in ("count", "sum", "last")]
    got = window_aggregate(spine, rows, {"x": pa.array([1, 2])}, windows, entities=1)
    assert got["count"].to_pylist() == [0, 1]
    assert got["sum"].to_pylist() == [None, 1]
    assert got["last"].to_pylist() == [None, 1]


def test_empty_sides_and_no_windows_are_fine() -> None:
    windows = [Window("x", f, 9, 0, 1 if f == "last_n" else None, f) for f in FUNCTIONS]
    none, column = one_entity([]), pa.array([], pa.float64())
    assert window_aggregate(one_entity([1]), none, {"x": column}, windows, entities=1)[
        "count"
    ].to_pylist() == [0]
    assert (
        len(window_aggregate(none, one_entity([1]), {"x": pa.array([1.0])}, windows, entities=1)["sum"]) == 0
    )
    assert window_aggregate(one_entity([1]), none, {}, [], entities=1) == {}


def test_a_code_beyond_the_entities_is_refused() -> None:
    windows = [Window("*", "count", 9, name="n")]
    with pytest.raises(SchemaError, match="holds 0 to 0, where there are 0 entities"):
        window_aggregate(one_entity([1]), one_entity([1]), {}, windows, entities=0)


def test_chunks_and_slices_are_read_where_they_begin() -> None:
    column = pa.chunked_array([pa.array([9.0, 1.0, None]).slice(1), pa.array([4.0, 5.0]).slice(1)])
    rows = one_entity([1, 2, 3])
    windows = [Window("x", f, 9, 0, None, f) for f in ("sum", "max", "last", "n_distinct")]
    got = window_aggregate(one_entity([5]), rows, {"x": column}, windows, entities=1)
    assert [got[w.name][0].as_py() for w in windows] == [6.0, 5.0, 5.0, 2]


@pytest.mark.parametrize(
    ("window", "error", "message"),
    [
        pytest.param(Window("x", "median", 5, name="y"), DefinitionError, "median", id="an unknown function"),
        pytest.param(
            Window("x", "sum", 0, name="y"), DefinitionError, "length 0", id="a window of no length"
        ),
        pytest.param(Window("x", "sum", 5, 6, name="y"), DefinitionError, "tile 6", id="a tile beyond it"),
        pytest.param(Window("x", "last_n", 5, name="y"), DefinitionError, "last_n", id="last_n without n"),
        pytest.param(
            Window("*", "sum", 5, name="y"), DefinitionError, "sum", id="a star that is not counted"
        ),
        pytest.param(Window("z", "sum", 5, name="y"), SchemaError, "'z'", id="a column that is not there"),
        pytest.param(Window("s", "sum", 5, name="y"), SchemaError, "'s' is string", id="a sum of strings"),
        pytest.param(Window("d", "std", 5, name="y"), SchemaError, "'d' is decimal", id="a std of decimals"),
        pytest.param(Window("l", "min", 5, name="y"), SchemaError, "'l' is list", id="a least list"),
    ],
)
def test_what_cannot_be_aggregated_is_said_before_any_work(
    window: Window, error: type[Exception], message: str
) -> None:
    columns = {
        "x": pa.array([1.0]),
        "s": pa.array(["a"]),
        "d": pa.array([Decimal(1)], pa.decimal128(20, 2)),
        "l": pa.array([[1]]),
    }
    with pytest.raises(error, match=message.replace("(", r"\(")):
        window_aggregate(one_entity([1]), one_entity([1]), columns, [window], entities=1)


def test_names_and_lengths_must_fit() -> None:
    twice = [Window("x", "sum", 5, name="y"), Window("x", "min", 5, name="y")]
    with pytest.raises(DefinitionError, match="two windows are named 'y'"):
        window_aggregate(one_entity([1]), one_entity([1]), {"x": pa.array([1])}, twice, entities=1)
    with pytest.raises(SchemaError, match="'x' has 2 values for 1 rows"):
        window_aggregate(one_entity([1]), one_entity([1]), {"x": pa.array([1, 2])}, twice[:1], entities=1)


def _market(seed: int) -> tuple[pa.Table, Rows, list[Window]]:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 7, 5_000)
    table = pa.table(
        {"k": codes, "t": np.sort(rng.integers(0, 50_000, 5_000)), "x": rng.normal(100, 5, 5_000)}
    )
    rows = Rows(codes.astype(np.int32), table["t"].to_numpy())
    return table, rows, [Window("x", f, 700, 0, None, f) for f in (*SUMS, "n_distinct")]


def test_duckdbs_range_frames_agree() -> None:
    table, rows, windows = _market(1)
    got = window_aggregate(rows, rows, {"x": table["x"]}, windows, entities=7)
    database = duckdb.connect()
    database.register("events", table)
    frame = "OVER (PARTITION BY k ORDER BY t RANGE BETWEEN 699 PRECEDING AND CURRENT ROW)"
    sql = {"mean": "avg(x)", "std": "stddev_samp(x)", "var": "var_samp(x)", "n_distinct": "count(DISTINCT x)"}
    for window in windows:
        call = sql.get(window.function, f"{window.function}(x)")
        query = f"SELECT k, t, {call} {frame} AS y FROM events ORDER BY k, t, x"  # noqa: S608 -- made of constants
        theirs = database.sql(query).to_arrow_table()
        order = np.lexsort((table["x"].to_numpy(), table["t"].to_numpy(), table["k"].to_numpy()))
        ours = got[window.name].take(pa.array(order)).to_numpy(zero_copy_only=False).astype(float)
        wanted = theirs["y"].to_numpy().astype(float)
        assert np.allclose(ours, wanted, rtol=1e-9, equal_nan=True), window.function


def test_polars_rolling_agrees() -> None:
    table, rows, windows = _market(2)
    got = window_aggregate(rows, rows, {"x": table["x"]}, windows, entities=7)
    frame = pl.DataFrame(table)
    for function in ("sum", "mean", "min", "max", "std", "var"):
        rolled = getattr(pl.col("x"), f"rolling_{function}_by")("t", window_size="700i", closed="right")
        theirs = frame.select(rolled.over("k").alias("y"))["y"].to_numpy()
        ours = got[function].to_numpy(zero_copy_only=False)
        # Where we say null (one value) Polars says null or NaN.
        assert np.allclose(ours, theirs, rtol=1e-7, equal_nan=True), function


def timed(
    spine: Rows, rows: Rows, columns: dict[str, pa.Array], windows: list[Window]
) -> tuple[dict[str, pa.Array], float]:
    """Return the answers, and the processor seconds they took once the kernels are compiled."""
    few = np.arange(100)
    start = {name: column[:100] for name, column in columns.items()}
    window_aggregate(subset(spine, few), subset(rows, few), start, windows, entities=1, threads=1)
    began = time.process_time()
    got = window_aggregate(spine, rows, columns, windows, entities=1, threads=1)
    return got, time.process_time() - began


def test_readers_who_know_less_than_the_one_before_cost_little_more() -> None:
    # Rows of a view, read each at its own created time: every other reader knows less than the one before.
    count, window_ns = 200_000, 100_000
    rng = np.random.default_rng(0)
    event = np.arange(count)
    known = event + rng.integers(0, 30_000, count)
    side = Rows(np.zeros(count, np.int32), event, known)
    value = rng.normal(size=count)
    kind = rng.integers(0, 60_000, count)
    windows = [Window("x", name, window_ns, name=name) for name in ("count", "sum", "std", "min", "max")]
    windows += [Window("kind", "n_distinct", window_ns, name="kinds")]
    columns = {"x": pa.array(value), "kind": pa.array(kind)}
    got, seconds = timed(side, side, columns, windows)
    # Row by row it would be 10**10 rows for each function: minutes.
    assert seconds < 30
    for at in rng.integers(0, count, 50):
        counted = (event > event[at] - window_ns) & (event <= event[at]) & (known <= known[at])
        seen = value[counted]
        assert got["kinds"][at].as_py() == len(np.unique(kind[counted]))
        assert got["count"][at].as_py() == len(seen)
        assert got["sum"][at].as_py() == math.fsum(seen)
        assert (got["min"][at].as_py(), got["max"][at].as_py()) == (seen.min(), seen.max())
        assert got["std"][at].as_py() == pytest.approx(seen.std(ddof=1), rel=1e-12)


def test_readers_of_ordered_rows_who_know_less_than_the_one_before_cost_little_more() -> None:
    # Rows became known as they happened; what readers may know goes back and forth over half of them.
    count, window_ns = 100_000, 60_000
    rng = np.random.default_rng(1)
    event, kind = np.arange(count), rng.integers(0, 30_000, count)
    cutoffs = event - rng.integers(0, count // 2, count)
    value = rng.normal(size=count) * 10.0 ** rng.integers(-30, 10, count)  # too wide for sums of 128 bits
    columns = {"kind": pa.array(kind), "value": pa.array(value)}
    windows = [
        Window("kind", "n_distinct", window_ns, name="kinds"),
        Window("value", "sum", window_ns, name="sum"),
        Window("value", "max", window_ns, name="max"),
    ]
    codes = np.zeros(count, np.int32)
    got, seconds = timed(Rows(codes, event, cutoffs), Rows(codes, event), columns, windows)
    assert seconds < 20
    for at in rng.integers(count // 2, count, 50):
        counted = (event > event[at] - window_ns) & (event <= min(event[at], cutoffs[at]))
        assert got["kinds"][at].as_py() == len(np.unique(kind[counted]))
        assert got["sum"][at].as_py() == math.fsum(value[counted])
        assert got["max"][at].as_py() == value[counted].max()
