"""Aggregation: a function over a trailing window."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from featurestore.core.arguments import text
from featurestore.core.names import check_feature_name, check_output_name
from featurestore.core.time import Duration, duration_ns, format_duration
from featurestore.errors import DefinitionError

FUNCTIONS: Final = (
    "count",
    "sum",
    "mean",
    "min",
    "max",
    "std",
    "var",
    "first",
    "last",
    "n_distinct",
)
_LAST_N: Final = re.compile(r"last_n\((?P<k>[1-9]\d{0,5})\)")


@dataclass(frozen=True, slots=True, init=False)
class Aggregation:
    """A function of one column over `(t - window, t]`, at the reader's own time t.

    Attributes:
        column: A column of the source; `"*"` with `count` counts rows, otherwise non-null values.
        function: count, sum, mean, min, max, std, var (sample, n - 1), first, last, n_distinct, last_n(k).
        window_ns: The window's length.
        name: The feature's name; by default column_function_window, e.g. `size_sum_10s`.
        tile_ns: Rounds the window's start down to a multiple of this, offline and online alike; 0 for none.
    """

    column: str
    function: str
    window_ns: int
    name: str
    tile_ns: int

    def __init__(
        self,
        column: str,
        function: str,
        window: Duration,
        name: str | None = None,
        tile: Duration | None = None,
    ) -> None:
        """Validate and freeze.

        Raises:
            DefinitionError: an unknown function, a window or tile that is not positive, or a tile that
                is longer than the window.
        """
        window_ns = duration_ns(window, what="window")
        tile_ns = 0 if tile is None else duration_ns(tile, what="tile")
        if window_ns == 0 or (tile is not None and not 0 < tile_ns <= window_ns):
            raise DefinitionError(
                f"aggregation of {column!r} has window {window!r} and tile {tile!r}",
                hint="the window is positive, and the tile positive and no longer than the window",
            )
        if function not in FUNCTIONS and not _LAST_N.fullmatch(text("an aggregation", "function", function)):
            raise DefinitionError(
                f"aggregation function {function!r} is not known",
                hint=f"one of {', '.join(FUNCTIONS)}, last_n(k)",
                function=function,
            )
        if column == "*" and function != "count":
            raise DefinitionError(f'"*" cannot be aggregated by {function}', hint='only count takes "*"')
        if column != "*":
            check_feature_name(column, "column")
        plain = re.sub(r"[()]", "", function)
        # As the user wrote it: "60s" stays 60s, though it is as long as "1m".
        length = window.replace(" ", "") if isinstance(window, str) else format_duration(window_ns)
        default = f"{plain}_{length}" if column == "*" else f"{column}_{plain}_{length}"
        put = object.__setattr__
        put(self, "column", column)
        put(self, "function", function)
        put(self, "window_ns", window_ns)
        put(self, "name", check_output_name(default if name is None else name, "aggregation"))
        put(self, "tile_ns", tile_ns)

    @property
    def window(self) -> int:
        """The window's length in nanoseconds, as the constructor takes it too."""
        return self.window_ns

    @property
    def tile(self) -> int | None:
        """The tile in nanoseconds, as the constructor takes it too; `None` for none."""
        return self.tile_ns or None

    @property
    def base_function(self) -> str:
        """The function without its argument: `last_n` for `last_n(5)`."""
        return self.function.partition("(")[0]

    @property
    def last_n(self) -> int | None:
        """The k of `last_n(k)`, else `None`."""
        match = _LAST_N.fullmatch(self.function)
        return int(match["k"]) if match else None

    def spec(self) -> dict[str, Any]:
        """Return the aggregation as plain JSON values."""
        return {
            "column": self.column,
            "function": self.function,
            "window_ns": self.window_ns,
            "name": self.name,
            "tile_ns": self.tile_ns,
        }


def aggregation_from_spec(spec: Mapping[str, Any]) -> Aggregation:
    """Read back what `Aggregation.spec` wrote."""
    return Aggregation(
        spec["column"],
        spec["function"],
        spec["window_ns"],
        spec["name"],
        spec["tile_ns"] or None,
    )
