"""The as-of join against Polars join_asof, DuckDB ASOF JOIN and pandas merge_asof.

All engines run in one process on the same columns, in their own tables, with as many threads as there are
cores. Answers are compared value for value before anything is timed. "ceiling" is what no join can beat: one
read of keys and times and one gather per column, in bare loops on as many threads, its rows known before; its
ratio is the share of it that ours reaches. `FEATURESTORE_BENCH=large` adds the tens of millions of rows
(about 3 GB).
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
from benchmarks.measure import OURS, Workload, compare
from numba import njit

from featurestore.temporal.align import AsOf, align
from featurestore.temporal.join import asof_join
from featurestore.temporal.threads import run_parallel, split, thread_count

DAY_NS = 86_400_000_000_000
STAMP = pa.timestamp("ns", "UTC")


def sides(spine: int, rows: int, keys: int, *, skewed: bool = False) -> tuple[pa.Table, pa.Table]:
    """Return a spine and rows of one day, in time order, with int64 keys; skewed: one has half."""
    rng = np.random.default_rng(11)

    def side(count: int) -> dict[str, Any]:
        codes = rng.integers(0, keys, count)
        if skewed:
            codes[rng.random(count) < 0.5] = 0
        return {"ts": pa.array(np.sort(rng.integers(0, DAY_NS, count))).view(STAMP), "k": codes}

    left, right = side(spine), side(rows)
    return pa.table(left), pa.table(right | {"v": rng.random(rows)})


def with_keys(table: pa.Table, kind: str) -> pa.Table:
    """Write the keys as strings, as a dictionary, or leave them int64."""
    if kind == "int64":
        return table
    names = pa.array([f"SYM{code:04d}" for code in range(int(max(table["k"].to_numpy())) + 1)])
    coded = pa.DictionaryArray.from_arrays(pa.array(table["k"].to_numpy().astype(np.int32)), names)
    column = coded if kind == "dictionary" else coded.cast(pa.string())
    return table.set_column(table.column_names.index("k"), "k", column)


def engines(
    left: pa.Table, right: pa.Table, by: str | None, others: set[str]
) -> dict[str, Callable[[], Any]]:
    """Return a join per engine, each on tables of its own kind; every one returns the joined values."""
    found: dict[str, Callable[[], Any]] = {
        OURS: lambda: asof_join(left, right, on="ts", by=by, columns=["v"])
    }
    if "polars" in others:
        frames = []
        for table in (left, right):
            frame: Any = pl.from_arrow(table)
            if pa.types.is_dictionary(table.schema.field("k").type):
                frame = frame.with_columns(pl.col("k").cast(pl.Categorical))
            frames.append((frame if by else frame.drop("k")).set_sorted("ts"))
        one, two = frames
        options: dict[str, Any] = {"by": by, "check_sortedness": False} if by else {}
        found["polars"] = lambda: one.join_asof(two, on="ts", **options)
    if "pandas" in others:
        first, second = (t.to_pandas() if by else t.drop_columns(["k"]).to_pandas() for t in (left, right))
        found["pandas"] = lambda: pd.merge_asof(first, second, on="ts", by=by)
    if "duckdb" in others:
        found["duckdb"] = _duckdb(left, right, by)
    return found


def _duckdb(left: pa.Table, right: pa.Table, by: str | None) -> Callable[[], Any]:
    database = duckdb.connect()
    database.execute(f"SET threads = {os.cpu_count()}")
    database.register("l", left.append_column("n", pa.array(np.arange(len(left)))))
    database.register("r", right)
    key = "l.k = r.k AND " if by else ""
    query = f"SELECT l.*, r.v FROM l ASOF LEFT JOIN r ON {key}l.ts >= r.ts"  # noqa: S608 -- constants
    return lambda: database.sql(query).to_arrow_table()


@njit(nogil=True)
def read(words: Any) -> Any:
    """Read memory once, in order."""
    total = np.uint64(0)
    for place in range(len(words)):
        total ^= words[place]
    return total


@njit(nogil=True)
def pick(column: Any, rows: Any, out: Any) -> None:
    """Gather, and nothing else."""
    for place in range(len(rows)):
        out[place] = column[rows[place]]


def ceiling(left: pa.Table, rights: Sequence[tuple[pa.Table, str]], by: str | None) -> Callable[[], None]:
    """Return the least work of a join: read keys and times once, gather a column of each right table."""
    names = ["ts"] + ([by] if by else [])
    buffers = [
        np.frombuffer(buffer, np.uint64, buffer.size // 8)
        for table in (left, *(right for right, _ in rights))
        for name in names
        for buffer in table[name].combine_chunks().buffers()[1:]
    ]
    picks = []
    for right, column in rights:
        numbered = right.select(names).append_column("row", pa.array(np.arange(len(right), dtype=np.int32)))
        found = asof_join(left.select(names), numbered, on="ts", by=by)["row"].fill_null(0).to_numpy()
        picks.append((right[column].to_numpy(), found, np.empty(len(left))))
    parts = thread_count(None, len(left))

    def run() -> None:
        tasks = [partial(read, words[a:b]) for words in buffers for a, b in split(len(words), parts)]
        for column, rows, out in picks:
            tasks += [partial(pick, column, rows[a:b], out[a:b]) for a, b in split(len(rows), parts)]
        run_parallel(tasks)

    return run


def values(result: Any) -> "np.ndarray[Any, Any]":
    """Return the joined values in the spine's order, NaN where there is none."""
    if isinstance(result, pa.Table):
        column: np.ndarray[Any, Any] = result["v"].to_numpy()
        return column[np.argsort(result["n"].to_numpy())] if "n" in result.column_names else column
    return np.asarray(result["v"].to_numpy(), np.float64)


