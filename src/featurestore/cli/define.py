"""`init`, `plan` and `apply`: from a folder of definitions to a commit in the catalog."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from featurestore.cli.session import AsJson, Root, leave, notes, open_store, out, print_json
from featurestore.cli.starter import write_starter

if TYPE_CHECKING:
    from featurestore.catalog.plan import Plan

Complete = Annotated[bool, typer.Option("--complete", help="Also remove what the folder no longer defines.")]


def init(
    name: Annotated[str, typer.Argument(help="The folder to make; also the project's name.")],
) -> None:
    """Make a working folder: feature_store.yaml, definitions.py, a tour to read and run, and sample data."""
    folder = Path(name)
    with notes().status("writing sample data"):
        files = write_starter(folder)
    shown = escape(str(folder))
    notes().print(f"made [bold]{shown}[/]: {', '.join(files)}")
    notes().print(
        f"next: [bold]cd {shown} && featurestore plan[/], or [bold]python {shown}/notebooks/tour.py[/]"
    )


def plan(
    root: Root = ".",
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with 2 if apply would change something.")
    ] = False,
    complete: Complete = False,
    as_json: AsJson = False,
) -> None:
    """Show what apply would change, and what has to be materialized again. Changes nothing."""
    planned = open_store(root).plan(complete=complete)
    _show(planned, as_json)
    if exit_code and not planned.is_empty:
        leave(2)


def apply(
    root: Root = ".",
    message: Annotated[str, typer.Option("--message", "-m", help="Why; kept in the catalog's history.")] = "",
    complete: Complete = False,
    as_json: AsJson = False,
) -> None:
    """Commit the folder's definitions to the catalog, as one new version of it."""
    store = open_store(root)
    planned = store.plan(complete=complete)
    if not as_json:
        _show(planned, as_json)
    commit = store.apply(planned, message=message)
    if as_json:
        print_json({"catalog_version": commit.version, "changed": not planned.is_empty})
    elif not planned.is_empty:
        notes().print(f"catalog version [bold]{commit.version}[/]")


def _show(planned: "Plan", as_json: bool) -> None:
    from featurestore.cli.plan_view import plan_json, render_plan

    if as_json:
        print_json(plan_json(planned))
    else:
        render_plan(planned, out())
