"""Lineage: what a definition or feature is made from and what is made from it, down to columns."""

from collections.abc import Callable, Iterable

from featurestore.catalog.binding import feature_names
from featurestore.catalog.entity import Entity
from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.label import Label
from featurestore.catalog.lineage_graph import Edge, LineageGraph, depths
from featurestore.catalog.lineage_pictures import mermaid_of, text_of
from featurestore.catalog.lineage_svg import svg_of
from featurestore.catalog.on_demand import OnDemandFeatureView
from featurestore.catalog.outputs import output_name
from featurestore.catalog.reads import columns_by_output
from featurestore.catalog.refs import Ref, parse_ref
from featurestore.catalog.service import FeatureService
from featurestore.catalog.snapshot import AnyRef, CatalogSnapshot, Record, split_id
from featurestore.catalog.source import Source
from featurestore.catalog.training_set import TrainingSet
from featurestore.core.names import near
from featurestore.errors import NotFoundError

Cell = tuple[str, str]  # a record's id and one of its columns


class Lineage(LineageGraph):
    """The part of the graph that one definition or feature takes part in, and its pictures."""

    __slots__ = ()

    def to_text(self) -> str:
        """Return the graph as two indented trees: what it reads, and what reads it."""
        return text_of(self)

    def to_mermaid(self) -> str:
        """Return the graph as a Mermaid flowchart."""
        return mermaid_of(self)

    def to_svg(self) -> str:
        """Return the graph as an SVG picture that needs nothing else."""
        return svg_of(self)


def trace(snapshot: CatalogSnapshot, ref: AnyRef, *kinds: str) -> Lineage:
    """Return the lineage of a definition or of one feature, from what is in force.

    Raises:
        NotFoundError: no such definition or feature.
    """
    wanted = ref if isinstance(ref, Ref) else parse_ref(ref)
    root = snapshot.record(wanted.whole(), *kinds)
    if wanted.feature is not None and wanted.feature not in _output_columns(root):
        raise NotFoundError(
            f"{root.id} has no column {wanted.feature!r}", hint=near(wanted.feature, _output_columns(root))
        )
    readers = _readers(snapshot)
    above = _walk(root.id, lambda i: _record(snapshot, i).pins)
    below = _walk(root.id, lambda i: readers.get(i, ()))
    ids = {root.id} | above | below
    edges = [
        Edge(pin, target, _column_pairs(snapshot, pin, _record(snapshot, target)))
        for target in sorted(ids)
        for pin in _record(snapshot, target).pins
        if pin in ids
    ]
    if wanted.feature is not None:
        edges = _through(edges, root.id, wanted.feature)
        ids = {root.id} | {i for e in edges for i in (e.source, e.target)}
    return Lineage(
        root=root.id,
        feature=wanted.feature,
        nodes=tuple(_layered(ids, edges)),
        edges=tuple(edges),
        up=frozenset(above & ids),
        down=frozenset(below & ids),
    )


def _record(snapshot: CatalogSnapshot, record_id: str) -> Record:
    return snapshot.records[split_id(record_id)]


def _readers(snapshot: CatalogSnapshot) -> dict[str, list[str]]:
    readers: dict[str, list[str]] = {}
    for record in snapshot.live():
        for pin in record.pins:
            readers.setdefault(pin, []).append(record.id)
    return readers


def _walk(start: str, step: Callable[[str], Iterable[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for following in step(waiting.pop()):
            if following not in found:
                found.add(following)
                waiting.append(following)
    return found


def _output_columns(record: Record) -> list[str]:
    return [name for name, _ in record.columns]


def _column_pairs(snapshot: CatalogSnapshot, pin: str, target: Record) -> tuple[tuple[str, str], ...]:
    """Return which columns of `pin` each column of `target` is made from."""
    read = _record(snapshot, pin)
    definition = target.definition
    pairs: Iterable[tuple[str, str]]
    match definition:
        case FeatureView() | Label():
            pairs = _computed(definition, read)
        case OnDemandFeatureView():
            inputs = {f for ref in definition.inputs if ref.name == read.name for f in _asked(ref, read)}
            pairs = [p for p in _computed(definition, read) if p[0] in inputs]
        case FeatureService():
            pairs = _listed(definition.features, read, [name for name, _ in target.columns])
        case TrainingSet():
            pairs = _joined(definition, read)
        case _:
            pairs = ()
    return tuple(dict.fromkeys(pairs))


def _computed(definition: FeatureView | Label | OnDemandFeatureView, read: Record) -> list[tuple[str, str]]:
    if read.kind == Entity.kind:
        return []
    made = columns_by_output(definition)
    return [(column, output) for output, columns in made.items() for column in columns]


def _asked(ref: Ref, read: Record) -> list[str]:
    return [ref.feature] if ref.feature is not None else feature_names(read)


def _listed(refs: Iterable[Ref], read: Record, outputs: list[str]) -> list[tuple[str, str]]:
    named = {
        output_name(ref, f, full=True) for ref in refs for f in _asked(ref, read) if ref.name == read.name
    }
    full = bool(named & set(outputs))
    return [
        (f, output_name(ref, f, full)) for ref in refs if ref.name == read.name for f in _asked(ref, read)
    ]


def _joined(training_set: TrainingSet, read: Record) -> list[tuple[str, str]]:
    if read.kind == Source.kind:
        return [(name, name) for name, _ in read.columns]
    if read.kind == Label.kind:
        return [(read.name, read.name)]
    if read.kind == FeatureService.kind:
        return [(name, name) for name, _ in read.columns]
    full = training_set.full_feature_names
    return [
        (f, output_name(ref, f, full))
        for ref in training_set.features
        if ref.name == read.name and read.kind != Entity.kind
        for f in _asked(ref, read)
    ]


def _through(edges: list[Edge], root: str, feature: str) -> list[Edge]:
    """Keep what one feature is made from and what is made from it."""
    kept: set[tuple[str, str, str, str]] = set()
    for forward in (False, True):
        seen: set[Cell] = {(root, feature)}
        waiting: list[Cell] = [(root, feature)]
        while waiting:
            node, column = waiting.pop()
            for edge in edges:
                for before, after in edge.columns:
                    here, there = ((edge.source, before), (edge.target, after))
                    if not forward:
                        here, there = there, here
                    if here == (node, column):
                        kept.add((edge.source, before, edge.target, after))
                        if there not in seen:
                            seen.add(there)
                            waiting.append(there)
    return [
        Edge(e.source, e.target, pairs)
        for e in edges
        if (pairs := tuple(p for p in e.columns if (e.source, p[0], e.target, p[1]) in kept))
    ]


def _layered(ids: set[str], edges: Iterable[Edge]) -> list[str]:
    """Return ids so that what is read comes before what reads it."""
    depth = depths(ids, edges)
    return sorted(ids, key=lambda i: (depth[i], i))
