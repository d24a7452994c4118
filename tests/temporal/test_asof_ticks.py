"""Real quotes as of real trades: a sample against the oracle, all of it against Polars."""

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from tests.environment import TICKS

from featurestore.temporal.align import AsOf, align, align_with_statistics
from featurestore.temporal.join import asof_join
from featurestore.testing.oracle import asof_oracle

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not TICKS.is_dir(), reason="no tick data: set FEATURESTORE_TICKS to its folder"),
]


@pytest.fixture(scope="module")
def ticks() -> tuple[pa.Table, pa.Table]:
    """One day of trades and of quotes, each in its file's order: symbol by symbol, not in time."""
    trades, quotes = (pq.read_table(TICKS / kind / "20131008.parquet") for kind in ("trades", "quotes"))
    return trades, quotes.append_column("row", pa.array(np.arange(len(quotes))))


def test_a_sample_agrees_with_the_oracle(ticks: tuple[pa.Table, pa.Table]) -> None:
    trades, quotes = ticks
    start = pc.index(trades["symbol"], "IBM").as_py() + 4000
    spine = trades.slice(start, 60)
    low, high = pc.min_max(spine["ts"]).as_py().values()
    near = pc.and_(pc.greater_equal(quotes["ts"], low), pc.less_equal(quotes["ts"], high))
    rows = quotes.filter(near)
    for boundary in ("inclusive", "exclusive"):
        joined = asof_join(spine, rows, on="ts", by="symbol", columns=["row"], prefix="q_", boundary=boundary)
        sides = [
            column
            for table in (spine, rows)
            for column in (table["symbol"].to_pylist(), table["ts"].cast(pa.int64()).to_pylist())
        ]
        expected = asof_oracle(*sides, boundary=boundary)
        numbers = rows["row"].to_pylist()
        assert joined["q_row"].to_pylist() == [None if r < 0 else numbers[r] for r in expected]


def test_a_whole_day_agrees_with_polars(ticks: tuple[pa.Table, pa.Table]) -> None:
    trades, quotes = ticks
    joined = asof_join(trades, quotes, on="ts", by="symbol", columns=["row"], tolerance="5s")
    right: Any = pl.from_arrow(quotes.select(["symbol", "ts", "row"]))
    left: Any = pl.from_arrow(trades.append_column("n", pa.array(np.arange(len(trades)))))
    # Polars wants time order, and a stable sort keeps the order of arrival, which decides ties.
    theirs = left.sort("ts", maintain_order=True).join_asof(
        right.sort("ts", maintain_order=True), on="ts", by="symbol", tolerance="5s", check_sortedness=False
    )
    assert joined["row"].to_pylist() == theirs.sort("n")["row"].to_list()
    assert joined.select(trades.column_names).equals(trades)


def test_one_sided_quotes_need_the_last_known_value_of_each_side(ticks: tuple[pa.Table, pa.Table]) -> None:
    trades, quotes = ticks
    streams = {
        "row": AsOf(quotes, columns=["bid", "ask"], prefix="row_", by="symbol"),
        "last": AsOf(quotes, columns=["bid", "ask"], prefix="last_", by="symbol", nulls="last_known"),
    }
    aligned = align_with_statistics(trades, streams, on="ts", by="symbol")
    table, counts = aligned
    assert counts["row"].matched == len(trades) - counts["row"].not_visible
    both = pc.and_(pc.is_valid(table["row_bid"]), pc.is_valid(table["row_ask"]))
    assert pc.sum(both).as_py() == 0, "a quote row updates one side alone"
    assert table["last_bid"].null_count <= counts["last"].not_visible + 5
    for side in ("bid", "ask"):
        alone = quotes.filter(pc.is_valid(quotes[side]))
        expected = align(trades, {"s": AsOf(alone, columns=[side], prefix="last_")}, on="ts", by="symbol")
        assert table[f"last_{side}"].equals(expected[f"last_{side}"])
