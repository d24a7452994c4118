"""`ingest`, `push`, `export` and `erase`: rows that come in, and what is held of one person or thing."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from featurestore.cli.keys import Keys, read_keys
from featurestore.cli.reading import read_table, write_table
from featurestore.cli.session import AsJson, Root, leave, notes, open_store, print_json, print_rows

if TYPE_CHECKING:
    from featurestore.materialize.erasure.report import EraseReport

EntityName = Annotated[str, typer.Argument(help="The entity whose keys are given.")]


def ingest(
    source: Annotated[str, typer.Argument(help="The source to append to.")],
    file: Annotated[Path, typer.Argument(help="Parquet, Arrow or CSV with exactly the source's columns.")],
    root: Root = ".",
) -> None:
    """Append a file's rows to a source."""
    table = read_table(file)
    open_store(root).ingest(source, table)
    notes().print(f"{table.num_rows:,} rows appended to {escape(source)}")


def push(
    source: Annotated[str, typer.Argument(help="The source whose rows these are.")],
    file: Annotated[Path, typer.Argument(help="Parquet, Arrow or CSV with the source's columns.")],
    root: Root = ".",
    to: Annotated[
        str | None,
        typer.Option(
            help="both: append to the source and update its online views; online, offline: one of the two. "
            "Default: both, or online where nothing can be appended."
        ),
    ] = None,
) -> None:
    """Hand over a file's rows as they happen: appended to the source, and readable online at once."""
    store = open_store(root)
    table = read_table(file)
    written = store.push(source, table, to=to)
    views = "" if written is None else f"; online: {', '.join(written.views) or 'no view reads it'}"
    notes().print(f"{table.num_rows:,} rows of {escape(source)}{escape(views)}")


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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    pinned: Annotated[
        str, typer.Option("--pinned", help="Tagged versions that hold them: refuse, rewrite or remove.")
    ] = "refuse",
    answer_log: Annotated[
        list[str] | None, typer.Option("--answer-log", help="A folder of logged answers outside of the root.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Erase some keys from everything the store owns, prove it, and keep them out."""
    store = open_store(root)
    rows = read_keys(key, store.catalog.snapshot())
    question = f"erase {len(rows)} keys of {entity} from all versions, the online store and appended files?"
    if not dry_run and not yes and not typer.confirm(question, err=True):
        leave(1)
    report = store.erase(entity, rows, dry_run=dry_run, pinned=pinned, answer_logs=answer_log or ())
    if as_json:
        print_json(report.spec())
    else:
        _show(report)
    if not dry_run and not report.complete:
        leave(1)


def unsuppress(entity: EntityName, key: Keys, root: Root = ".") -> None:
    """Let rows of erased keys count again, from the next materialization on."""
    store = open_store(root)
    lifted = store.unsuppress(entity, read_keys(key, store.catalog.snapshot()))
    notes().print("their rows count again" if lifted else "none of these keys was erased")


def _show(report: "EraseReport") -> None:
    """Print what an erasure did, and what it leaves to others."""
    said = "would be erased" if report.dry_run else "erased"
    notes().print(f"{report.online_rows:,} entries {said} online")
    places = [{"place": p, "rows": n, "what": said} for p, n in report.erased.items()]
    places += [
        {"place": p, "rows": n, "what": "not the store's: delete them yourself; they count as absent"}
        for p, n in report.remaining.items()
    ]
    places += [{"place": p, "rows": None, "what": why} for p, why in report.unresolved.items()]
    found = {} if report.proof is None else report.proof.occurrences
    places += [
        {
            "place": p,
            "rows": n,
            "what": "found by the proof: if not the store's file, delete it and erase again",
        }
        for p, n in found.items()
    ]
    print_rows(
        places, columns=["place", "rows", "what"], as_json=False, empty="nothing is held of these keys"
    )
    if report.proof is not None:
        left = sum(report.proof.occurrences.values()) + sum(report.proof.online.values())
        notes().print(
            f"proof: {report.proof.files:,} files, {report.proof.bytes:,} bytes read again, "
            f"{left:,} occurrences; certificate {report.entry:08d}.report.json in erasures/"
        )
