"""What a stream was asked to do, checked once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from featurestore.core.time import Duration, duration_ns
from featurestore.errors import DefinitionError
from featurestore.temporal.rows import BOUNDARIES, DIRECTIONS, check_choice
from featurestore.temporal.tables import check_text, check_unique, names_of
from featurestore.temporal.threads import check_count
from featurestore.temporal.windows import Window

LATE: Final = ("drop", "error", "side_output")


@dataclass(frozen=True, slots=True)
class Options:
    """The arguments of a `StreamingJoin`, with durations as nanoseconds."""

    on: str
    right_on: str
    by: tuple[str, ...]
    right_by: tuple[str, ...]
    direction: str
    tolerance_ns: int | None
    boundary: str
    lateness_ns: int
    late: str
    created_on: str | None
    columns: tuple[str, ...] | None
    prefix: str
    matched_timestamp: str | None
    aggregations: tuple[Window, ...]
    max_pending_rows: int | None

    def spec(self) -> dict[str, Any]:
        """Return the options as plain JSON values: a saved state fits only the same ones."""
        windows = [[w.column, w.function, w.window_ns, w.tile_ns, w.n, w.name] for w in self.aggregations]
        spec: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        spec |= {"by": list(self.by), "right_by": list(self.right_by), "aggregations": windows}
        spec["columns"] = None if self.columns is None else list(self.columns)
        del spec["max_pending_rows"]
        return spec

    @property
    def look_back_ns(self) -> int:
        """The longest window, its tile added; 0 without aggregations."""
        return max((w.window_ns + w.tile_ns for w in self.aggregations), default=0)


def checked_options(
    *,
    on: str,
    right_on: str | None,
    by: str | Sequence[str] | None,
    right_by: str | Sequence[str] | None,
    direction: str,
    tolerance: Duration | None,
    boundary: str,
    lateness: Duration,
    late: str,
    created_on: str | None,
    columns: Sequence[str] | None,
    prefix: str,
    matched_timestamp: str | None,
    aggregations: object,
    max_pending_rows: int | None,
) -> Options:
    """Check the arguments of a stream.

    Raises:
        DefinitionError: an unknown choice, a negative duration, unequal key counts, no room for rows.
        TimeOverflowError: a duration longer than int64 nanoseconds.
        SchemaError: two aggregations of a name.
    """
    optional = (right_on, created_on, matched_timestamp)
    for text in (on, prefix, *(text for text in optional if text is not None)):
        check_text(text, "a name or prefix of the stream")
    keys = names_of(by)
    right_keys = keys if right_by is None else names_of(right_by)
    if len(keys) != len(right_keys):
        raise DefinitionError(
            f"right is joined by {list(right_keys)}, left by {list(keys)}",
            hint="name as many key columns on both sides, in the same order",
        )
    if max_pending_rows is not None:
        check_count(max_pending_rows, "max_pending_rows")
    if not isinstance(aggregations, Iterable):
        raise DefinitionError(f"aggregations is {aggregations!r}", hint="pass a list of Aggregation objects")
    windows = tuple(map(_window, aggregations))
    check_unique([w.name for w in windows], "two aggregations are named", "give each its own name")
    return Options(
        on=on,
        right_on=on if right_on is None else right_on,
        by=keys,
        right_by=right_keys,
        direction=check_choice(direction, DIRECTIONS, "direction"),
        tolerance_ns=None if tolerance is None else duration_ns(tolerance, what="tolerance"),
        boundary=check_choice(boundary, BOUNDARIES, "boundary"),
        lateness_ns=duration_ns(lateness, what="lateness"),
        late=check_choice(late, LATE, "late"),
        created_on=created_on,
        columns=None if columns is None else names_of(columns),
        prefix=prefix,
        matched_timestamp=matched_timestamp,
        aggregations=windows,
        max_pending_rows=max_pending_rows,
    )


def _window(value: Any) -> Window:
    """Read a `Window`, or a definition's `Aggregation`, which says the same.

    Raises:
        DefinitionError: it is neither.
    """
    if isinstance(value, Window):
        return value
    try:
        return Window(
            value.column, value.base_function, value.window_ns, value.tile_ns, value.last_n, value.name
        )
    except AttributeError as error:
        raise DefinitionError(
            f"an aggregation is a {type(value).__name__}", hint="pass Aggregation or Window objects"
        ) from error
