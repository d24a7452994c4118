"""Random chains of views over the quotes source, for both sides of the promise."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa
from tests.serve.house import F64, QUOTES, SCHEMAS, SYMBOL, snapshot_of

from featurestore.catalog.aggregation import Aggregation
from featurestore.catalog.definition import Definition
from featurestore.catalog.entity import Entity
from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.refs import Ref
from featurestore.catalog.snapshot import CatalogSnapshot
from featurestore.catalog.source import Source
from featurestore.resolve.program import ViewProgram, compile_view

VENUE = Entity("venue")
KEYS: dict[str, list[Entity | str]] = {
    "symbol": [SYMBOL],
    "symbol, venue": [SYMBOL, VENUE],
    "venue": [VENUE],
}
KINDS = ("one row", "last known", "windows", "both", "tiles")


@dataclass(frozen=True)
class Layer:
    """One view of a chain.

    Attributes:
        kind: What its values depend on.
        keys: Its join keys.
        ttl: Of views that have features.
        window: Of views that have windows.
    """

    kind: str
    keys: str = "symbol"
    ttl: int | None = None
    window: int = 20


def chain_of(layers: Sequence[Layer]) -> CatalogSnapshot:
    """Return a catalog of views `v0`, `v1`, … each over the one before; all have numbers `a` and `b`."""
    views: list[FeatureView] = []
    below: Source | FeatureView = QUOTES
    a, b = "bid", "ask"
    for number, layer in enumerate(layers):
        below = _view(f"v{number}", below, layer, a, b)
        views.append(below)
        a, b = "a", "b"
    schemas = {**SCHEMAS, **{v.name: pa.schema([("a", F64), ("b", F64)]) for v in views}}
    definitions: list[Definition] = [SYMBOL, VENUE, QUOTES, *views]
    return snapshot_of(definitions, schemas)


def found_by_a_value() -> CatalogSnapshot:
    """Return a catalog of a view `v1` whose key is computed by a window of `v0`."""
    by_value = Entity("by_value", join_keys=["a"])
    below = FeatureView(
        "v0", source=QUOTES, entities=[SYMBOL], aggregations=[Aggregation("venue", "last", 20, "a")]
    )
    top = FeatureView(
        "v1", source=below, entities=[by_value], aggregations=[Aggregation("*", "count", 5, "n")]
    )
    schemas = {**SCHEMAS, "v0": pa.schema([("a", pa.string())]), "v1": pa.schema([("n", pa.int64())])}
    return snapshot_of([SYMBOL, by_value, QUOTES, below, top], schemas)


def top_of(snapshot: CatalogSnapshot, layers: Sequence[Layer]) -> ViewProgram:
    """Return the last view of a chain."""
    return compile_view(snapshot, Ref(f"v{len(layers) - 1}"))


def _view(name: str, below: Source | FeatureView, layer: Layer, a: str, b: str) -> FeatureView:
    features: dict[str, str] = {}
    aggregations: list[Aggregation] = []
    if layer.kind in {"one row", "last known"}:
        # What is null below need not be here, and the other way round.
        features = {"a": a, "b": f"CASE WHEN {b} > 0 THEN NULL ELSE coalesce({a}, 7) + {layer.window} END"}
    elif layer.kind == "both":
        features = {"a": f"{a} - 1"}
        aggregations = [Aggregation(b, "std", layer.window, "b")]
    else:
        tile = min(7, layer.window) if layer.kind == "tiles" else None
        aggregations = [
            Aggregation(a, "sum", layer.window, "a", tile=tile),
            Aggregation(b, "last", layer.window + 5, "b"),
        ]
    return FeatureView(
        name,
        source=below,
        entities=KEYS[layer.keys],
        features=features,
        aggregations=aggregations,
        nulls="last_known" if layer.kind == "last known" else "keep",
        ttl=layer.ttl if features else None,
    )


def random_chain(draw: random.Random, *, bounded: bool = True) -> list[Layer]:
    """Return two or three views, of which one below the last depends on several rows.

    Args:
        bounded: All can be kept online.
    """
    size = draw.choice([2, 2, 3])
    whole = draw.choice([0, 0, 1, size])  # so many views have both keys, those above one of them
    keys = ["symbol, venue"] * whole + [draw.choice(["symbol", "symbol", "venue"])] * (size - whole)
    several = draw.randrange(size - 1)  # the first that depends on several rows
    found = []
    for at, key in enumerate(keys):
        kind = "one row" if at < several else draw.choice(KINDS[1:] if at == several else KINDS)
        ttl = draw.choice([None, None, 3, 15, 40])
        if bounded and at > several and kind == "last known":
            ttl = ttl or 13
        found.append(Layer(kind, key, ttl, draw.choice([4, 10, 20, 35])))
    return found


def random_history(draw: random.Random) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """Return rows in source order, and deliveries: each row in one or more, in any order."""
    size = draw.choice([3, 8, 16, 30, 45])
    symbols = ["A", "A", "A", "B", "B", "Ä" * 300] if draw.random() < 0.7 else ["A"]
    step, width = draw.choice([1, 3, 8]), draw.choice([40, 120])
    made: list[dict[str, Any]] = []
    for number in range(size):
        ts = draw.randrange(0, width, step) if draw.random() < 0.97 else None
        late = draw.choice([0, 0, 0, 0, 0, 0, 1, 7, 30, None])
        made.append(
            {
                "symbol": draw.choice(symbols) if draw.random() < 0.97 else None,
                "ts": ts,
                "created": None if ts is None or late is None else ts + late,
                "bid": draw.choice([0.0, -0.0, 0.1, 1e300, float("inf"), 2.5, -3.0, None, None]),
                "ask": draw.choice([0.0, 7.0, 0.1, -1e300, 2.5, -3.0, None, None]),
                "venue": draw.choice(["N", "N", "N", "", "Québec", None]),
                "size": draw.choice([None, -(2**31), 2**31 - 1, 5]),
                # The number makes versions unique: positions are no business of a delivery's order.
                "seq": number,
            }
        )
    flat = [*draw.sample(range(size), size), *(draw.randrange(size) for _ in range(draw.choice([0, 4])))]
    edges = [0, *sorted(draw.randrange(len(flat)) for _ in range(draw.choice([0, 1, 5]))), len(flat)]
    return made, [sorted(set(flat[a:b])) for a, b in pairwise(edges) if a < b]
