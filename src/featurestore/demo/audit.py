"""A leak audit that shares nothing with the engine: look at every raw row that could matter to a sampled row.

No kernel, no index of the store, no definition is used: what the demo's features mean is written out by hand.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.core.python_values import python_rows

Raw = Mapping[str, npt.NDArray[Any]]
SECOND_NS: Final = 1_000_000_000
TTL_NS: Final = 5 * SECOND_NS
HORIZON_NS: Final = 60 * SECOND_NS
REACH_NS: Final = 65 * SECOND_NS
WINDOWS_NS: Final = {"10s": 10 * SECOND_NS, "60s": 60 * SECOND_NS}
BOOK: Final = ("bid", "ask", "bid_size", "ask_size")
# Sums and means must agree to the bit; a square root of a variance to its last digits.
STD_TOLERANCE: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A value that is not what the raw rows say."""

    symbol: str
    time_ns: int
    feature: str
    stored: float | None
    expected: float | None

    def __str__(self) -> str:
        return (
            f"{self.feature} of {self.symbol} at {self.time_ns}: stored {self.stored!r}, "
            f"raw rows say {self.expected!r}"
        )


@dataclass(frozen=True, slots=True)
class Audit:
    """What a leak audit found.

    Attributes:
        rows: Rows checked.
        values: Values compared, nulls included.
        present: Of them, not null.
        mismatches: The first ones found; empty when all agree.
    """

    rows: int
    values: int
    present: int
    mismatches: tuple[Mismatch, ...]


def raw_rows(table: pa.Table, columns: Sequence[str], created: str | None) -> dict[str, Raw]:
    """Split a source by symbol: event and created times as int64 ns, columns as float64, NaN for null.

    Position, the last tie-break, is the order of the rows; each symbol's rows are sorted by event time only
    so that the audit can cut out the minutes it has to look at.
    """
    event = table["ts"].cast(pa.int64()).to_numpy()
    known = event if created is None else table[created].cast(pa.int64()).to_numpy()
    symbols = table["symbol"].to_numpy()
    values = {name: table[name].cast(pa.float64()).to_numpy() for name in columns}
    out: dict[str, Raw] = {}
    for symbol in np.unique(symbols):
        rows = np.flatnonzero(symbols == symbol)
        rows = rows[np.argsort(event[rows], kind="stable")]
        split = {name: column[rows] for name, column in values.items()}
        out[str(symbol)] = {"event": event[rows], "known": known[rows], "position": rows, **split}
    return out


def audit_rows(sample: pa.Table, trades: Mapping[str, Raw], quotes: Mapping[str, Raw]) -> Audit:
    """Compare every feature and label of `sample` with a loop over the raw rows around it."""
    values = present = 0
    mismatches: list[Mismatch] = []
    times = sample["ts"].cast(pa.int64()).to_pylist()
    for row, time_ns in zip(python_rows(sample), times, strict=True):
        symbol = row["symbol"]
        expected = {
            **quote_features(_around(quotes[symbol], time_ns), time_ns),
            **flow_features(_around(trades[symbol], time_ns), time_ns),
        }
        for feature, value in expected.items():
            values += 1
            present += value is not None
            if not _agree(row[feature], value, feature):
                mismatches.append(Mismatch(symbol, time_ns, feature, row[feature], value))
    return Audit(sample.num_rows, values, present, tuple(mismatches[:10]))


def _around(raw: Raw, time_ns: int) -> Raw:
    low = np.searchsorted(raw["event"], time_ns - REACH_NS, "left")
    high = np.searchsorted(raw["event"], time_ns + REACH_NS, "right")
    return {name: column[low:high] for name, column in raw.items()}


def quote_features(raw: Raw, t: int) -> dict[str, float | None]:
    """Each column's newest non-null value known at t, at most 5 s old; then the label a minute ahead."""
    seen = (raw["event"] <= t) & (raw["known"] <= t) & (t - raw["event"] <= TTL_NS)
    book = {name: _newest(raw, seen, name) for name in BOOK}
    end = t + HORIZON_NS
    # A label may see corrections whenever they were made: only the event time bounds it.
    ahead = (raw["event"] > t) & (raw["event"] <= end) & (end - raw["event"] <= TTL_NS)
    bid, ask, bid_size, ask_size = (book[name] for name in BOOK)
    mid = _mid(bid, ask)
    later = _mid(_newest(raw, ahead, "bid"), _newest(raw, ahead, "ask"))
    sizes = None if bid_size is None or ask_size is None else (bid_size - ask_size, bid_size + ask_size)
    return {
        **book,
        "mid": mid,
        "spread": None if bid is None or ask is None else ask - bid,
        "imbalance": None if sizes is None or sizes[1] == 0 else sizes[0] / sizes[1],
        "mid_return_60s": None if mid is None or later is None or mid == 0 else later / mid - 1,
    }


def _mid(bid: float | None, ask: float | None) -> float | None:
    return None if bid is None or ask is None else (bid + ask) / 2


def _newest(raw: Raw, seen: npt.NDArray[np.bool_], column: str) -> float | None:
    best: tuple[int, int, int] | None = None
    value: float | None = None
    for i in np.flatnonzero(seen & ~np.isnan(raw[column])):
        rank = (int(raw["event"][i]), int(raw["known"][i]), int(raw["position"][i]))
        if best is None or rank > best:
            best, value = rank, float(raw[column][i])
    return value


def flow_features(raw: Raw, t: int) -> dict[str, float | None]:
    """Count, sums and the sample deviation of the trades in `(t - window, t]` that were known at t."""
    out: dict[str, float | None] = {}
    for label, window_ns in WINDOWS_NS.items():
        seen = (raw["event"] > t - window_ns) & (raw["event"] <= t) & (raw["known"] <= t)
        prices, sizes = raw["price"][seen], raw["size"][seen]
        rows = int(seen.sum())
        out[f"trades_{label}"] = rows
        out[f"volume_{label}"] = float(sizes.sum()) if rows else None
        out[f"notional_{label}"] = math.fsum(prices * sizes) if rows else None
        out[f"price_std_{label}"] = _deviation(prices) if rows > 1 else None
    return out


def _deviation(prices: npt.NDArray[np.float64]) -> float:
    """Sample standard deviation from exact rational arithmetic: slow, and right to the last digit."""
    exact = [Fraction(float(price)) for price in prices]
    mean = sum(exact, Fraction(0)) / len(exact)
    return math.sqrt(sum((x - mean) ** 2 for x in exact) / (len(exact) - 1))


def _agree(stored: Any, expected: float | None, feature: str) -> bool:
    if stored is None or expected is None:
        return stored is None and expected is None
    if feature.startswith("price_std"):
        return math.isclose(stored, expected, rel_tol=STD_TOLERANCE, abs_tol=0.0)
    return bool(stored == expected)
