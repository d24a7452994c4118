"""Looking at the catalog: lists, details, lineage, history, differences and rollback."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.markup import escape
from rich.table import Table

from featurestore.cli.session import AsJson, Root, notes, open_store, out, print_json, print_rows, version_of
from featurestore.core.time import format_duration, format_instant
from featurestore.errors import DefinitionError

if TYPE_CHECKING:
    from featurestore.catalog.snapshot import CatalogSnapshot, Record

# command → (kinds it shows, what one of them is called)
_GROUPS: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "views": (("feature_view", "on_demand_feature_view"), "view"),
    "entities": (("entity",), "entity"),
    "sources": (("source",), "source"),
    "services": (("feature_service",), "feature service"),
    "labels": (("label",), "label"),
    "training-sets": (("training_set",), "training set"),
}
_FORMATS: Final = ("text", "json", "mermaid", "svg")
At = Annotated[str | None, typer.Option("--at", help="A catalog version or a time. Default: the newest.")]
Ref = Annotated[str, typer.Argument(help="A name, with a version where not the newest is meant: quote@1.")]


def register(app: typer.Typer) -> None:
    """Add the catalog's commands to the command line."""
    for name, (kinds, word) in _GROUPS.items():
        app.add_typer(_group(kinds, word), name=name)
    app.command()(lineage)
    catalog = typer.Typer(no_args_is_help=True, help="The catalog's versions: history, diff, rollback.")
    catalog.command()(history)
    catalog.command()(diff)
    catalog.command()(rollback)
    app.add_typer(catalog, name="catalog")


def _group(kinds: tuple[str, ...], word: str) -> typer.Typer:
    group = typer.Typer(no_args_is_help=True, help=f"What every {word} is and means.")
    group.command("list")(_listing(kinds, word))
    group.command("show")(_showing(kinds))
    return group


def _listing(kinds: tuple[str, ...], word: str) -> Callable[..., None]:
    def list_(root: Root = ".", at: At = None, as_json: AsJson = False) -> None:
        """List them, with their versions."""
        snapshot = _snapshot(root, at)
        rows = [_row(record) for kind in kinds for record in snapshot.live(kind)]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        if not as_json:
            rows = [{key: "" if value is None else value for key, value in row.items()} for row in rows]
        print_rows(rows, columns=columns, as_json=as_json, empty=f"no {word} yet")

    return list_


def _showing(kinds: tuple[str, ...]) -> Callable[..., None]:
    def show(ref: Ref, root: Root = ".", at: At = None, as_json: AsJson = False) -> None:
        """Show one in full: its definition, its columns, its versions."""
        snapshot = _snapshot(root, at)
        record = snapshot.record(ref, *kinds)
        versions = [r.version for r in snapshot.versions_of(record.name, record.kind)]
        if as_json:
            print_json({**_details(record), "versions": versions})
            return
        _print_record(record, versions)

    return show


def _snapshot(root: str, at: str | None) -> "CatalogSnapshot":
    catalog = open_store(root).catalog
    return catalog.snapshot() if at is None else catalog.at(version_of(at))


def _row(record: "Record") -> dict[str, Any]:
    spec = record.spec
    about: dict[str, dict[str, Any]] = {
        "entity": {"join_keys": tuple(spec.get("join_keys", ()))},
        "source": {"path": spec.get("path"), "timestamp": spec.get("timestamp_field")},
        "feature_view": {
            "source": spec.get("source"),
            "entities": tuple(spec.get("entities", ())),
            "features": len(spec.get("features", ())) + len(spec.get("aggregations", ())),
            "ttl": _duration(spec.get("ttl_ns")),
        },
        "on_demand_feature_view": {
            "source": tuple(spec.get("inputs", ())),
            "entities": (),
            "features": len(spec.get("features", ())),
            "ttl": None,
        },
        "feature_service": {"features": len(record.columns)},
        "label": {
            "source": spec.get("source"),
            "expression": spec.get("expression"),
            "horizon": _duration(spec.get("horizon_ns")),
        },
        "training_set": {
            "spine": spec.get("spine"),
            "columns": len(record.columns),
            "labels": tuple(spec.get("labels", ())),
        },
    }
    return {
        "name": record.name,
        "version": record.version,
        **about[record.kind],
        "owner": spec["owner"],
        "description": spec["description"],
    }


def _duration(nanos: int | None) -> str | None:
    return None if nanos is None else format_duration(nanos)


