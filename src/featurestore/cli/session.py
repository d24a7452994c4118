"""What every command shares: where the store is, and how answers are printed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from featurestore.errors import NotFoundError

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.store import FeatureStore

CONFIG: Final = "feature_store.yaml"

Root = Annotated[
    str,
    typer.Option(
        "--root", "-r", envvar="FEATURESTORE_ROOT", help="Folder or URL that holds feature_store.yaml."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Version = Annotated[
    str | None, typer.Option("--version", "-v", help="A number, a tag, or a time. Default: the newest.")
]


def leave(status: int) -> NoReturn:
    """End the command with an exit status of its own.

    Raises:
        Exit: always.
    """
    raise typer.Exit(status)


def open_store(root: str) -> "FeatureStore":
    """Open the store that lives in `root`.

    Raises:
        NotFoundError: there is no `feature_store.yaml` there.
    """
    from featurestore.store import FeatureStore

    if "://" not in root and not (Path(root) / CONFIG).is_file():
        raise NotFoundError(
            f"no {CONFIG} in {Path(root).resolve()}",
            hint="run `featurestore init NAME` to make a store, or name its folder with --root",
            root=root,
        )
    return FeatureStore(root)


def version_of(text: str) -> int | str:
    """Read a version as typed: digits are a number, anything else a tag or a time."""
    return int(text) if text.isdigit() else text


def out() -> Console:
    """Return the console for answers: stdout, and as wide as it needs to be when nobody looks at it."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=max(console.width, 160))


def notes() -> Console:
    """Return the console for progress and remarks: stderr, so that answers can be piped."""
    return Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout, by the rules of `json_value`."""
    from featurestore.core.python_values import json_value

    typer.echo(json.dumps(json_value(value), indent=2, ensure_ascii=False, allow_nan=False))


def print_rows(
    rows: Sequence[Mapping[str, Any]],
    *,
    columns: Sequence[str],
    as_json: bool,
    title: str = "",
    empty: str,
    exact: bool = False,
) -> None:
    """Print mappings as a table or as a JSON list; `empty` is said where there is no row.

    Args:
        exact: The columns are names of the user's: they head the table as they are.
    """
    if as_json:
        print_json([dict(row) for row in rows])
        return
    if not rows:
        notes().print(escape(empty))
        return
    table = Table(title=title or None, title_justify="left", header_style="bold")
    for column in columns:
        numeric = all(isinstance(row.get(column), (int, float)) for row in rows)
        heading = escape(column) if exact else column.replace("_", " ")
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell(row.get(column), column) for column in columns))
    out().print(table)


def print_arrow(table: "pa.Table", *, rows: int, as_json: bool) -> None:
    """Print the first rows of an Arrow table; times keep all their digits."""
    from featurestore.core.python_values import python_rows, time_text

    found = python_rows(table if as_json else table.slice(0, rows))
    shown = [{name: time_text(value) for name, value in row.items()} for row in found]
    print_rows(shown, columns=table.column_names, as_json=as_json, empty="no rows", exact=True)
    if not as_json and table.num_rows > rows:
        notes().print(f"[dim]… {table.num_rows - rows:,} more of {table.num_rows:,} rows[/]")


def cell(value: Any, name: str = "") -> str:
    """Write one value for a table: thousands apart, nulls visible, text as it is."""
    if value is None:
        return "[dim]null[/]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3f}" if name.endswith("seconds") else f"{value:.10g}"
    if isinstance(value, tuple):
        return escape(", ".join(map(str, value)))
    return escape(str(value))
