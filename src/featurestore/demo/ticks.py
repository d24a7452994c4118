"""Seeded ticks that are as untidy as real ones, in the layout of real ones.

One Parquet file per kind and day, `trades/YYYYMMDD.parquet` and `quotes/YYYYMMDD.parquet`. A file holds its
symbols one after the other, then the rows that arrived late, so it is not in time order. A quote row updates
one side of one exchange's book and leaves the other side null. Times are ns, some exchanges stamp whole
milliseconds, and many rows share a timestamp. `created` says when a row could have been known: a fraction of
a millisecond after the event, minutes after it for a late report or a correction, the next morning for an
overnight correction.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.core.time import DAY_NS, Int64Array, day_of_text

FloatArray = npt.NDArray[np.float64]
SECOND_NS: Final = 1_000_000_000
# Hours of trading, seconds after midnight UTC in summer time.
OPEN_S, BELL_S, CLOSE_S, END_S = 8 * 3600, 13 * 3600 + 1800, 20 * 3600, 23 * 3600
SYMBOLS: Final = (
    "ACME", "APEX", "BOLT", "CRUX", "DELT", "ECHO", "FLUX", "GRID", "HALO", "IRIS",
    "JADE", "KITE", "LUMN", "MONO", "NOVA", "ORCA", "PIKE", "QUAD", "RUNE", "SAGE",
)  # fmt: skip
EXCHANGES: Final = ("Q", "P", "Z", "K", "N", "D")
_MS_EXCHANGES: Final = 2  # the first two stamp whole milliseconds


@dataclass(frozen=True, slots=True)
class TickSize:
    """How much to generate.

    Attributes:
        trades: Trades per day, about; all symbols together.
        quotes: Quotes per day, about.
        late: Share of rows that arrive late.
        overnight: Corrections of one day's quotes that arrive with the next day's file.
    """

    trades: int = 100_000
    quotes: int = 750_000
    late: float = 0.004
    overnight: int = 60


@dataclass(frozen=True, slots=True)
class _Market:
    """The hidden state behind a day: `(symbols, seconds)` grids from `OPEN_S` to `END_S`."""

    mid: FloatArray
    pressure: FloatArray
    spread: FloatArray


def write_ticks(folder: Path, days: Sequence[str], *, seed: int, size: TickSize) -> Iterator[str]:
    """Write the days' trades and quotes under `folder`; yield each day as `YYYYMMDD` when both are on disk.

    Args:
        days: Dates as `YYYY-MM-DD`, ascending; a day's prices continue those of the day before.

    Cost: about 0.6 s and 250 MB per million rows.
    """
    prices: FloatArray = 20.0 * 1.15 ** np.arange(len(SYMBOLS), dtype=np.float64)
    overnight: pa.Table | None = None
    for day in days:
        rng = np.random.default_rng([seed, day_of_text(day)])
        market = _market(rng, prices)
        prices = market.mid[:, -1]
        name = day.replace("-", "")
        trades = _trades(rng, market, day, size)
        quotes, corrections = _quotes(rng, market, day, size)
        if overnight is not None:
            quotes = pa.concat_tables([quotes, overnight])
        overnight = corrections
        for kind, table in (("trades", trades), ("quotes", quotes)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            pq.write_table(table, folder / kind / f"{name}.parquet", compression="zstd")
        yield name


def _ar1(rng: np.random.Generator, rows: int, steps: int, tau: float) -> FloatArray:
    """Unit-variance exponential moving noise with time constant `tau` steps, `(rows, steps)`."""
    keep = np.exp(-1.0 / tau)
    noise = rng.standard_normal((rows, steps)) * np.sqrt(1.0 - keep * keep)
    noise[:, 0] = rng.standard_normal(rows)
    size = 1 << (2 * steps - 1).bit_length()
    kernel = np.fft.rfft(keep ** np.arange(steps), size)
    smooth: FloatArray = np.fft.irfft(np.fft.rfft(noise, size) * kernel, size)[:, :steps]
    return smooth


def _activity() -> FloatArray:
    """Relative activity per second: little before the bell, a U during the session, little after."""
    second = np.arange(OPEN_S, END_S)
    through = (second - BELL_S) / (CLOSE_S - BELL_S)
    session = 0.6 + 3.0 * (2 * np.clip(through, 0, 1) - 1) ** 4 + 2.5 * np.exp(-np.abs(through) * 60)
    quiet = np.where(second < BELL_S, 0.02 + 0.1 * np.exp((second - BELL_S) / 1800), 0.03)
    return np.where((through >= 0) & (through < 1), session, quiet)


def _market(rng: np.random.Generator, prices: FloatArray) -> _Market:
    symbols, steps = len(prices), END_S - OPEN_S
    pressure = _ar1(rng, symbols, steps, 45.0)
    heat = np.exp(0.5 * _ar1(rng, symbols, steps, 900.0)) * np.sqrt(_activity())
    # Pressure moves the price while it lasts: what makes the next minute a little predictable.
    moves = 3e-5 * heat * (0.18 * pressure + rng.standard_normal((symbols, steps)))
    moves[:, 0] = 0.0
    mid = prices[:, None] * np.exp(np.cumsum(moves, axis=1))
    return _Market(mid, pressure, np.maximum(0.01, 2e-4 * mid * np.clip(heat, 0.5, 3.0)))


def _arrivals(rng: np.random.Generator, total: int) -> tuple[npt.NDArray[np.int64], Int64Array]:
    """Draw a self-exciting stream: parents by activity, each with generations of children close behind.

    Returns:
        Symbol numbers and ns after midnight, both `(n,)` with n about `total`, in order of symbol, then time.
    """
    branching, generations = 0.55, 5
    parents = int(total * (1 - branching) / (1 - branching ** (generations + 1)))
    weights = 1.0 / np.arange(1, len(SYMBOLS) + 1) ** 0.7
    symbol = rng.choice(len(SYMBOLS), parents, p=weights / weights.sum())
    share = np.cumsum(_activity())
    second = np.searchsorted(share, rng.random(parents) * share[-1])
    time = (OPEN_S + second) * SECOND_NS + rng.integers(0, SECOND_NS, parents)
    symbols, times = [symbol], [time]
    for generation in range(generations):
        children = rng.poisson(branching, len(time))
        symbol, time = np.repeat(symbol, children), np.repeat(time, children)
        delay = rng.exponential(2e7 * 3**generation, len(time)).astype(np.int64)
        # A sweep of the book prints several rows at one instant.
        time = time + np.where(rng.random(len(time)) < 0.15, 0, delay)
        symbols.append(symbol)
        times.append(time)
    symbol, time = np.concatenate(symbols), np.minimum(np.concatenate(times), END_S * SECOND_NS - 1)
    order = np.lexsort((time, symbol))
    return symbol[order], time[order]


def _stamp(rng: np.random.Generator, symbol: Int64Array, time: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Choose each row's exchange and stamp its time as that exchange does, keeping the order of arrival."""
    exchange = rng.integers(0, len(EXCHANGES), len(time))
    coarse = exchange < _MS_EXCHANGES
    stamped = np.where(coarse, time - time % 1_000_000, time)
    order = np.lexsort((stamped, symbol))
    return exchange[order], stamped[order]


