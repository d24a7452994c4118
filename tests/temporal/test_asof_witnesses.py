"""Second witnesses: Polars, pandas and DuckDB where their rules are ours, and what they do where not."""

import warnings
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from featurestore.temporal.join import asof_join

DIRECTIONS = ("backward", "forward", "nearest")


def tables(seed: int, *, ties: bool = False) -> tuple[pa.Table, pa.Table]:
    """Return both sides in time order; without ties no row has the time of another one of its side."""
    rng = np.random.default_rng(seed)

    def side(count: int, name: str) -> pa.Table:
        span = 60 if ties else 4000
        times = np.sort(rng.integers(0, span, count) if ties else rng.choice(span, count, replace=False))
        keys = rng.integers(0, 5, count)
        return pa.table({"ts": times * 10, "k": keys, name: np.arange(count)})

    return side(400, "x"), side(300, "v")


def ours(left: pa.Table, right: pa.Table, **options: Any) -> list[int | None]:
    values: list[int | None] = asof_join(left, right, on="ts", by="k", **options)["v"].to_pylist()
    return values


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("tolerance", [None, 0, 50])
@pytest.mark.parametrize("boundary", ["inclusive", "exclusive"])
def test_polars_agrees_without_ties(seed: int, direction: Any, tolerance: int | None, boundary: str) -> None:
    left, right = tables(seed)
    frames: list[Any] = [pl.from_arrow(left), pl.from_arrow(right)]
    theirs = frames[0].join_asof(
        frames[1],
        on="ts",
        by="k",
        strategy=direction,
        tolerance=tolerance,
        allow_exact_matches=boundary == "inclusive",
        check_sortedness=False,
    )
    mine = ours(left, right, direction=direction, tolerance=tolerance, boundary=boundary)
    if direction == "nearest":
        mine, other = _unequal_distances(left, right, mine, theirs["v"].to_list())
    else:
        other = theirs["v"].to_list()
    assert mine == other


def _unequal_distances(
    left: pa.Table, right: pa.Table, mine: list[int | None], other: list[int | None]
) -> tuple[list[int | None], list[int | None]]:
    """Leave out equidistant rows, where we take the backward one and others may not."""
    now, then = left["ts"].to_numpy(), right["ts"].to_numpy()
    kept = [
        i
        for i, (a, b) in enumerate(zip(mine, other, strict=True))
        if a is None or b is None or a == b or abs(now[i] - then[a]) != abs(now[i] - then[b])
    ]
    return [mine[i] for i in kept], [other[i] for i in kept]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("tolerance", [None, 50])
@pytest.mark.parametrize("boundary", ["inclusive", "exclusive"])
def test_pandas_agrees_backward_and_forward_ties_included(
    seed: int, direction: Any, tolerance: int | None, boundary: str
) -> None:
    left, right = tables(seed, ties=direction == "backward")
    theirs = pd.merge_asof(
        left.to_pandas(),
        right.to_pandas(),
        on="ts",
        by="k",
        direction=direction,
        tolerance=tolerance,
        allow_exact_matches=boundary == "inclusive",
    )
    other = [None if np.isnan(v) else int(v) for v in theirs["v"]]
    mine = ours(left, right, direction=direction, tolerance=tolerance, boundary=boundary)
    if direction == "nearest":
        mine, other = _unequal_distances(left, right, mine, other)
    assert mine == other


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("boundary", "operator"), [("inclusive", ">="), ("exclusive", ">")])
def test_duckdb_agrees_without_ties(seed: int, boundary: str, operator: str) -> None:
    left, right = tables(seed)
    database = duckdb.connect()
    database.register("l", left)
    database.register("r", right)
    query = f"SELECT x, v FROM l ASOF LEFT JOIN r ON l.k = r.k AND l.ts {operator} r.ts ORDER BY x"  # noqa: S608
    theirs = database.sql(query).to_arrow_table()["v"].to_pylist()
    assert ours(left, right, boundary=boundary) == theirs


