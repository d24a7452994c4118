"""Every trade of three real days, against DuckDB: another engine, another algorithm, the same answers."""

import os
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

import featurestore as fs

TICKS = Path(os.environ.get("FEATURESTORE_TICKS", Path(__file__).parents[3] / "shared" / "data" / "ticks"))
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not TICKS.is_dir(), reason=f"no real ticks at {TICKS} (set FEATURESTORE_TICKS)"),
]


@pytest.fixture(scope="module")
def trades(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    symbol = fs.Entity("symbol")
    quotes = fs.Source("quotes", path=TICKS / "quotes", timestamp_field="ts", entities=[symbol])
    prints = fs.Source("trades", path=TICKS / "trades", timestamp_field="ts", entities=[symbol])
    quote = fs.FeatureView(
        "quote", source=quotes, entities=[symbol], features=["bid", "ask"], nulls="last_known", ttl="5s"
    )
    flow = fs.FeatureView(
        "flow",
        source=prints,
        entities=[symbol],
        aggregations=[
            fs.Aggregation("*", "count", "60s", name="n"),
            fs.Aggregation("size", "sum", "60s", name="shares"),
            fs.Aggregation("price", "std", "60s", name="std"),
        ],
    )
    store = fs.FeatureStore(tmp_path_factory.mktemp("ticks"))
    store.apply([fs.TrainingSet("set", spine=prints, features=[quote, flow])])
    store.materialize("set")
    dataset = store.dataset("set")
    assert dataset.verify().rows == dataset.num_rows
    table = dataset.to_arrow()
    return table.set_column(table.column_names.index("ts"), "ts", table.column("ts").cast(pa.int64()))


@pytest.fixture(scope="module")
def engine(trades: pa.Table) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.register("ours", trades)
    connection.execute("SET preserve_insertion_order = true")
    files = sorted(str(path) for path in (TICKS / "quotes").glob("*.parquet"))
    connection.execute(
        "CREATE TABLE quotes AS SELECT symbol, epoch_ns(ts) AS ts, bid, ask, "
        "row_number() OVER () AS position FROM (SELECT * FROM read_parquet($files))",
        {"files": files},
    )
    return connection


@pytest.mark.parametrize("side", ["bid", "ask"])
def test_every_last_known_quote_is_the_one_that_duckdb_finds(
    engine: duckdb.DuckDBPyConnection, side: str
) -> None:
    differences = engine.sql(
        f"""
        WITH known AS (
            SELECT symbol, ts, arg_max({side}, position) AS value
            FROM quotes WHERE {side} IS NOT NULL GROUP BY ALL
        )
        SELECT count(*) FROM ours ASOF LEFT JOIN known
        ON ours.symbol = known.symbol AND ours.ts >= known.ts
        WHERE ours.{side} IS DISTINCT FROM CASE WHEN ours.ts - known.ts <= 5000000000 THEN known.value END
        """  # noqa: S608 -- the two names above
    ).fetchall()
    assert differences == [(0,)]


def test_every_window_is_the_one_that_duckdb_computes(engine: duckdb.DuckDBPyConnection) -> None:
    differences = engine.sql(
        """
        SELECT count(*) FROM (
            SELECT n, shares, std, count(*) OVER w AS n2, sum(size) OVER w AS shares2,
                   stddev_samp(price) OVER w AS std2
            FROM ours
            WINDOW w AS (PARTITION BY symbol ORDER BY ts RANGE BETWEEN 59999999999 PRECEDING AND CURRENT ROW)
        )
        WHERE n <> n2 OR shares <> shares2 OR (std IS NULL) <> (std2 IS NULL) OR abs(std - std2) > 1e-6
        """
    ).fetchall()
    assert differences == [(0,)]
