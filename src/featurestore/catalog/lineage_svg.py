"""Lineage as an SVG picture: layers from left to right, one line per column that flows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from featurestore.catalog.lineage_graph import Edge, LineageGraph, depths
from featurestore.catalog.snapshot import KIND_WORDS, split_id

_LINE: Final = 16
_HEAD: Final = 40
_PAD: Final = 10
_GAP_X: Final = 90
_GAP_Y: Final = 24
_MARGIN: Final = 24
_LETTER: Final = 7.3
_SHOWN: Final = 12
_SWEEPS: Final = 8
_COLORS: Final[Mapping[str, str]] = {
    "entity": "#7a6ff0",
    "source": "#3d7ea6",
    "feature_view": "#2f9e6e",
    "on_demand_feature_view": "#8fae2f",
    "feature_service": "#c98a1b",
    "label": "#c9503c",
    "training_set": "#8c4fb0",
}
_STYLE: Final = (
    "text{font:12px ui-monospace,Menlo,Consolas,monospace;fill:#1c2733}"
    ".k{font-size:10px;fill:#fff}.n{font-weight:600;fill:#fff}"
    ".box{fill:#fff;stroke:#c3ccd6}.root{stroke:#1c2733;stroke-width:2.5}"
    ".e{fill:none;stroke:#8996a5;stroke-width:1.2;opacity:.75}.d{stroke-dasharray:4 3}"
    "@media(prefers-color-scheme:dark){text{fill:#dfe7ef}.box{fill:#1b232c;stroke:#43515f}"
    ".root{stroke:#fff}}"
)


@dataclass(frozen=True, slots=True)
class _Box:
    """A node's place, and the columns that it shows."""

    x: float
    y: float
    width: float
    height: float
    columns: tuple[str, ...]

    def line_y(self, column: str) -> float:
        """Return the height at which a column's line sits; the title's where it is not shown."""
        if column not in self.columns:
            return self.y + _HEAD / 2
        return self.y + _HEAD + _PAD + self.columns.index(column) * _LINE + _LINE / 2 - 2


def svg_of(lineage: LineageGraph) -> str:
    """Draw a lineage; the picture holds its own style and opens in any browser."""
    boxes = _placed(lineage)
    width = max(b.x + b.width for b in boxes.values()) + _MARGIN
    height = max(b.y + b.height for b in boxes.values()) + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
        f"<title>Lineage of {escape(lineage.root)}</title><style>{_STYLE}</style>",
    ]
    for edge in lineage.edges:
        parts += _curves(edge, boxes)
    parts += [_drawn(node, box, node == lineage.root) for node, box in boxes.items()]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _placed(lineage: LineageGraph) -> dict[str, _Box]:
    columns = {node: _shown(node, lineage.edges) for node in lineage.nodes}
    layers = _ordered(lineage)
    boxes: dict[str, _Box] = {}
    x = float(_MARGIN)
    heights = [sum(_height(columns[n]) + _GAP_Y for n in layer) - _GAP_Y for layer in layers]
    for layer, tall in zip(layers, heights, strict=True):
        width = max(_width(node, columns[node]) for node in layer)
        y = _MARGIN + (max(heights) - tall) / 2
        for node in layer:
            boxes[node] = _Box(x, y, width, _height(columns[node]), columns[node])
            y += _height(columns[node]) + _GAP_Y
        x += width + _GAP_X
    return boxes


def _shown(node: str, edges: Iterable[Edge]) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for edge in edges:
        names |= dict.fromkeys(before for before, _ in edge.columns if edge.source == node)
        names |= dict.fromkeys(after for _, after in edge.columns if edge.target == node)
    listed = sorted(names)
    return (*listed[:_SHOWN], f"… {len(listed) - _SHOWN} more") if len(listed) > _SHOWN else tuple(listed)


def _ordered(lineage: LineageGraph) -> list[list[str]]:
    """Return the layers, each ordered by the mean place of its neighbours (barycentre sweeps)."""
    depth = depths(lineage.nodes, lineage.edges)
    layers = [[n for n in lineage.nodes if depth[n] == d] for d in range(max(depth.values(), default=0) + 1)]
    neighbours: dict[str, list[str]] = {n: [] for n in lineage.nodes}
    for edge in lineage.edges:
        neighbours[edge.source].append(edge.target)
        neighbours[edge.target].append(edge.source)
    for sweep in range(_SWEEPS):
        place = {n: i / len(layer) for layer in layers for i, n in enumerate(layer)}
        order = layers if sweep % 2 == 0 else layers[::-1]
        for layer in order:
            layer.sort(key=lambda n: _mean([place[m] for m in neighbours[n]], place[n]))
            place |= {n: i / len(layer) for i, n in enumerate(layer)}
    return layers


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _height(columns: Sequence[str]) -> float:
    return _HEAD + (len(columns) * _LINE + 2 * _PAD if columns else 0)


def _width(node: str, columns: Sequence[str]) -> float:
    kind, name, version = split_id(node)
    texts = [f"{name}@{version}", KIND_WORDS[kind], *columns]
    return max(len(text) for text in texts) * _LETTER + 2 * _PAD + 8


def _curves(edge: Edge, boxes: Mapping[str, _Box]) -> list[str]:
    start, end = boxes[edge.source], boxes[edge.target]
    pairs = edge.columns or (("", ""),)
    dashed = "" if edge.columns else " d"
    lines = []
    for before, after in sorted({(start.line_y(b), end.line_y(a)) for b, a in pairs}):
        x1, x2 = start.x + start.width, end.x
        middle = (x1 + x2) / 2
        lines.append(
            f'<path class="e{dashed}" d="M{x1:.1f} {before:.1f}C{middle:.1f} {before:.1f} '
            f'{middle:.1f} {after:.1f} {x2:.1f} {after:.1f}"/>'
        )
    return lines


def _drawn(node: str, box: _Box, root: bool) -> str:
    kind, name, version = split_id(node)
    left = box.x + _PAD
    lines = "".join(
        f'<text x="{left:.1f}" y="{box.line_y(c) + 4:.1f}">{escape(c)}</text>' for c in box.columns
    )
    return (
        f'<g><rect class="box{" root" if root else ""}" x="{box.x:.1f}" y="{box.y:.1f}" '
        f'width="{box.width:.1f}" height="{box.height:.1f}" rx="6"/>'
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{_HEAD}" rx="6" '
        f'fill="{_COLORS.get(kind, "#555")}"/>'
        f'<text class="k" x="{left:.1f}" y="{box.y + 14:.1f}">{escape(KIND_WORDS[kind])}</text>'
        f'<text class="n" x="{left:.1f}" y="{box.y + 31:.1f}">{escape(name)}@{version}</text>{lines}</g>'
    )
