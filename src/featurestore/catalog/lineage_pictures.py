"""Lineage as text and as a Mermaid flowchart."""

import re
from collections.abc import Iterable

from featurestore.catalog.lineage_graph import Edge, LineageGraph
from featurestore.catalog.snapshot import KIND_WORDS, split_id

_SHOWN = 6


def title(record_id: str) -> str:
    """Return what people call a record: `feature view quote@2`."""
    kind, name, version = split_id(record_id)
    return f"{KIND_WORDS[kind]} {name}@{version}"


def text_of(lineage: LineageGraph) -> str:
    """Write two indented trees: what the root reads, and what reads it. A branch seen before ends in `…`."""
    feature = f":{lineage.feature}" if lineage.feature else ""
    lines = [title(lineage.root) + feature, "is made from" if lineage.up else "is made from nothing else"]
    lines += _tree(lineage.root, lineage.edges, upward=True, pad="  ", seen=set())
    lines.append("is read by" if lineage.down else "is read by nothing")
    lines += _tree(lineage.root, lineage.edges, upward=False, pad="  ", seen=set())
    return "\n".join(lines) + "\n"


def _tree(node: str, edges: Iterable[Edge], *, upward: bool, pad: str, seen: set[str]) -> list[str]:
    edges = list(edges)
    lines: list[str] = []
    near = [e for e in edges if (e.target if upward else e.source) == node]
    for index, edge in enumerate(near):
        other = edge.source if upward else edge.target
        last = index == len(near) - 1
        again = " …" if other in seen else ""
        lines.append(f"{pad}{'└─' if last else '├─'} {title(other)}{_columns(edge, upward)}{again}")
        if not again:
            seen.add(other)
            below = pad + ("   " if last else "│  ")
            lines += _tree(other, edges, upward=upward, pad=below, seen=seen)
    return lines


def _columns(edge: Edge, upward: bool) -> str:
    names = list(dict.fromkeys(pair[0 if upward else 1] for pair in edge.columns))
    more = f", … {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f": {', '.join(names[:_SHOWN])}{more}" if names else ""


_SHAPES = {
    "source": ("[(", ")]"),
    "entity": ("([", "])"),
    "label": ("{{", "}}"),
    "training_set": ("[[", "]]"),
    "feature_service": ("([", "])"),
}


def mermaid_of(lineage: LineageGraph) -> str:
    """Write a Mermaid flowchart from left to right; arrows name the columns that flow."""
    lines = ["flowchart LR"]
    for node in lineage.nodes:
        opening, closing = _SHAPES.get(split_id(node)[0], ("[", "]"))
        lines.append(f'    {_id(node)}{opening}"{_label(title(node))}"{closing}')
    for edge in lineage.edges:
        names = _columns(edge, upward=True).removeprefix(": ")
        arrow = f'-- "{_label(names)}" -->' if names else "-.->"
        lines.append(f"    {_id(edge.source)} {arrow} {_id(edge.target)}")
    lines.append(f"    style {_id(lineage.root)} stroke-width:3px")
    return "\n".join(lines) + "\n"


def _id(record_id: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", record_id)


def _label(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