def _created(rng: np.random.Generator, time: Int64Array) -> Int64Array:
    """When a row that is on time could have been known: the feed's delay after it."""
    delay: Int64Array = rng.lognormal(12.8, 0.6, len(time)).astype(np.int64)
    return time + delay


def _at(grid: FloatArray, symbol: Int64Array, time: Int64Array) -> FloatArray:
    values: FloatArray = grid[symbol, np.clip(time // SECOND_NS - OPEN_S, 0, grid.shape[1] - 1)]
    return values


def _columns(day: str, symbol: Int64Array, time: Int64Array) -> dict[str, pa.Array]:
    midnight = day_of_text(day) * DAY_NS
    names = pa.array(SYMBOLS, pa.large_string()).take(pa.array(symbol))
    return {"symbol": names, "ts": pa.array(midnight + time, pa.timestamp("ns", "UTC"))}


def _trades(rng: np.random.Generator, market: _Market, day: str, size: TickSize) -> pa.Table:
    symbol, time = _arrivals(rng, size.trades)
    exchange, time = _stamp(rng, symbol, time)
    rows = len(time)
    side = np.where(rng.random(rows) < 1 / (1 + np.exp(-_at(market.pressure, symbol, time))), 0.5, -0.5)
    price = np.round(_at(market.mid, symbol, time) + side * _at(market.spread, symbol, time), 2)
    lots = 100 * np.maximum(1, rng.lognormal(0.4, 0.9, rows).astype(np.int64))
    shares = np.where(rng.random(rows) < 0.2, rng.integers(1, 100, rows), lots)
    late = rng.random(rows) < size.late
    created = _created(rng, time) + np.where(late, rng.exponential(20e9, rows), 0).astype(np.int64)
    table = pa.table(
        {
            **_columns(day, symbol, time),
            "price": price,
            "size": shares,
            "exchange": pa.array(EXCHANGES, pa.large_string()).take(pa.array(exchange)),
            "conditions": pa.array(np.where(late, "Z", ""), pa.large_string()),
            "suspicious": rng.random(rows) < 0.002,
            "created": pa.array(day_of_text(day) * DAY_NS + created, pa.timestamp("ns", "UTC")),
        }
    )
    # Late reports come at the end of the file, in the order in which they came.
    last = np.flatnonzero(late)
    order = np.concatenate([np.flatnonzero(~late), last[np.argsort(created[last], kind="stable")]])
    return table.take(pa.array(order))


def _quotes(rng: np.random.Generator, market: _Market, day: str, size: TickSize) -> tuple[pa.Table, pa.Table]:
    """Return the day's quotes, and the corrections of them that only the next day's file brings."""
    symbol, time = _arrivals(rng, size.quotes)
    exchange, time = _stamp(rng, symbol, time)
    rows = len(time)
    mid, spread = _at(market.mid, symbol, time), _at(market.spread, symbol, time)
    lean = 0.5 * _at(market.pressure, symbol, time)
    away = rng.exponential(0.25, rows) * spread
    late_rows = np.flatnonzero(rng.random(rows) < size.late)
    night_rows = rng.choice(rows, min(size.overnight, rows), replace=False)
    sides = rng.random(rows)
    bid_null, ask_null = sides >= 0.51, sides < 0.49  # a few rows carry both sides

    def table(pick: Int64Array, known: Int64Array, worse: float) -> pa.Table:
        bid = np.round(mid[pick] - spread[pick] / 2 - away[pick] - worse, 2)
        ask = np.round(mid[pick] + spread[pick] / 2 + away[pick] + worse, 2)
        bid_size = 100 * (1 + rng.lognormal(1.0 + lean[pick], 0.7).astype(np.int64))
        ask_size = 100 * (1 + rng.lognormal(1.0 - lean[pick], 0.7).astype(np.int64))
        return pa.table(
            {
                **_columns(day, symbol[pick], time[pick]),
                "bid": pa.array(bid, mask=bid_null[pick]),
                "bid_size": pa.array(bid_size, mask=bid_null[pick]),
                "ask": pa.array(ask, mask=ask_null[pick]),
                "ask_size": pa.array(ask_size, mask=ask_null[pick]),
                "exchange": pa.array(EXCHANGES, pa.large_string()).take(pa.array(exchange[pick])),
                "suspicious": rng.random(len(pick)) < 0.001,
                "created": pa.array(day_of_text(day) * DAY_NS + known, pa.timestamp("ns", "UTC")),
            }
        )

    # A correction repeats the event's time; half of them come soon enough to matter to a 5 s ttl.
    delay = rng.exponential(np.where(rng.random(len(late_rows)) < 0.5, 1.5e9, 3e11)).astype(np.int64)
    known = time[late_rows] + 1_000_000 + delay
    by_arrival = np.argsort(known, kind="stable")
    today = [
        table(np.arange(rows), _created(rng, time), 0.0),
        table(late_rows[by_arrival], known[by_arrival], 0.01),
    ]
    next_open = DAY_NS + OPEN_S * SECOND_NS + rng.integers(0, 600 * SECOND_NS, len(night_rows))
    return pa.concat_tables(today), table(night_rows, np.sort(next_open), 0.02)
