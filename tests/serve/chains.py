"""Random chains of views over the quotes source, for both sides of the promise."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
from hypothesis import strategies as st
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


@st.composite
def layers(draw: st.DrawFn, *, bounded: bool = True) -> list[Layer]:
    """Two or three views, of which one below the last depends on several rows.

    Args:
        bounded: All can be kept online.
    """
    size = draw(st.integers(2, 3))
    whole = draw(st.integers(0, size))  # so many views have both keys, those above one of them
    one = draw(st.sampled_from(["symbol", "venue"]))
    keys = ["symbol, venue"] * whole + [one] * (size - whole)
    found = [
        Layer(
            draw(st.sampled_from(KINDS)),
            key,
            draw(st.one_of(st.none(), st.integers(1, 40))),
            draw(st.sampled_from([1, 8, 20])),
        )
        for key in keys
    ]
    several = [at for at, layer in enumerate(found) if layer.kind != "one row"]
    if not several or several[0] == size - 1:
        found[0] = Layer(draw(st.sampled_from(KINDS[1:])), keys[0], found[0].ttl, found[0].window)
        several = [0]
    return [
        Layer(x.kind, x.keys, x.ttl or 13, x.window)
        if bounded and x.kind == "last known" and at > several[0]
        else x
        for at, x in enumerate(found)
    ]
