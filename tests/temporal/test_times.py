"""Time columns as int64 ns: exact for every unit and zone, or a typed error that names the value."""

from datetime import date

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.core.time import DAY_NS, INT64_MAX, INT64_MIN, UNIT_NS
from featurestore.errors import SchemaError, TimeOverflowError
from featurestore.temporal.times import add_saturating, rows_from, times_ns, valid_mask
from featurestore.testing.strategies import chunked


@given(
    st.sampled_from(["s", "ms", "us", "ns"]),
    st.sampled_from([None, "UTC", "+05:30", "America/New_York"]),
    st.lists(st.one_of(st.none(), st.integers(-9_000_000_000, 9_000_000_000)), max_size=12),
    st.lists(st.integers(0, 12), max_size=3),
)
def test_every_unit_and_zone_is_read_exactly(
    unit: str, zone: str | None, values: list[int | None], cuts: list[int]
) -> None:
    column = chunked(pa.array(values, pa.timestamp(unit, zone)), cuts)
    times, null = times_ns(column, "ts")
    assert times.tolist() == [0 if v is None else v * UNIT_NS[unit] for v in values]
    is_null = [v is None for v in values]
    assert (null.tolist() if null is not None else [False] * len(values)) == is_null
    assert (null is None) == (not any(is_null))


def test_int64_is_ns_and_its_ends_are_kept() -> None:
    times, null = times_ns(pa.array([INT64_MIN, -1, INT64_MAX]), "ts")
    assert times.tolist() == [INT64_MIN, -1, INT64_MAX]
    assert null is None


def test_ns_without_nulls_in_one_chunk_are_not_copied() -> None:
    values = np.arange(5)
    times, _ = times_ns(pa.chunked_array([pa.array(values).slice(1)]), "ts")
    assert np.shares_memory(times, values)


def test_dates_are_their_midnight_in_utc_before_1970_too() -> None:
    days = [date(1969, 12, 31), None, date(2262, 4, 11)]
    for kind in (pa.date32(), pa.date64()):
        times, null = times_ns(pa.array(days, kind), "day")
        assert times.tolist() == [-DAY_NS, 0, 106_751 * DAY_NS]
        assert null is not None


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (pa.array([0, 9_223_372_037], pa.timestamp("s")), "9223372037 s"),
        (pa.array([-9_223_372_036_855], pa.timestamp("ms")), "-9223372036855 ms"),
        (pa.array([2**62], pa.timestamp("us", "UTC")), f"{2**62} us"),
        (pa.array([106_752], pa.date32()), "s, which does not fit"),
    ],
)
def test_a_time_that_does_not_fit_is_named_with_its_column(column: pa.Array, value: str) -> None:
    with pytest.raises(TimeOverflowError, match=f"time column 'ts' holds .*{value}"):
        times_ns(column, "ts")


def test_what_lies_under_a_null_cannot_overflow() -> None:
    raw = pa.array([2**62, 1]).buffers()[1]
    column = pa.Array.from_buffers(pa.timestamp("s"), 2, [pa.py_buffer(b"\x02"), raw])
    assert times_ns(column, "ts")[0].tolist() == [0, 1_000_000_000]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.int32(), pa.float64(), pa.time64("ns"), pa.duration("ns")], ids=str
)
def test_a_type_that_holds_no_time_is_refused_by_name(kind: pa.DataType) -> None:
    with pytest.raises(SchemaError, match="time column 'ts' is of type"):
        times_ns(pa.array([], kind), "ts")


def test_empty_and_chunkless_columns() -> None:
    assert times_ns(pa.chunked_array([], pa.timestamp("ms")), "ts")[0].tolist() == []
    assert times_ns(pa.array([], pa.date32()), "ts")[0].tolist() == []


@given(st.integers(INT64_MIN, INT64_MAX), st.integers(INT64_MIN + 1, INT64_MAX))
def test_adding_a_duration_stops_at_the_ends(time: int, nanos: int) -> None:
    expected = max(INT64_MIN, min(INT64_MAX, time + nanos))
    assert add_saturating(np.array([time]), nanos).tolist() == [expected]


def test_nan_is_a_value_and_null_is_not() -> None:
    assert valid_mask(pa.array([1.0, float("nan")])) is None
    mask = valid_mask(pa.array([None, float("nan")]))
    assert mask is not None
    assert mask.tolist() == [False, True]


@pytest.mark.parametrize(
    ("events", "found"),
    [
        pytest.param([7, 8, 9], 0, id="all rows"),
        pytest.param([1, 6, 7, 9, 7], 2, id="the last ones, the same instant among them"),
        pytest.param([7, 6], [True, False], id="the first one"),
        pytest.param([6, 7, 6, 9], [False, True, False, True], id="rows between others"),
        pytest.param([6, INT64_MIN], 2, id="none"),
        pytest.param([], 0, id="of none"),
    ],
)
def test_rows_that_are_not_older_are_counted_from_or_marked(
    events: list[int], found: int | list[bool]
) -> None:
    near = rows_from(np.array(events, np.int64), 7)
    assert (near if isinstance(near, int) else near.tolist()) == found
