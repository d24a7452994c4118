"""The part of the catalog's graph that one definition takes part in, as data."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Edge:
    """Data that flows from one definition to another.

    Attributes:
        source: The id of what is read, such as `source/quotes@1`.
        target: The id of what reads it.
        columns: Pairs (column read, column made from it); empty where only keys are shared (entities).
    """

    source: str
    target: str
    columns: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class LineageGraph:
    """The part of the graph that one definition or feature takes part in.

    Attributes:
        root: The id asked for.
        feature: The one feature asked for, or `None` for the whole definition.
        nodes: Ids in the order of dependency: what is read comes first.
        edges: Between nodes.
        up: The nodes that the root is made from.
        down: The nodes made from the root.
    """

    root: str
    feature: str | None
    nodes: tuple[str, ...]
    edges: tuple[Edge, ...]
    up: frozenset[str]
    down: frozenset[str]

    def to_json(self) -> dict[str, Any]:
        """Return the graph as JSON values."""
        return {
            "root": self.root,
            "feature": self.feature,
            "up": [n for n in self.nodes if n in self.up],
            "down": [n for n in self.nodes if n in self.down],
            "edges": [
                {"from": e.source, "to": e.target, "columns": [list(c) for c in e.columns]}
                for e in self.edges
            ],
        }


def depths(ids: Iterable[str], edges: Iterable[Edge]) -> dict[str, int]:
    """Return each node's layer: one below the deepest of what it reads."""
    reads: dict[str, list[str]] = {i: [] for i in ids}
    for edge in edges:
        reads[edge.target].append(edge.source)
    depth: dict[str, int] = {}

    def of(node: str) -> int:
        if node not in depth:
            depth[node] = 1 + max((of(r) for r in reads[node]), default=-1)
        return depth[node]

    for node in reads:
        of(node)
    return depth