def _details(record: "Record") -> dict[str, Any]:
    return {
        "kind": record.kind,
        "name": record.name,
        "version": record.version,
        "since": record.since,
        "definition": dict(record.spec),
        "columns": [{"name": f.name, "type": str(f.type)} for f in record.schema],
        "reads": list(record.pins),
    }


def _print_record(record: "Record", versions: list[int]) -> None:
    console = out()
    console.print(
        f"[bold]{escape(record.id)}[/], since catalog version {record.since}, of versions {versions}"
    )
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for key, value in record.spec.items():
        if key not in {"kind", "name"} and value not in (None, "", [], {}):
            table.add_row(key, escape(_written(key, value)))
    if record.pins:
        table.add_row("reads", escape(", ".join(record.pins)))
    console.print(table)
    if record.columns:
        columns = Table(header_style="bold")
        columns.add_column("column")
        columns.add_column("type")
        for field in record.schema:
            columns.add_row(escape(field.name), escape(str(field.type)))
        console.print(columns)


def _written(key: str, value: Any) -> str:
    if key.endswith("_ns"):
        return format_duration(value)
    if key == "features" and isinstance(value[0], dict):
        return "\n".join(_assigned(f["name"], f["expression"]) for f in value)
    if key == "aggregations":
        return "\n".join(
            f"{a['name']} = {a['function']} of {a['column']} over {format_duration(a['window_ns'])}"
            + (f", tile {format_duration(a['tile_ns'])}" if a["tile_ns"] else "")
            for a in value
        )
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _assigned(name: str, expression: str | None) -> str:
    return name if expression is None else f"{name} = {expression}"


def lineage(
    ref: Annotated[str, typer.Argument(help="A definition, or one feature: quote, quote:mid, quote@1.")],
    root: Root = ".",
    form: Annotated[str, typer.Option("--format", "-f", help="text, json, mermaid or svg.")] = "text",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to a file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a definition or a feature is made from, and what is made from it, down to columns.

    Raises:
        DefinitionError: an unknown format.
    """
    form = "json" if as_json else form
    if form not in _FORMATS:
        raise DefinitionError(f"no format {form!r}", hint=f"one of {', '.join(_FORMATS)}")
    traced = open_store(root).catalog.lineage(ref)
    if form == "json" and output is None:
        print_json(traced.to_json())
        return
    import json

    text = {
        "text": traced.to_text,
        "json": lambda: json.dumps(traced.to_json(), indent=2, ensure_ascii=False) + "\n",
        "mermaid": traced.to_mermaid,
        "svg": traced.to_svg,
    }[form]()
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
        notes().print(f"wrote {escape(str(output))}")


def history(
    root: Root = ".",
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many, newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the catalog's versions: when, who, why and what."""
    commits = open_store(root).catalog.history()[:limit]
    rows = [
        {
            "version": c.version,
            "time": format_instant(c.time_ns),
            "author": c.author,
            "message": c.message,
            "changes": c.changed if as_json else _some(c.changed),
        }
        for c in commits
    ]
    columns = ["version", "time", "author", "message", "changes"]
    print_rows(rows, columns=columns, as_json=as_json, empty="nothing was applied yet")


def _some(items: list[str], shown: int = 4) -> str:
    more = f", … {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more


def diff(
    older: Annotated[str, typer.Argument(help="A catalog version or a time.")],
    newer: Annotated[str | None, typer.Argument(help="Another one. Default: the newest version.")] = None,
    root: Root = ".",
    as_json: AsJson = False,
) -> None:
    """Show what changed between two versions of the catalog."""
    from featurestore.cli.plan_view import change_json, change_renderable

    catalog = open_store(root).catalog
    changes = catalog.diff(version_of(older), version_of(newer) if newer else catalog.head)
    if as_json:
        print_json([change_json(change) for change in changes])
        return
    for change in changes:
        out().print(change_renderable(change))
    if not changes:
        notes().print("no difference")


def rollback(
    version: Annotated[str, typer.Argument(help="The catalog version, or a time, to go back to.")],
    root: Root = ".",
    message: Annotated[str, typer.Option("--message", "-m", help="Why; kept in the history.")] = "",
    as_json: AsJson = False,
) -> None:
    """Bring back what was in force at an older version, as a new version. Nothing is forgotten."""
    catalog = open_store(root).catalog
    before = catalog.head
    commit = catalog.rollback(version_of(version), message=message)
    if as_json:
        print_json({"catalog_version": commit.version, "changes": commit.changed, "before": before})
    elif commit.version == before:
        notes().print(f"nothing to change: that is what version {before} holds")
    else:
        notes().print(f"catalog version [bold]{commit.version}[/]: {escape(_some(commit.changed))}")
