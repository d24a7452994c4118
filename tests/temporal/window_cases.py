"""Generated window joins: columns that are hard on sums, with ties, nulls and late rows."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from hypothesis import strategies as st

from featurestore.core.time import Int64Array
from featurestore.temporal.rows import Rows
from featurestore.temporal.windows import FUNCTIONS, Window, window_aggregate
from featurestore.testing.strategies import random_case, sides
from featurestore.testing.window_oracle import oracle_aggregate, same

POOLS: Final = (
    [0.1, 0.2, -0.3, 1 / 3, 1e16, -1e16, 0.0, -0.0, 7.0],
    [1e300, 1e-300, 5e-324, -1e300, 1.7e308, 2.2e-308, 1e-160, 3.3],
    [1.0, float("nan"), float("inf"), float("-inf"), 2.5, -3.0],
    [100.25, 100.26, 99.99, 101.5],
)
WORDS: Final = ("a", "b", "cc", "")


@dataclass(frozen=True)
class WindowCase:
    """One generated call of `window_aggregate`."""

    spine: Rows
    rows: Rows
    entities: int
    columns: dict[str, pa.Array]
    windows: list[Window]

    def check(self, **options: Any) -> None:
        """Compare every window with the oracle, bit for bit."""
        got = window_aggregate(
            self.spine, self.rows, self.columns, self.windows, entities=self.entities, **options
        )
        wanted = oracle_aggregate(self.spine, self.rows, self.columns, self.windows)
        for window in self.windows:
            ours, theirs = got[window.name].to_pylist(), wanted[window.name]
            assert same(ours, theirs), (window, ours, theirs)

    def kept(self, places: Int64Array) -> "WindowCase":
        """Return the case with only some of its rows."""
        columns = {name: column.take(pa.array(places)) for name, column in self.columns.items()}
        return WindowCase(self.spine, subset(self.rows, places), self.entities, columns, self.windows)


def subset(rows: Rows, places: Int64Array) -> Rows:
    """Return the rows at `places`."""
    known = None if rows.known_ns is None else rows.known_ns[places]
    sequence = None if rows.sequence is None else rows.sequence[places]
    return Rows(rows.codes[places], rows.event_ns[places], known, sequence)


def random_columns(rng: np.random.Generator, count: int) -> dict[str, pa.Array]:
    """Return columns of every kind the functions tell apart."""
    nulls = rng.random(count) < rng.choice([0.0, 0.3])
    floats = rng.choice(np.array(POOLS[rng.integers(len(POOLS))]), count)
    signs = rng.choice([1, -64])
    words = [None if null else WORDS[k] for null, k in zip(nulls, rng.integers(0, 4, count), strict=True)]
    return {
        "real": pa.array(floats, mask=nulls),
        "gauss": pa.array(rng.normal(size=count)),
        "small": pa.array(rng.normal(size=count).astype(np.float32), mask=nulls),
        "whole": pa.array(rng.integers(-(2**53), 2**53, count) * signs, mask=nulls),
        "unsigned": pa.array(rng.integers(0, 2**53, count).astype(np.uint64), mask=nulls),
        "flag": pa.array(rng.random(count) < 0.5, mask=nulls),
        "word": pa.array(words, pa.string()),
        "stamp": pa.array(rng.integers(-99, 99, count), pa.timestamp("ms")),
    }


def functions_of(column: str) -> list[str]:
    """Return the functions a column of `random_columns` takes."""
    if column == "*":
        return ["count"]
    return [f for f in FUNCTIONS if column not in {"word", "stamp"} or f not in {"sum", "mean", "std", "var"}]


def random_window_case(seed: int, *, most_spine: int = 12, most_rows: int = 30) -> WindowCase:
    """Build a case from a seed: fast, but it does not shrink."""
    rng = np.random.default_rng(seed)
    case = random_case(seed, most_spine=most_spine, most_rows=most_rows)
    columns = random_columns(rng, len(case.rows))
    span = int(rng.choice([3, 20, 400]))
    names = [*columns, "*"]
    windows = []
    for k in range(8):
        column = names[rng.integers(len(names))]
        function = str(rng.choice(functions_of(column)))
        length = int(rng.integers(1, 2 * span))
        tile = int(rng.choice([0, 0, max(1, length // 3)]))
        n = int(rng.integers(1, 5)) if function == "last_n" else None
        windows.append(Window(column, function, length, tile, n, f"w{k}"))
    return WindowCase(case.spine, case.rows, case.entities, columns, windows)


@st.composite
def window_cases(draw: st.DrawFn) -> WindowCase:
    """Draw a small case that shrinks."""
    entities = draw(st.integers(1, 2))
    spine, rows = draw(sides(entities=entities, most=6)), draw(sides(entities=entities, most=10))
    pool = draw(st.sampled_from(POOLS))
    count = len(rows)
    values = draw(st.lists(st.one_of(st.sampled_from(pool), st.none()), min_size=count, max_size=count))
    whole = draw(st.lists(st.integers(-(2**58), 2**58), min_size=count, max_size=count))
    columns = {"real": pa.array(values, pa.float64()), "whole": pa.array(whole, pa.int64())}
    windows = []
    for k in range(draw(st.integers(1, 4))):
        column = draw(st.sampled_from(["real", "whole", "*"]))
        function = draw(st.sampled_from(functions_of(column)))
        length = draw(st.one_of(st.integers(1, 8), st.just(2**63 - 1)))
        tile = draw(st.integers(0, min(length, 4)))
        n = draw(st.integers(1, 3)) if function == "last_n" else None
        windows.append(Window(column, function, length, tile, n, f"w{k}"))
    return WindowCase(spine, rows, entities, columns, windows)


def bits(array: pa.Array) -> npt.NDArray[Any]:
    """Return an array's values as integers, nulls as a number of their own: equal means bit for bit."""
    filled = np.asarray(array.fill_null(0)).copy()
    return np.stack([filled.view(np.int64), np.asarray(array.is_null()).astype(np.int64)])
