"""Time is int64 nanoseconds since 1970-01-01 UTC. Conversions are exact or an error, never a wrap."""

import re
from datetime import UTC, date, datetime, timedelta
from typing import Final

import numpy as np
import numpy.typing as npt

from featurestore.errors import DefinitionError, TimeOverflowError

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Duration = str | timedelta | int | np.timedelta64
Instant = str | date | int | np.datetime64  # a datetime is a date

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1
DAY_NS: Final = 86_400_000_000_000
UNIT_NS: Final = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}

_DURATION_UNIT_NS: Final = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "min": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": DAY_NS,
    "w": 7 * DAY_NS,
}
_DURATION_PART: Final = re.compile(r"(\d+)(ns|us|ms|min|s|m|h|d|w)")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_INSTANT: Final = re.compile(
    r"(?P<date>[+-]?\d{4,}-\d\d-\d\d)(?:[T ](?P<time>\d\d:\d\d(?::\d\d)?)(?:\.(?P<frac>\d{1,9}))?)?"
    r"\s*(?P<zone>Z|[+-]\d\d:?\d\d)?"
)


def duration_ns(value: Duration, *, what: str = "duration") -> int:
    """Convert `"5s"`, `"1h30m"`, `"7d"`, a timedelta or integer ns to nanoseconds, exactly.

    Raises:
        DefinitionError: not a duration, or a negative one.
        TimeOverflowError: more than int64 nanoseconds (about 292 years).
    """
    nanos = _duration_ns_unchecked(value, what)
    if nanos < 0:
        raise DefinitionError(
            f"{what} is {value!r}: a duration cannot be negative",
            hint='write it like "5s", "1h", "7d", a timedelta, or integer nanoseconds',
            value=value,
        )
    if nanos > INT64_MAX:
        raise TimeOverflowError(
            f"{what} is {value!r}: longer than int64 nanoseconds can hold (about 292 years)",
            hint="use None where there should be no limit",
            value=value,
        )
    return nanos


def _duration_ns_unchecked(value: Duration, what: str) -> int:
    if isinstance(value, timedelta):
        micros = (value.days * 86_400 + value.seconds) * 1_000_000 + value.microseconds
        # pandas.Timedelta is a timedelta that also knows nanoseconds.
        return micros * 1_000 + int(getattr(value, "nanoseconds", 0))
    if isinstance(value, np.timedelta64):
        return _timedelta64_ns(value, what)
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        text = value.strip().replace(" ", "")
        negative = text.startswith("-")
        body = text[1:] if negative else text
        parts = _DURATION_PART.findall(body)
        if parts and "".join(n + u for n, u in parts) == body:
            total = sum(int(n) * _DURATION_UNIT_NS[u] for n, u in parts)
            return -total if negative else total
    raise DefinitionError(
        f"{what} is {value!r}, which is not a duration",
        hint='write it like "5s", "1h30m", "7d" (units ns us ms s m h d w), a timedelta, '
        "or integer nanoseconds",
        value=value,
    )


def _timedelta64_ns(value: np.timedelta64, what: str) -> int:
    unit, step = np.datetime_data(value.dtype)
    if np.isnat(value) or (unit not in _DURATION_UNIT_NS and unit not in {"D", "W"}):
        raise DefinitionError(
            f"{what} is {value!r}, which has no exact length in nanoseconds",
            hint="use weeks or a smaller unit",
            value=str(value),
        )
    return int(value.astype(np.int64)) * step * _DURATION_UNIT_NS[unit.lower()]


def format_duration(nanos: int) -> str:
    """Write nanoseconds the way `duration_ns` reads them, in the largest unit that is exact."""
    for unit in ("w", "d", "h", "m", "s", "ms", "us"):
        if nanos and nanos % _DURATION_UNIT_NS[unit] == 0:
            return f"{nanos // _DURATION_UNIT_NS[unit]}{unit}"
    return f"{nanos}ns"


