"""`get-online` and `serve`: the newest values, in this process and over the network."""

from typing import Annotated, Any

import typer
from rich.markup import escape

from featurestore.cli.session import AsJson, Root, notes, open_store, print_arrow
from featurestore.errors import DefinitionError

Now = Annotated[
    str | None, typer.Option(help="Answer as of this instant instead of the clock's, to replay the past.")
]


def get_online(
    features: Annotated[
        list[str], typer.Argument(help="Views, view:feature, view@2:feature, or one service.")
    ],
    key: Annotated[
        list[str], typer.Option("--key", "-k", help="symbol=AIG; for a composite key: origin=FRA,carrier=LH.")
    ],
    root: Root = ".",
    now: Now = None,
    as_json: AsJson = False,
) -> None:
    """Read the newest values of one or more entities from the online store."""
    rows = [_entity_row(text) for text in key]
    wanted = features[0] if len(features) == 1 and ":" not in features[0] else features
    answer = open_store(root).get_online_features(wanted, rows, now=now)
    print_arrow(answer.to_arrow(), rows=len(rows), as_json=as_json)


def serve(
    root: Root = ".",
    host: Annotated[
        str, typer.Option(help="Address to listen on; loopback unless you say otherwise.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="gRPC port; 0 takes a free one.")] = 50051,
    workers: Annotated[int, typer.Option(help="Processes on the port.")] = 1,
    now: Now = None,
) -> None:
    """Serve the newest values over gRPC until SIGTERM or Ctrl-C."""
    notes().print(f"serving {escape(root)} on {host}:{port}; Ctrl-C ends it")
    open_store(root).serve(host=host, port=port, workers=workers, now=now)


def _entity_row(text: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise DefinitionError(
                f"--key {text!r} is not a key", hint="write --key symbol=AIG, once per entity"
            )
        row[name.strip()] = int(value) if value.strip().lstrip("-").isdigit() else value
    return row
