"""Every trade of three real days, against DuckDB: another engine, another algorithm, the same answers."""

from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from tests.environment import TICKS

import featurestore as fs

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


def test_one_symbol_erased_leaves_the_other_as_if_it_had_been_alone(tmp_path: Path) -> None:
    symbol = fs.Entity("symbol")

    def opened(root: Path, keep: Sequence[str]) -> fs.FeatureStore:
        for kind in ("quotes", "trades"):
            (root / kind).mkdir(parents=True)
            file = min((TICKS / kind).glob("*.parquet"))
            rows = pq.read_table(file)
            names = rows.column("symbol").cast(pa.string())
            pq.write_table(rows.filter(pc.is_in(names, value_set=pa.array(keep))), root / kind / file.name)
        quotes = fs.Source("quotes", path="quotes", timestamp_field="ts", entities=[symbol])
        prints = fs.Source("trades", path="trades", timestamp_field="ts", entities=[symbol])
        quote = fs.FeatureView(
            "quote", source=quotes, entities=[symbol], features=["bid", "ask"], nulls="last_known", ttl="5s"
        )
        shares = fs.Aggregation("size", "sum", "60s", name="shares")
        flow = fs.FeatureView("flow", source=prints, entities=[symbol], aggregations=[shares])
        store = fs.FeatureStore(root)
        store.apply([fs.TrainingSet("set", spine=prints, features=[quote, flow])])
        store.materialize("set")
        store.materialize("quote")
        return store

    both, alone = opened(tmp_path / "both", ["AIG", "IBM"]), opened(tmp_path / "alone", ["IBM"])
    before = both.dataset("set").num_rows
    report = both.erase("symbol", "AIG")
    assert report.complete
    assert report.erased["dataset/set@1"] == before - alone.dataset("set").num_rows > 10_000
    for name in ("set", "quote"):
        assert both.dataset(name).fingerprint == alone.dataset(name).fingerprint
        assert both.dataset(name).recreate().fingerprint == alone.dataset(name).fingerprint
    ibm = {"symbol": ["IBM"]}
    found = [store.get_online_features(["quote"], ibm).to_dict() for store in (both, alone)]
    assert found[0] == found[1]
    both.close()
    alone.close()
