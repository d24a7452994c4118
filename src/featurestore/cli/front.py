"""From arguments to an exit status: the one place where an error becomes two lines of text."""

import sys
from collections.abc import Sequence
from typing import Final

import typer
from rich.console import Console
from rich.markup import escape

from featurestore.cli.app import app
from featurestore.errors import FeatureStoreError

INTERRUPTED: Final = 130
DEBUG: Final = "--debug"


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; `--debug`, anywhere, lets the traceback through.

    Returns:
        0 done, 1 refused or failed, 2 wrong usage, 130 interrupted.

    Raises:
        FeatureStoreError: only with `--debug`.
        OSError: only with `--debug`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = DEBUG in given
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        status = _exit_status([argument for argument in given if argument != DEBUG])
    except FeatureStoreError as error:
        if debug:
            raise
        tell(error, errors)
        return 1
    except OSError as error:
        if debug:
            raise
        errors.print(f"[bold red]error[/]: {escape(str(error))}")
        errors.print("[bold]hint[/]: the operating system refused; no version was published")
        return 1
    if status == INTERRUPTED:
        errors.print("[bold yellow]interrupted[/]: no version was published; the previous one is as it was")
    return status


def _exit_status(arguments: Sequence[str]) -> int:
    """Run typer to its end; it shows wrong usage itself, and leaves by `SystemExit` in every case."""
    try:
        typer.main.get_command(app).main(list(arguments), prog_name="featurestore")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0
    return 0


def tell(error: FeatureStoreError, console: Console) -> None:
    """Print an error the way a person reads it: what happened, then what to do."""
    console.print(f"[bold red]error[/]: {escape(error.message)}")
    if error.hint:
        console.print(f"[bold]hint[/]: {escape(error.hint)}")
    if error.retryable:
        console.print("[dim]the same command may succeed if you run it again[/]")
