"""`featurestore demo`."""

from pathlib import Path
from typing import Annotated

import typer

from featurestore.cli.session import leave


def demo(
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with trades/YYYYMMDD.parquet and quotes/YYYYMMDD.parquet. Default: generated."
        ),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Where the demo's store is made. Default: a temporary folder.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the temporary folder.")] = False,
    report: Annotated[Path, typer.Option(help="Where the HTML report is written.")] = Path(
        "demo-report.html"
    ),
) -> None:
    """Run the whole path on ticks: define, materialize, verify, train, serve, and a second day."""
    from featurestore.demo.run import run_demo

    if not run_demo(data=data, root=root, keep=keep, report=report):
        leave(1)
