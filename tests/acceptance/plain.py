"""The rules of the design page as loops over plain Python values: slow, and read like the rules."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One row of the right side.

    Attributes:
        key: its key values; a `None` among them matches nothing.
        event: its time in ns, or `None`.
        created: when it could be known; `NEVER` where it never could be; `None`: with its event.
        value: what is joined.
    """

    key: tuple[Any, ...]
    event: int | None
    created: int | None = None
    value: Any = None


NEVER = 2**70


def is_visible(
    key: tuple[Any, ...], at: int | None, row: Row, *, tolerance: int | None, exclusive: bool, ahead: bool
) -> bool:
    """PIT-1; `ahead` turns the time bound around."""
    if at is None or row.event is None or None in key or None in row.key or key != row.key:
        return False
    distance = row.event - at if ahead else at - row.event
    if distance < 0 or (exclusive and distance == 0) or (tolerance is not None and distance > tolerance):
        return False
    return row.created is None or row.created <= at


def choose(
    key: tuple[Any, ...],
    at: int | None,
    rows: Sequence[Row],
    *,
    direction: str = "backward",
    tolerance: int | None = None,
    exclusive: bool = False,
) -> int | None:
    """PIT-2: the position of the row that wins, or None."""

    def rank(place: int) -> tuple[int, int, int]:
        row = rows[place]
        assert row.event is not None
        return (row.event, row.created if row.created is not None else row.event, place)

    def seen(*, ahead: bool) -> list[int]:
        return [
            i
            for i, row in enumerate(rows)
            if is_visible(key, at, row, tolerance=tolerance, exclusive=exclusive, ahead=ahead)
        ]

    back = max(seen(ahead=False), key=rank, default=None) if direction != "forward" else None
    ahead = min(seen(ahead=True), key=rank, default=None) if direction != "backward" else None
    if back is None or ahead is None:
        return back if ahead is None else ahead
    assert at is not None
    event_back, event_ahead = rows[back].event, rows[ahead].event
    assert event_back is not None
    assert event_ahead is not None
    return back if at - event_back <= event_ahead - at else ahead


def aggregate(
    key: tuple[Any, ...],
    at: int | None,
    rows: Sequence[Row],
    function: str,
    *,
    window: int,
    tile: int = 0,
    k: int = 0,
) -> Any:
    """One function over the rows of `(at - window, at]` that could be known at `at`; nulls are skipped."""
    start = 0
    if at is not None:
        start = (at - window) // tile * tile if tile else at - window
    seen = [
        i
        for i, row in enumerate(rows)
        if is_visible(key, at, row, tolerance=None, exclusive=False, ahead=False)
        and row.event is not None
        and row.event > start
    ]

    def rank(place: int) -> tuple[Any, ...]:
        row = rows[place]
        return (row.event, row.created if row.created is not None else row.event, place)

    values = [rows[i].value for i in sorted(seen, key=rank) if rows[i].value is not None]
    if function == "rows":
        return len(seen)
    if function in {"count", "n_distinct"}:
        return len(values) if function == "count" else len(set(values))
    if function == "last_n":
        return [*([None] * (k - len(values[-k:]))), *values[-k:]] if values else None
    if not values:
        return None
    if function in {"min", "max", "first", "last"}:
        return {"min": min(values), "max": max(values), "first": values[0], "last": values[-1]}[function]
    return _moment([Fraction(v) for v in values], function, type(values[0]))


def _moment(values: list[Fraction], function: str, kind: type[int] | type[float]) -> Any:
    """The sum in the values' own type, the rest as floats: exact, rounded once."""
    total = sum(values, Fraction(0))
    if function == "sum":
        return kind(total)
    mean = total / len(values)
    if function == "mean":
        return float(mean)
    if len(values) == 1:
        return None
    variance = sum(((v - mean) ** 2 for v in values), Fraction(0)) / (len(values) - 1)
    return float(variance) if function == "var" else math.sqrt(variance)