def versus(
    name: str, left: pa.Table, right: pa.Table, by: str | None, goals: dict[str, float], repeats: int = 9
) -> Workload:
    """Compare answers, then times."""
    runs = engines(left, right, by, set(goals))
    mine = values(runs[OURS]())
    for engine, run in runs.items():
        assert np.array_equal(mine, values(run()), equal_nan=True), f"{name}: {engine} differs"
    runs["ceiling"] = ceiling(left, [(right, "v")], by)
    return compare(name, runs, rows=len(left), goals=goals, repeats=repeats)


def keyed() -> list[Workload]:
    """1 M by 500 K with 1,000 keys of three kinds, and without keys."""
    left, right = sides(1_000_000, 500_000, 1_000)
    found = []
    for kind, goal in (("string", 3), ("dictionary", 5), ("int64", 5)):
        goals = {"polars": float(goal)} | ({"duckdb": 15.0, "pandas": 6.0} if kind != "dictionary" else {})
        name = f"1 M x 500 K, 1,000 {kind} keys"
        found.append(versus(name, with_keys(left, kind), with_keys(right, kind), "k", goals))
    goals = {"polars": 2.0, "duckdb": 15.0, "pandas": 6.0}
    found.append(versus("1 M x 500 K, no keys", left, right, None, goals))
    return found


def streams() -> Workload:
    """Eight streams of 500 K rows onto one spine of 1 M."""
    left, _ = sides(1_000_000, 1, 1_000)
    left = with_keys(left, "string")
    rights = []
    for place in range(8):
        rng = np.random.default_rng(place)
        columns = {
            "ts": pa.array(np.sort(rng.integers(0, DAY_NS, 500_000))).view(STAMP),
            "k": rng.integers(0, 1_000, 500_000),
            f"v{place}": rng.random(500_000),
        }
        rights.append(with_keys(pa.table(columns), "string"))
    spine: Any = pl.from_arrow(left)
    frames: list[Any] = [pl.from_arrow(right) for right in rights]

    def of_polars() -> Any:
        joined = spine.set_sorted("ts")
        for frame in frames:
            joined = joined.join_asof(frame.set_sorted("ts"), on="ts", by="k", check_sortedness=False)
        return joined

    def ours() -> pa.Table:
        return align(left, {f"s{n}": AsOf(right) for n, right in enumerate(rights)}, on="ts", by="k")

    mine, theirs = ours(), of_polars()
    for place in range(8):
        column = f"v{place}"
        assert np.array_equal(mine[column].to_numpy(), theirs[column].to_numpy(), equal_nan=True)
    runs: dict[str, Callable[[], Any]] = {OURS: ours, "polars": of_polars}
    runs["ceiling"] = ceiling(left, [(right, f"v{place}") for place, right in enumerate(rights)], "k")
    return compare("8 streams of 500 K onto 1 M", runs, rows=8_000_000, goals={"polars": 6.0}, repeats=5)


def unordered() -> list[Workload]:
    """The same rows grouped by key, and in no order at all: ours alone, no order is asked for."""
    left, right = sides(1_000_000, 500_000, 1_000)
    expected = values(asof_join(left, right, on="ts", by="k", columns=["v"]))
    rng = np.random.default_rng(3)
    found = []
    for name in ("grouped by key", "shuffled"):
        orders = [
            np.argsort(table["k"].to_numpy(), kind="stable") if "key" in name else rng.permutation(len(table))
            for table in (left, right)
        ]
        one, two = left.take(pa.array(orders[0])), right.take(pa.array(orders[1]))

        def run(one: pa.Table = one, two: pa.Table = two) -> pa.Table:
            return asof_join(one, two, on="ts", by="k", columns=["v"])

        assert np.array_equal(values(run()), expected[orders[0]], equal_nan=True)
        found.append(compare(f"1 M x 500 K, {name}", {OURS: run}, rows=1_000_000))
    return found


def large() -> list[Workload]:
    """20 M by 10 M, one key with half of the rows, a million keys; and how time grows from 5 M to 50 M."""
    goals = {"polars": 4.0}
    found = [
        versus("20 M x 10 M, 1,000 keys", *sides(20_000_000, 10_000_000, 1_000), "k", goals, 3),
        versus("20 M x 10 M, skewed", *sides(20_000_000, 10_000_000, 1_000, skewed=True), "k", goals, 3),
        versus("20 M x 10 M, 1 M keys", *sides(20_000_000, 10_000_000, 1_000_000), "k", goals, 3),
    ]
    medians = []
    for millions in (5, 50):
        left, right = sides(millions * 1_000_000, millions * 500_000, 1_000)

        def run(left: pa.Table = left, right: pa.Table = right) -> pa.Table:
            return asof_join(left, right, on="ts", by="k", columns=["v"])

        found.append(compare(f"{millions} M x {millions / 2:g} M", {OURS: run}, rows=len(left), repeats=3))
        medians.append(found[-1].medians[OURS])
        del left, right, run
    found[-1].notes["time(50 M) / time(5 M), at most 11"] = round(medians[1] / medians[0], 2)
    return found


def run() -> list[Workload]:
    """Run every workload."""
    found = [*keyed(), streams(), *unordered()]
    return found + large() if os.environ.get("FEATURESTORE_BENCH") == "large" else found
