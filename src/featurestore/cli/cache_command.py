"""`cache`: the copies of remote files on this machine."""

from dataclasses import asdict
from typing import Annotated

import typer

from featurestore.cli.session import AsJson, Root, open_store, print_rows


def cache(
    root: Root = ".",
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove the copies; what is open stays open.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what the copies of remote files take on this machine, or remove them."""
    from featurestore.materialize.context import cache_place
    from featurestore.storage.cache import file_cache

    copies = file_cache(cache_place(open_store(root).config))
    report = asdict(copies.clear() if clear else copies.report())
    what = "removed" if clear else ""
    print_rows([report], columns=list(report), as_json=as_json, title=what, empty="")