@pytest.mark.parametrize("seed", range(4))
def test_all_witnesses_agree_on_composite_string_keys(seed: int) -> None:
    left, right = tables(seed)
    both = []
    for table in (left, right):
        keys = table["k"].to_numpy()
        parts = {"a": [f"a{k % 2}" for k in keys], "b": [f"b{k // 2}" for k in keys]}
        both.append(table.append_column("a", pa.array(parts["a"])).append_column("b", pa.array(parts["b"])))
    mine = asof_join(*(t.drop_columns(["k"]) for t in both), on="ts", by=["a", "b"])["v"].to_pylist()
    assert mine == ours(left, right)
    frames: list[Any] = [pl.from_arrow(t.drop_columns(["k"])) for t in both]
    joined = frames[0].join_asof(frames[1], on="ts", by=["a", "b"], check_sortedness=False)
    assert joined["v"].to_list() == mine


def test_where_they_differ_null_keys() -> None:
    """We match no null key; nor does Polars; pandas matches null with null."""
    left = pa.table({"ts": [5], "k": pa.array([None], pa.string())})
    right = pa.table({"ts": [4], "k": pa.array([None], pa.string()), "v": [1]})
    assert ours(left, right) == [None]
    frames: list[Any] = [pl.from_arrow(left), pl.from_arrow(right)]
    assert frames[0].join_asof(frames[1], on="ts", by="k", check_sortedness=False)["v"].to_list() == [None]


def test_where_they_differ_equal_distances() -> None:
    """Nearest at equal distances: ours and pandas take the backward row, Polars the forward one."""
    left, right = pa.table({"ts": [10]}), pa.table({"ts": [8, 12], "v": [0, 1]})
    assert asof_join(left, right, on="ts", direction="nearest")["v"].to_pylist() == [0]
    frame = pd.merge_asof(left.to_pandas(), right.to_pandas(), on="ts", direction="nearest")
    assert frame["v"].tolist() == [0]
    frames: list[Any] = [pl.from_arrow(left), pl.from_arrow(right)]
    assert frames[0].join_asof(frames[1], on="ts", strategy="nearest")["v"].to_list() == [1]


def test_where_they_differ_unsorted_input() -> None:
    """We find the order ourselves; pandas and Polars refuse."""
    left, right = pa.table({"ts": [5, 3]}), pa.table({"ts": [4, 2], "v": [4, 2]})
    assert asof_join(left, right, on="ts")["v"].to_pylist() == [4, 2]
    with pytest.raises(ValueError, match="sorted"):
        pd.merge_asof(left.to_pandas(), right.to_pandas(), on="ts")
    frames: list[Any] = [pl.from_arrow(left), pl.from_arrow(right)]
    with pytest.raises(pl.exceptions.InvalidOperationError, match="sorted"):
        frames[0].join_asof(frames[1], on="ts")


def test_where_they_differ_the_order_of_rows() -> None:
    """One row per left row in its order, duplicates too; DuckDB keeps all rows but promises no order."""
    left = pa.table({"ts": [5, 3, 5], "x": [0, 1, 2]})
    right = pa.table({"ts": [4, 2], "v": [4, 2]})
    assert asof_join(left, right, on="ts")["v"].to_pylist() == [4, 2, 4]
    database = duckdb.connect()
    database.register("l", left)
    database.register("r", right)
    rows = database.sql("SELECT x, v FROM l ASOF LEFT JOIN r ON l.ts >= r.ts").fetchall()
    assert sorted(rows) == [(0, 4), (1, 2), (2, 4)]


def test_where_they_differ_integers_with_gaps() -> None:
    """An int64 that is not matched is null here and stays exact; pandas makes a float of the column."""
    left, right = pa.table({"ts": [1, 5]}), pa.table({"ts": [4], "v": [2**53 + 1]})
    assert asof_join(left, right, on="ts")["v"].to_pylist() == [None, 2**53 + 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = pd.merge_asof(left.to_pandas(), right.to_pandas(), on="ts")
    assert frame["v"].dtype == np.float64
    assert int(frame["v"][1]) != 2**53 + 1
