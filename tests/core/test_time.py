"""Times and durations convert exactly or not at all."""

from datetime import datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.core.time import (
    DAY_NS,
    INT64_MAX,
    INT64_MIN,
    day_of_text,
    day_text,
    duration_ns,
    epoch_days,
    format_duration,
    format_instant,
    instant_ns,
    scale_to_ns,
)
from featurestore.errors import DefinitionError, TimeOverflowError


@pytest.mark.parametrize(
    ("value", "nanos"),
    [
        ("5s", 5_000_000_000),
        ("1h30m", 5_400_000_000_000),
        ("7d", 7 * DAY_NS),
        ("2w", 14 * DAY_NS),
        ("250us", 250_000),
        ("1min", 60_000_000_000),
        (timedelta(microseconds=3), 3_000),
        (17, 17),
        (np.timedelta64(3, "ms"), 3_000_000),
        (pd.Timedelta("0.5us"), 500),
        (pd.Timedelta(-1, "ns") + pd.Timedelta("1us"), 999),
        (np.timedelta64(2, "D"), 2 * DAY_NS),
        ("0s", 0),
    ],
)
def test_a_duration_is_read_exactly(value: str | timedelta | int | np.timedelta64, nanos: int) -> None:
    assert duration_ns(value) == nanos


@pytest.mark.parametrize("value", ["", "5", "five", "5 parsecs", "1.5h", "-5s", -1, True, 1.5, None])
def test_what_is_not_a_duration_is_refused_by_name(value: object) -> None:
    with pytest.raises(DefinitionError, match="ttl"):
        duration_ns(value, what="ttl")  # type: ignore[arg-type]


def test_a_duration_of_three_hundred_years_is_an_overflow_and_not_a_wrap() -> None:
    with pytest.raises(TimeOverflowError):
        duration_ns("110000d")
    assert duration_ns(INT64_MAX) == INT64_MAX


@settings(deadline=None)
@given(st.integers(0, INT64_MAX))
def test_a_formatted_duration_reads_back(nanos: int) -> None:
    assert duration_ns(format_duration(nanos)) == nanos


@pytest.mark.parametrize(
    ("value", "nanos"),
    [
        ("1970-01-01", 0),
        ("1970-01-01T00:00:00.000000001Z", 1),
        ("1969-12-31T23:59:59.999999999Z", -1),
        ("2013-10-08 14:30:00.5+02:00", 1_381_235_400_500_000_000),
        (datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), 0),
        (datetime(1970, 1, 2), DAY_NS),  # noqa: DTZ001 -- naive means UTC is the rule under test
        (pd.Timestamp("1970-01-01T00:00:00.000000123Z"), 123),
        (np.datetime64("1970-01-01T00:00:01"), 1_000_000_000),
        ("2262-04-11T23:47:16.854775807Z", INT64_MAX),
    ],
)
def test_an_instant_is_read_exactly(value: str | datetime, nanos: int) -> None:
    assert instant_ns(value) == nanos


def test_the_nanosecond_after_the_last_is_an_overflow() -> None:
    with pytest.raises(TimeOverflowError):
        instant_ns("2262-04-11T23:47:16.854775808Z")


@pytest.mark.parametrize("value", ["yesterday", "2013-13-01", "2013-10-08T25:00", 1.5, None])
def test_what_is_not_an_instant_is_refused(value: object) -> None:
    with pytest.raises(DefinitionError):
        instant_ns(value)  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.integers(INT64_MIN + 1, INT64_MAX))
def test_a_formatted_instant_reads_back(nanos: int) -> None:
    assert instant_ns(format_instant(nanos)) == nanos


@settings(deadline=None)
@given(st.integers(-(2**62), 2**62), st.sampled_from(["s", "ms", "us", "ns"]))
def test_scaling_is_exact_or_an_overflow(value: int, unit: str) -> None:
    factor = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[unit]
    array = np.array([0, value], np.int64)
    if abs(value * factor) <= INT64_MAX:
        assert int(scale_to_ns(array, unit, what="t")[1]) == value * factor
    else:
        with pytest.raises(TimeOverflowError, match="t holds"):
            scale_to_ns(array, unit, what="t")


def test_dates_before_1970_floor() -> None:
    days = epoch_days(np.array([-1, 0, DAY_NS - 1, DAY_NS, -DAY_NS, -DAY_NS - 1], np.int64))
    assert days.tolist() == [-1, 0, 0, 1, -1, -2]
    assert [day_text(d) for d in (-1, 0)] == ["1969-12-31", "1970-01-01"]
    assert day_of_text("1969-12-31") == -1
