"""A small catalog in memory, and a backend over it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa

from featurestore.catalog.aggregation import Aggregation
from featurestore.catalog.definition import Definition
from featurestore.catalog.entity import Entity
from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.on_demand import OnDemandFeatureView
from featurestore.catalog.schemas import type_text
from featurestore.catalog.service import FeatureService
from featurestore.catalog.snapshot import CatalogSnapshot, Record
from featurestore.catalog.source import Source
from featurestore.core.clock import ManualClock
from featurestore.serve.backend import OnlineBackend
from featurestore.serve.config import ServerConfig
from featurestore.serve.lmdb_store import LmdbStore
from featurestore.serve.worker import clock_of
from featurestore.storage.suppression import Ledger, no_ledger

F64 = pa.float64()
QUOTE_ROWS = pa.schema(
    [
        ("symbol", pa.string()),
        ("ts", pa.timestamp("ns", "UTC")),
        ("created", pa.timestamp("ns", "UTC")),
        ("seq", pa.int64()),
        ("bid", F64),
        ("ask", F64),
        ("venue", pa.string()),
        ("size", pa.int32()),
    ]
)
SYMBOL = Entity("symbol")
QUOTES = Source(
    "quotes", path="quotes", timestamp_field="ts", created_timestamp_column="created", sequence_column="seq"
)
QUOTE = FeatureView(
    "quote",
    source=QUOTES,
    entities=[SYMBOL],
    features={"bid": "bid", "ask": "ask", "mid": "(bid + ask) / 2", "venue": "venue", "size": "size"},
    ttl=50,
)
LAST = FeatureView(
    "last",
    source=QUOTES,
    entities=[SYMBOL],
    features={"last_bid": "bid", "spread": "ask - bid"},
    nulls="last_known",
    ttl=50,
)
FLOW = FeatureView(
    "flow",
    source=QUOTES,
    entities=[SYMBOL],
    aggregations=[
        Aggregation("*", "count", 20, "n"),
        Aggregation("size", "sum", 20, "total"),
        Aggregation("bid", "mean", 40, "mean_bid", tile=10),
        Aggregation("venue", "last", 20, "last_venue"),
    ],
)
EDGE = OnDemandFeatureView(
    "edge", inputs=["quote:mid"], request={"price": "float64"}, features={"edge": "price - mid"}
)
SERVICE = FeatureService("model", features=["quote", "flow:n", "last"])
SCHEMAS: dict[str, pa.Schema] = {
    "quotes": QUOTE_ROWS,
    "quote": pa.schema(
        [("bid", F64), ("ask", F64), ("mid", F64), ("venue", pa.string()), ("size", pa.int32())]
    ),
    "last": pa.schema([("last_bid", F64), ("spread", F64)]),
    "flow": pa.schema(
        [("n", pa.int64()), ("total", pa.int64()), ("mean_bid", F64), ("last_venue", pa.string())]
    ),
    "edge": pa.schema([("edge", F64)]),
}
DEFINITIONS: Sequence[Definition] = (SYMBOL, QUOTES, QUOTE, LAST, FLOW, EDGE, SERVICE)


def snapshot_of(
    definitions: Sequence[Definition] = DEFINITIONS,
    schemas: Mapping[str, pa.Schema] = SCHEMAS,
    version: int = 1,
) -> CatalogSnapshot:
    """Return a catalog that holds definitions at version 1 each."""
    records = {}
    for d in definitions:
        columns = tuple((f.name, type_text(f.type)) for f in schemas.get(d.name, pa.schema([])))
        records[d.kind, d.name, 1] = Record(d.kind, d.name, 1, d.spec(), columns, (), 1)
    heads = {(d.kind, d.name): 1 for d in definitions}
    return CatalogSnapshot(version=version, records=records, heads=heads, last=heads)


def backend_at(
    folder: Path,
    snapshot: CatalogSnapshot | None = None,
    now_ns: int = 1000,
    ledger: Callable[[], Ledger] = no_ledger,
) -> OnlineBackend:
    """Return a backend over an LMDB folder with a clock that stands still."""
    found = snapshot or snapshot_of()
    clock = ManualClock(now_ns)
    return OnlineBackend(lambda: found, LmdbStore(folder), clock=clock, history_ns=0, ledger=ledger)


def quotes(rows: Sequence[Any]) -> pa.Table:
    """Return rows of the quotes source; created defaults to the event, sequence to 0."""
    filled = [
        {"created": r["ts"], "seq": 0, "bid": None, "ask": None, "venue": None, "size": None, **r}
        for r in rows
    ]
    arrays = {}
    for field in QUOTE_ROWS:
        values = [r[field.name] for r in filled]
        kind = pa.int64() if pa.types.is_timestamp(field.type) else field.type
        arrays[field.name] = pa.array(values, kind).cast(field.type)
    return pa.table(arrays)


def open_for_worker(config: ServerConfig) -> OnlineBackend:
    """Open the test catalog in a server's worker; `root` is the folder of the online store."""
    found = snapshot_of()
    return OnlineBackend(lambda: found, LmdbStore(config.root), clock=clock_of(config), history_ns=0)


def plain_channel(address: str) -> Any:
    """Open a channel whose calls take and give bytes; its stubs would have serializers."""
    return grpc.insecure_channel(address)
