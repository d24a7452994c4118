"""`ingest`, `export` and `erase`: rows that come in, and what is held of one person or thing."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from featurestore.cli.keys import Keys, read_keys
from featurestore.cli.reading import read_table, write_table
from featurestore.cli.session import AsJson, Root, leave, notes, open_store, print_json, print_rows

EntityName = Annotated[str, typer.Argument(help="The entity whose keys are given.")]


def ingest(
    source: Annotated[str, typer.Argument(help="The source to append to.")],
    file: Annotated[Path, typer.Argument(help="Parquet, Arrow or CSV with exactly the source's columns.")],
    root: Root = ".",
    online: Annotated[
        bool, typer.Option("--online", help="Also update the online store's views over the source.")
    ] = False,
) -> None:
    """Append a file's rows to a source."""
    store = open_store(root)
    table = read_table(file)
    if online:
        store.push(source, table)
    else:
        store.ingest(source, table)
    notes().print(f"{table.num_rows:,} rows appended to {escape(source)}")


def export(
    entity: EntityName,
    key: Keys,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A folder for one Parquet file per place.")
    ] = None,
    root: Root = ".",
    as_json: AsJson = False,
) -> None:
    """Collect every stored row of some keys: in sources, in dataset versions, online."""
    store = open_store(root)
    found = store.export(entity, read_keys(key, store.catalog.snapshot()))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        for place, table in found.items():
            write_table(table, output / f"{place.replace('/', '-')}.parquet")
    rows = [{"place": place, "rows": table.num_rows} for place, table in found.items()]
    print_rows(rows, columns=["place", "rows"], as_json=as_json, empty="nothing is held of these keys")


def erase(
    entity: EntityName,
    key: Keys,
    root: Root = ".",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Erase some keys from the online store for good; say where else rows of them are."""
    store = open_store(root)
    rows = read_keys(key, store.catalog.snapshot())
    if not yes and not typer.confirm(f"erase {len(rows)} keys of {entity} from the online store?", err=True):
        leave(1)
    report = store.erase(entity, rows)
    if as_json:
        print_json({"online_rows": report.online_rows, "remaining": dict(report.remaining)})
        return
    notes().print(f"{report.online_rows:,} rows erased online")
    remaining = [{"place": place, "rows": count} for place, count in report.remaining.items()]
    print_rows(
        remaining,
        columns=["place", "rows"],
        as_json=False,
        empty="no source and no dataset version holds them",
    )
