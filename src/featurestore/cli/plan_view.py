"""A plan for people: what is added, what changes field by field, what breaks, what is to be recomputed."""

import json
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.text import Text
from rich.tree import Tree

if TYPE_CHECKING:
    from featurestore.catalog.plan import Change, FieldChange, Plan

_SIGN: Final = {"add": "+", "change": "~", "describe": "·", "remove": "-", "restore": "↶"}
_STYLE: Final = {
    "add": "green",
    "change": "yellow",
    "describe": "cyan",
    "remove": "red",
    "restore": "magenta",
}
_WORDS: Final = {
    "entity": "entity",
    "source": "source",
    "feature_view": "feature view",
    "on_demand_feature_view": "on-demand view",
    "feature_service": "feature service",
    "label": "label",
    "training_set": "training set",
}


def render_plan(plan: "Plan", console: Console) -> None:
    """Print a plan."""
    console.print(plan_renderable(plan))


def plan_json(plan: "Plan") -> dict[str, Any]:
    """Return a plan as JSON values."""
    return plan.to_json()


def change_json(change: "Change") -> dict[str, Any]:
    """Return one change as JSON values."""
    return change.to_json()


def plan_renderable(plan: "Plan") -> RenderableType:
    """Return a plan as something rich can print."""
    if plan.is_empty:
        return Text(f"nothing to change: the catalog is at version {plan.base}", style="green")
    parts: list[RenderableType] = [Text(f"catalog version {plan.base} → {plan.base + 1}", style="bold")]
    parts += [change_renderable(change) for change in plan.changes]
    if plan.rematerialize:
        parts.append(Text("to materialize again: " + ", ".join(plan.rematerialize), style="yellow"))
    parts += [Text(f"note: {note}", style="dim") for note in plan.notes]
    parts.append(Text.from_markup(_summary(plan)))
    return Group(*parts)


def change_renderable(change: "Change") -> RenderableType:
    """Return one change as a small tree: the definition, then its fields, reasons and what breaks."""
    style = _STYLE[change.action]
    version = (
        f"@{change.before} → @{change.version}"
        if change.before not in {None, change.version}
        else f"@{change.version}"
    )
    breaking = "  [bold red]breaking[/]" if change.breaking else ""
    tree = Tree(
        f"[{style}]{_SIGN[change.action]} {_WORDS[change.kind]} "
        f"[bold]{escape(change.name)}[/]{version}[/]{breaking}",
        guide_style="dim",
    )
    for field in change.fields:
        tree.add(_field(field))
    for line in change.because:
        tree.add(f"[dim]because {escape(line)}[/]")
    for line in change.breaking:
        tree.add(f"[red]{escape(line)}[/]")
    return tree


def _field(field: "FieldChange") -> str:
    name = escape(field.field)
    if field.before is None:
        return f"{name}: [green]+ {escape(_short(field.after))}[/]"
    if field.after is None:
        return f"{name}: [red]- {escape(_short(field.before))}[/]"
    return f"{name}: [red]{escape(_short(field.before))}[/] → [green]{escape(_short(field.after))}[/]"


def _short(value: Any, width: int = 160) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= width else text[: width - 1] + "…"


def _summary(plan: "Plan") -> str:
    counts = {action: sum(c.action == action for c in plan.changes) for action in _SIGN}
    told = {"add": "to add", "change": "to change", "describe": "to describe", "remove": "to remove"}
    parts = [f"[{_STYLE[a]}]{n} {told.get(a, 'to restore')}[/]" for a, n in counts.items() if n]
    breaking = sum(bool(c.breaking) for c in plan.changes)
    return ", ".join(parts) + (f", [bold red]{breaking} breaking[/]" if breaking else "")
