"""The commands and where they are found in `--help`."""

from typing import Annotated, Final

import typer

from featurestore.cli import (
    cache_command,
    catalog_commands,
    datasets,
    define,
    demo_command,
    online,
    reading,
    subjects,
)
from featurestore.cli.doctor import doctor

app: Final = typer.Typer(
    name="featurestore",
    help="A temporal feature store whose training data is provably right.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"featurestore {version('featurestore')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """A temporal feature store whose training data is provably right."""


BEGIN, DEFINE, CATALOG, DATA, SERVE = "Begin", "Define", "Catalog", "Datasets", "Online"
app.command(rich_help_panel=BEGIN)(define.init)
app.command(rich_help_panel=BEGIN)(demo_command.demo)
app.command(rich_help_panel=BEGIN)(doctor)
app.command(rich_help_panel=DEFINE)(define.plan)
app.command(rich_help_panel=DEFINE)(define.apply)
app.command(rich_help_panel=DATA)(datasets.materialize)
app.command(rich_help_panel=DATA, name="datasets")(datasets.list_datasets)
app.command(rich_help_panel=DATA)(datasets.history)
app.command(rich_help_panel=DATA)(datasets.verify)
app.command(rich_help_panel=DATA)(datasets.recreate)
app.command(rich_help_panel=DATA)(datasets.diff)
app.command(rich_help_panel=DATA)(datasets.rollback)
app.command(rich_help_panel=DATA)(datasets.pin)
app.command(rich_help_panel=DATA)(datasets.unpin)
app.command(rich_help_panel=DATA)(datasets.vacuum)
app.command(rich_help_panel=DATA, name="get-historical")(reading.get_historical)
app.command(rich_help_panel=DATA)(reading.sql)
app.command(rich_help_panel=DATA)(datasets.compact)
app.command(rich_help_panel=DATA)(cache_command.cache)
app.command(rich_help_panel=DATA)(subjects.ingest)
app.command(rich_help_panel=DATA)(subjects.export)
app.command(rich_help_panel=DATA)(subjects.erase)
app.command(rich_help_panel=DATA)(subjects.unsuppress)
app.command(rich_help_panel=SERVE)(subjects.push)
app.command(rich_help_panel=SERVE, name="get-online")(online.get_online)
app.command(rich_help_panel=SERVE, name="verify-online")(online.verify_online)
app.command(rich_help_panel=SERVE)(online.serve)
catalog_commands.register(app)
for group in app.registered_groups:
    group.rich_help_panel = CATALOG
for command in app.registered_commands:
    if command.callback is catalog_commands.lineage:
        command.rich_help_panel = CATALOG


def _help_without_sections(typer_app: typer.Typer) -> None:
    """Show of each docstring its first paragraph: what it raises is for those who read the code."""
    for command in typer_app.registered_commands:
        if command.callback is not None and command.callback.__doc__:
            command.help = command.callback.__doc__.partition("\n\n")[0]
    for group in typer_app.registered_groups:
        if group.typer_instance is not None:
            _help_without_sections(group.typer_instance)


_help_without_sections(app)
