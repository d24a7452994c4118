"""A small market in definitions: quotes and trades of symbols, with every kind of definition over them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from featurestore import (
    Aggregation,
    Entity,
    FeatureService,
    FeatureView,
    Label,
    OnDemandFeatureView,
    Source,
    TrainingSet,
)
from featurestore.catalog.catalog import Catalog, open_catalog
from featurestore.catalog.definition import Definition
from featurestore.core.clock import ManualClock

NS = pa.timestamp("ns", "UTC")
QUOTES = pa.schema([("symbol", pa.string()), ("ts", NS), ("bid", pa.float64()), ("ask", pa.float64())])
TRADES = pa.schema([("symbol", pa.string()), ("ts", NS), ("price", pa.float64()), ("size", pa.int64())])

SYMBOL = Entity("symbol")
QUOTES_SOURCE = Source("quotes", path="quotes", timestamp_field="ts", entities=[SYMBOL])
TRADES_SOURCE = Source("trades", path="trades", timestamp_field="ts", entities=[SYMBOL])


class Columns:
    """A schema reader over a mapping that a test may change."""

    def __init__(self, **schemas: pa.Schema) -> None:
        self.schemas: dict[str, pa.Schema] = {"quotes": QUOTES, "trades": TRADES, **schemas}
        self.asked: list[str] = []

    def __call__(self, source: Source) -> pa.Schema:
        """Return the columns of a source."""
        self.asked.append(source.name)
        return self.schemas[source.name]


def quote_view(mid: str = "(bid + ask) / 2", **options: Any) -> FeatureView:
    """Return the view `quote` with features bid and mid."""
    features = options.pop("features", {"bid": "bid", "mid": mid})
    return FeatureView(
        "quote", source=QUOTES_SOURCE, entities=[SYMBOL], features=features, **{"ttl": "5s", **options}
    )


def market(mid: str = "(bid + ask) / 2") -> dict[str, Definition]:
    """Return one definition of every kind, by name; `train` holds all the others."""
    quote = quote_view(mid)
    flow = FeatureView(
        "flow",
        source=TRADES_SOURCE,
        entities=[SYMBOL],
        aggregations=[Aggregation("size", "sum", "10s"), Aggregation("*", "count", "10s", name="trades_10s")],
    )
    drift = FeatureView(
        "drift",
        source=quote,
        entities=[SYMBOL],
        features={"twice": "mid * 2"},
        aggregations=[Aggregation("mid", "std", "1m", name="mid_std")],
    )
    edge = OnDemandFeatureView(
        "edge", inputs=["quote:mid"], request={"price": "float64"}, features={"edge_now": "price / mid - 1"}
    )
    model = FeatureService("model", features=[quote, flow, drift, edge])
    move = Label("move", source=quote, expression="mid / start.mid - 1", horizon="5m")
    train = TrainingSet("train", spine=TRADES_SOURCE, features=model, labels=[move])
    named: list[Definition] = [quote, flow, drift, edge, model, move, train]
    return {d.name: d for d in named}


def catalog_in(folder: Path, columns: Columns | None = None, clock: ManualClock | None = None) -> Catalog:
    """Open a catalog whose sources' columns come from `columns`."""
    return open_catalog(folder, clock=clock, read_schema=columns or Columns(), author="tester")


def in_force(catalog: Catalog) -> Mapping[tuple[str, str], int]:
    """Return the version in force of each definition."""
    return catalog.snapshot().heads