def instant_ns(value: Instant, *, what: str = "time") -> int:
    """Convert an ISO 8601 text, a date, a datetime or integer ns to ns since 1970 UTC; naive means UTC.

    Raises:
        DefinitionError: the text is not a time.
        TimeOverflowError: outside 1677-09-21 to 2262-04-11.
    """
    if isinstance(value, datetime) and value == value:  # noqa: PLR0124 -- pandas.NaT is a datetime
        nanos = _datetime_ns(value)
    elif isinstance(value, date) and not isinstance(value, datetime):  # its first instant
        nanos = _datetime_ns(datetime(value.year, value.month, value.day, tzinfo=UTC))
    elif isinstance(value, np.datetime64):
        nanos = _datetime64_ns(value, what)
    elif isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.timedelta64)):
        nanos = int(value)
    elif isinstance(value, str):
        nanos = _text_ns(value, what)
    else:
        raise DefinitionError(
            f"{what} is {value!r}, which is not a time",
            hint='write it like "2013-10-08T14:30:00.5Z", a datetime, or integer ns since 1970 UTC',
            value=value,
        )
    if not INT64_MIN < nanos <= INT64_MAX:
        raise TimeOverflowError(
            f"{what} {value!r} does not fit int64 nanoseconds since 1970 UTC",
            hint="times from 1677-09-21 to 2262-04-11 can be held",
            value=value,
        )
    return nanos


def _datetime_ns(value: datetime) -> int:
    aware = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
    delta = aware - _EPOCH
    nanos = (delta.days * 86_400 + delta.seconds) * 1_000_000_000 + delta.microseconds * 1_000
    # pandas.Timestamp is a datetime that also knows nanoseconds.
    return nanos + int(getattr(value, "nanosecond", 0))


def _datetime64_ns(value: np.datetime64, what: str) -> int:
    unit, step = np.datetime_data(value.dtype)
    factor = {"h": "h", "m": "m", "D": "d", "W": "w"}.get(unit, unit)
    if np.isnat(value) or factor not in _DURATION_UNIT_NS:
        raise DefinitionError(
            f"{what} is {value!r}, which is not an exact instant",
            hint="give a numpy.datetime64 in weeks or a shorter unit",
            value=str(value),
        )
    return int(value.astype(np.int64)) * step * _DURATION_UNIT_NS[factor]


def _text_ns(text: str, what: str) -> int:
    match = _INSTANT.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError(text)
        zone = (match["zone"] or "Z").replace("Z", "+00:00")
        base = datetime.fromisoformat(f"{match['date']}T{match['time'] or '00:00:00'}{zone}")
    except ValueError as error:
        raise DefinitionError(
            f"{what} is {text!r}, which is not an ISO 8601 time",
            hint='write it like "2013-10-08", "2013-10-08T14:30:00.123456789Z" or with "+02:00"',
            value=text,
        ) from error
    return _datetime_ns(base) + int((match["frac"] or "0").ljust(9, "0"))


def format_instant(nanos: int) -> str:
    """Write ns since 1970 UTC as ISO 8601 with as many digits as are needed, never rounded."""
    seconds, fraction = divmod(int(nanos), 1_000_000_000)
    base = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    digits = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{base}{digits}Z"


def scale_to_ns(values: Int64Array, unit: str, *, what: str) -> Int64Array:
    """Multiply integer times of an Arrow unit (`s`, `ms`, `us`, `ns`) to nanoseconds, exactly.

    Args:
        values: `(n,)` times in `unit`; every element counts, so mask nulls to 0 first.

    Raises:
        TimeOverflowError: a value does not fit; the first one is named.
    """
    factor = UNIT_NS[unit]
    if factor == 1 or values.size == 0:
        return values
    limit = INT64_MAX // factor
    low, high = int(values.min()), int(values.max())
    if low < -limit or high > limit:
        bad = low if low < -limit else high
        raise TimeOverflowError(
            f"{what} holds {bad} {unit}, which does not fit int64 nanoseconds since 1970 UTC",
            hint="times from 1677-09-21 to 2262-04-11 can be held",
            column=what,
            value=bad,
        )
    return values * np.int64(factor)


def epoch_days(times_ns: Int64Array) -> npt.NDArray[np.int32]:
    """Days since 1970-01-01 UTC by floor division, so that dates before 1970 are right."""
    return np.floor_divide(times_ns, DAY_NS).astype(np.int32)


def day_text(day: int) -> str:
    """Write a day number as `YYYY-MM-DD`."""
    return (date(1970, 1, 1) + timedelta(days=int(day))).isoformat()


def day_of_text(text: str) -> int:
    """Read `YYYY-MM-DD` as a day number."""
    return (date.fromisoformat(text) - date(1970, 1, 1)).days
