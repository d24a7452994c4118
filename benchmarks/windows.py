"""Trailing windows: count, sum, mean, min, max and std over three lengths, against Polars and DuckDB.

    python -m benchmarks.windows [--spine 1000000 --events 5000000 --keys 1000 --repeats 3]

Every engine gets the same Arrow tables and gives one row per spine row. Their answers are compared before
any time is reported: exactly for counts and extremes, within a tolerance for the sums, which only ours are
exact for. `FEATURESTORE_BENCH=large` adds how time grows from 5 M events to 50 M, ours alone (about 5 GB).
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

from featurestore.temporal.keys import code_keys
from featurestore.temporal.rows import Rows
from featurestore.temporal.times import times_ns
from featurestore.temporal.windows import Window, window_aggregate

FUNCTIONS = ("count", "sum", "mean", "min", "max", "std")
MINUTES = (1, 10, 60)
MINUTE_NS = 60_000_000_000
DAY_NS = 86_400_000_000_000


def tables(spine: int, events: int, keys: int) -> tuple[pa.Table, pa.Table]:
    """Return readers and events of one day in time order, values like prices."""
    rng = np.random.default_rng(7)
    prices = np.round(rng.normal(100, 5, events), 2)
    stamp = pa.timestamp("ns", "UTC")
    reader_times = np.sort(rng.choice(DAY_NS // 1000, spine, replace=False)) * 1000
    event_times = np.sort(rng.choice(DAY_NS // 1000, events, replace=False)) * 1000 + 1
    left = {"k": rng.integers(0, keys, spine), "t": pa.array(reader_times).view(stamp)}
    right = {"k": rng.integers(0, keys, events), "t": pa.array(event_times).view(stamp), "x": prices}
    return pa.table(left), pa.table(right)


def ours(left: pa.Table, right: pa.Table) -> dict[str, np.ndarray[Any, Any]]:
    """Return our answers as the other engines give theirs."""
    return {name: c.to_numpy(zero_copy_only=False) for name, c in aggregated(left, right).items()}


def aggregated(left: pa.Table, right: pa.Table) -> dict[str, pa.Array]:
    """Number the keys, aggregate."""
    coded = code_keys([[left["k"]], [right["k"]]], ["k"])
    windows = [Window("x", f, m * MINUTE_NS, name=f"{f}_{m}") for f in FUNCTIONS for m in MINUTES]
    spine = Rows(coded.codes[0], times_ns(left["t"], "t")[0])
    rows = Rows(coded.codes[1], times_ns(right["t"], "t")[0])
    return window_aggregate(spine, rows, {"x": right["x"]}, windows, entities=coded.entities)


def of_polars(left: pa.Table, right: pa.Table) -> dict[str, np.ndarray[Any, Any]]:
    """Lay readers among the events as rows without a value, roll by time, keep the readers."""
    readers = pl.DataFrame(left).with_row_index("n").with_columns(x=pl.lit(None, pl.Float64))
    events = pl.DataFrame(right).with_columns(n=pl.lit(None, pl.UInt32))
    both = pl.concat([readers.select("k", "t", "x", "n"), events.select("k", "t", "x", "n")]).sort("t")
    columns = []
    for m in MINUTES:
        has = pl.col("x").is_not_null().cast(pl.Int64)
        roll: dict[str, Any] = {"by": "t", "window_size": f"{m}m", "closed": "right"}
        columns += [
            has.rolling_sum_by(**roll).over("k").alias(f"count_{m}"),
            *(
                getattr(pl.col("x"), f"rolling_{f}_by")(**roll).over("k").alias(f"{f}_{m}")
                for f in FUNCTIONS[1:]
            ),
        ]
    out = both.lazy().with_columns(columns).filter(pl.col("n").is_not_null()).sort("n").collect()
    return {name: out[name].to_numpy() for name in out.columns if "_" in name}


def of_duckdb(left: pa.Table, right: pa.Table) -> dict[str, np.ndarray[Any, Any]]:
    """RANGE frames over readers and events together, in ns; keep the readers."""
    database = duckdb.connect()
    database.execute(f"SET threads = {os.cpu_count()}")
    database.register("readers", left.append_column("n", pa.array(np.arange(len(left)))))
    database.register("events", right)
    picks = ", ".join(
        f"{'stddev_samp' if f == 'std' else 'avg' if f == 'mean' else f}(x) OVER w{m} AS {f}_{m}"
        for f in FUNCTIONS
        for m in MINUTES
    )
    frames = ", ".join(
        f"w{m} AS (PARTITION BY k ORDER BY t RANGE BETWEEN {m * MINUTE_NS - 1} PRECEDING AND CURRENT ROW)"
        for m in MINUTES
    )
    query = f"""
        WITH both_sides AS (
            SELECT k, epoch_ns(t) AS t, NULL::DOUBLE AS x, n FROM readers
            UNION ALL SELECT k, epoch_ns(t), x, NULL FROM events)
        SELECT * EXCLUDE (k, t, x) FROM (SELECT *, {picks} FROM both_sides WINDOW {frames})
        WHERE n IS NOT NULL ORDER BY n
    """  # noqa: S608 -- made of the constants above
    out = database.sql(query).to_arrow_table()
    return {c: out[c].to_numpy() for c in out.column_names if c != "n"}


def check(mine: dict[str, np.ndarray[Any, Any]], theirs: dict[str, np.ndarray[Any, Any]], who: str) -> None:
    """Compare every column; counts and extremes exactly."""
    for name, column in mine.items():
        other = theirs[name].astype(np.float64)
        values = column.astype(np.float64)
        if name.startswith(("sum", "mean")):
            # Without a value in the window Polars and DuckDB disagree on null and zero: not compared.
            seen = ~np.isnan(values)
            assert np.allclose(values[seen], other[seen], rtol=1e-9), f"{who}: {name}"
        elif name.startswith("std"):
            seen = ~np.isnan(values)
            assert np.allclose(values[seen], other[seen], rtol=1e-6, atol=1e-4), f"{who}: {name}"
        else:
            assert np.array_equal(
                values, np.nan_to_num(other) if name.startswith("count") else other, True
            ), f"{who}: {name}"


def grown(events: int, keys: int, repeats: int) -> float:
    """Return the median seconds of ours on `events` events and a fifth as many readers, 5 M events a day."""
    rng = np.random.default_rng(9)
    span, stamp = DAY_NS * events // 5_000_000, pa.timestamp("ns", "UTC")
    left, right = (
        pa.table(
            {
                "k": rng.integers(0, keys, count),
                "t": pa.array(np.sort(rng.integers(0, span, count))).view(stamp),
            }
        )
        for count in (events // 5, events)
    )
    right = right.append_column("x", pa.array(np.round(rng.normal(100, 5, events), 2)))
    return statistics.median(measure(lambda: aggregated(left, right), repeats))


def measure(run: Callable[[], object], repeats: int) -> list[float]:
    """Return the seconds of each of `repeats` runs."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return seconds


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Compare answers, then report medians and ratios as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spine", type=int, default=1_000_000)
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--keys", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args(arguments)
    left, right = tables(asked.spine, asked.events, asked.keys)
    mine = ours(left, right)
    seconds: dict[str, list[float]] = {}
    for who, engine in (("polars", of_polars), ("duckdb", of_duckdb)):
        begin = time.perf_counter()
        theirs = engine(left, right)
        seconds[who] = [time.perf_counter() - begin]
        check(mine, theirs, who)
        del theirs
        if seconds[who][0] < 10:
            seconds[who] += measure(partial(engine, left, right), asked.repeats - 1)
    seconds["featurestore"] = measure(lambda: ours(left, right), max(asked.repeats, 3))
    medians = {who: statistics.median(times) for who, times in seconds.items()}
    report: dict[str, Any] = {
        "benchmark": "windows",
        "rows": {"spine": asked.spine, "events": asked.events, "keys": asked.keys},
        "threads": os.cpu_count(),
        "medians_s": {who: round(value, 3) for who, value in medians.items()},
        "ratios": {
            who: round(value / medians["featurestore"], 2)
            for who, value in medians.items()
            if who != "featurestore"
        },
    }
    if os.environ.get("FEATURESTORE_BENCH") == "large":
        del left, right, mine
        ratio = grown(10 * asked.events, asked.keys, 3) / grown(asked.events, asked.keys, 3)
        report["time of 10 times the events, at most 11"] = round(ratio, 2)
    print(json.dumps(report))
    return report


if __name__ == "__main__":
    main()
