"""The commands on datasets: make a version, list, verify, compare, keep, and clean up versions."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from featurestore.cli.session import (
    AsJson,
    Root,
    Version,
    notes,
    open_store,
    print_json,
    print_rows,
    version_of,
)
from featurestore.core.time import format_instant
from featurestore.demo.bar import Bar

if TYPE_CHECKING:
    from featurestore.dataset import Dataset

Name = Annotated[str, typer.Argument(help="A training set or a feature view.")]


def materialize(
    names: Annotated[list[str], typer.Argument(help="Training sets and feature views, in order.")],
    *,
    root: Root = ".",
    start: Annotated[
        str | None, typer.Option(help="First instant, included: 2025-06-02 or with a time.")
    ] = None,
    end: Annotated[str | None, typer.Option(help="Last instant, excluded.")] = None,
    incremental: Annotated[
        bool, typer.Option("--incremental", help="Only what is new in the sources since the last version.")
    ] = False,
    executor: Annotated[str | None, typer.Option(help="threads, processes or ray.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print the plan, task by task, and do nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Join, write and commit: one new version of each name."""
    store = open_store(root)
    if explain:
        plans = [store.plan_materialization(name, start, end, incremental=incremental) for name in names]
        if as_json:
            print_json([plan.to_dict() for plan in plans])
        else:
            typer.echo("\n".join(plan.explain() for plan in plans))
        return
    rows = []
    for name in names:
        with Bar(notes(), plain=True) as bar:
            if incremental:
                result = store.materialize_incremental(name, executor, progress=bar)
            else:
                result = store.materialize(name, start, end, executor, progress=bar)
        rows.append(result.to_dict())
        if not result.created and not as_json:
            notes().print(f"{escape(name)}: nothing has changed; version {result.version} stays")
    columns = ["name", "version", "rows", "partitions", "written", "written_bytes", "seconds", "fingerprint"]
    print_rows(rows, columns=columns, as_json=as_json, empty="nothing")


def list_datasets(root: Root = ".", as_json: AsJson = False) -> None:
    """List what has been materialized, with its newest version."""
    store = open_store(root)
    rows = [_newest(store, name) for name in store.datasets()]
    print_rows(
        rows,
        columns=["name", "version", "rows", "fingerprint"],
        as_json=as_json,
        empty="nothing is materialized yet; run `featurestore materialize NAME`",
    )


def history(name: Name, root: Root = ".", as_json: AsJson = False) -> None:
    """List a dataset's versions, the newest last: rows, time, fingerprint, pins."""
    rows = [_plain(entry) for entry in open_store(root).history(name)]
    columns = list(rows[0]) if rows else []
    print_rows(rows, columns=columns, as_json=as_json, empty=f"{name} has no version yet")


def verify(name: Name, root: Root = ".", version: Version = None, as_json: AsJson = False) -> None:
    """Read every byte of a version again and compare it with what was promised when it was written."""
    dataset = _opened(root, name, version)
    with notes().status(f"verifying {escape(name)} version {dataset.version}"):
        report = dataset.verify()
    print_rows([_plain(report)], columns=list(_plain(report)), as_json=as_json, empty="nothing to verify")


def recreate(name: Name, root: Root = ".", version: Version = None, as_json: AsJson = False) -> None:
    """Compute a version again from its pinned inputs; its fingerprint must be the same."""
    dataset = _opened(root, name, version)
    with notes().status(f"recreating {escape(name)} version {dataset.version}"):
        report = dataset.recreate()
    print_rows([_plain(report)], columns=list(_plain(report)), as_json=as_json, empty="nothing")


def diff(
    name: Name,
    older: Annotated[str, typer.Argument(help="The earlier version: a number, a tag, or a time.")],
    newer: Annotated[str, typer.Argument(help="The later version.")],
    root: Root = ".",
    as_json: AsJson = False,
) -> None:
    """Compare two versions of a dataset: rows added, changed and removed, per partition."""
    found = open_store(root).diff(name, version_of(older), version_of(newer))
    if as_json:
        print_json(_plain(found))
        return
    rows = [_plain(part) for part in found.partitions]
    print_rows(rows, columns=list(rows[0]) if rows else [], as_json=False, empty="the versions are equal")


def rollback(
    name: Name,
    version: Annotated[str, typer.Argument(help="The version to return to: a number, a tag, or a time.")],
    root: Root = ".",
    as_json: AsJson = False,
) -> None:
    """Make an earlier version the newest again, as a new version; nothing is lost."""
    result = open_store(root).rollback(name, version_of(version))
    if as_json:
        print_json(result.to_dict())
    else:
        notes().print(f"{escape(name)} is as it was at version {version}; now at {result.version}")


def pin(
    name: Name,
    version: Annotated[str, typer.Argument(help="The version to keep.")],
    tag: Annotated[str, typer.Option("--tag", "-t", help="A name for it, such as a model's.")],
    root: Root = ".",
) -> None:
    """Keep a version whatever vacuum does, under a name of its own."""
    open_store(root).pin(name, version_of(version), tag)
    notes().print(f"version {version} of {escape(name)} is kept as {escape(tag)}")


def unpin(
    name: Name,
    tag: Annotated[str, typer.Option("--tag", "-t", help="The name under which it was kept.")],
    root: Root = ".",
) -> None:
    """Take a pin off; the version goes with the next vacuum that may take it."""
    open_store(root).unpin(name, tag=tag)
    notes().print(f"{escape(name)} has no version kept as {escape(tag)} any more")


def compact(name: Name, root: Root = ".", as_json: AsJson = False) -> None:
    """Checkpoint the log and say how the files lie: each partition is one sorted file already."""
    with notes().status(f"compacting {escape(name)}"):
        result = open_store(root).compact(name).to_dict()
    columns = ["name", "version", "rows", "partitions", "files", "rows_per_file", "note"]
    print_rows([result], columns=columns, as_json=as_json, empty="")


def vacuum(
    name: Name,
    root: Root = ".",
    keep: Annotated[int, typer.Option(help="How many of the newest versions to keep.")] = 1,
    really: Annotated[
        bool, typer.Option("--delete", help="Delete. Without it: only say what would go.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete files that no kept version needs; says what would go unless --delete is given."""
    gone = open_store(root).vacuum(name, keep=keep, dry_run=not really)
    print_rows(
        [{"file": file} for file in gone], columns=["file"], as_json=as_json, empty="nothing to delete"
    )
    notes().print(f"{len(gone)} files {'deleted' if really else 'would go; --delete deletes them'}")


def _opened(root: str, name: str, version: str | None) -> "Dataset":
    return open_store(root).dataset(name, None if version is None else version_of(version))


def _newest(store: Any, name: str) -> dict[str, Any]:
    dataset = store.dataset(name)
    return {
        "name": name,
        "version": dataset.version,
        "rows": dataset.num_rows,
        "fingerprint": dataset.manifest.fingerprint,
    }


def _plain(value: Any) -> dict[str, Any]:
    """Turn a report into printable values: instants as ISO 8601, sizes as they are."""
    raw: Mapping[str, Any] = (
        asdict(value) if is_dataclass(value) and not isinstance(value, type) else dict(value)
    )
    out: dict[str, Any] = {}
    for key, item in raw.items():
        if (
            key.endswith("_ns")
            and isinstance(item, int)
            and key.removesuffix("_ns") in {"created", "committed"}
        ):
            out[key.removesuffix("_ns")] = format_instant(item)
        else:
            out[key] = item
    return out
