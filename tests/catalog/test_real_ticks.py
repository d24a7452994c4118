"""Expressions over real ticks agree with Polars, and the store's definitions plan over them."""

from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from tests.environment import TICKS

from featurestore import Entity, FeatureStore, FeatureView, Source
from featurestore.catalog.expressions import evaluate

pytestmark = pytest.mark.skipif(
    not TICKS.is_dir(), reason="the real ticks are not here: set FEATURESTORE_TICKS"
)


def test_expressions_over_a_day_of_quotes_agree_with_polars() -> None:
    table = pq.read_table(TICKS / "quotes" / "20131008.parquet")
    out = evaluate(
        {
            "one_sided": "(bid IS NULL) <> (ask IS NULL)",
            "price": "coalesce(bid, ask)",
            "notional": "coalesce(bid * bid_size, ask * ask_size)",
            "hour": "hour(ts)",
            "venue": "lower(exchange) || ':' || symbol",
            "nanos": "epoch_ns(ts) % 1000000000",
        },
        table,
    )
    quotes = pl.from_arrow(table)
    assert isinstance(quotes, pl.DataFrame)
    expected = quotes.select(
        one_sided=pl.col("bid").is_null() != pl.col("ask").is_null(),
        price=pl.coalesce("bid", "ask"),
        notional=pl.coalesce(pl.col("bid") * pl.col("bid_size"), pl.col("ask") * pl.col("ask_size")),
        hour=pl.col("ts").dt.hour().cast(pl.Int64),
        venue=pl.col("exchange").cast(pl.String).str.to_lowercase() + ":" + pl.col("symbol").cast(pl.String),
        nanos=pl.col("ts").dt.epoch("ns") % 1_000_000_000,
    )
    assert table.num_rows > 10_000
    for name in expected.columns:
        assert out[name].to_pylist() == expected[name].to_list(), name


def test_a_view_over_real_quotes_plans_and_applies(tmp_path: Path) -> None:
    symbol = Entity("symbol")
    quotes = Source("quotes", path=TICKS / "quotes", timestamp_field="ts", entities=[symbol])
    book = FeatureView(
        "book",
        source=quotes,
        entities=[symbol],
        features={"mid": "(bid + ask) / 2", "hour": "hour(ts)", "wide": "ask - bid > 0.05"},
        nulls="last_known",
    )
    store = FeatureStore(tmp_path)
    store.apply([book])
    schema = store.catalog.snapshot().schema_of("book")
    assert [str(schema.field(n).type) for n in ("mid", "hour", "wide")] == ["double", "int64", "bool"]
