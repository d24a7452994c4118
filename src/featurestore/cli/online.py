"""`get-online` and `serve`: the newest values, in this process and over the network."""

import contextlib
import signal
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from featurestore.catalog.entity import Entity
from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.on_demand import OnDemandFeatureView
from featurestore.catalog.refs import Ref
from featurestore.cli.session import AsJson, Root, notes, open_store, print_arrow
from featurestore.errors import DefinitionError

if TYPE_CHECKING:
    from featurestore.catalog.snapshot import CatalogSnapshot
    from featurestore.serve.config import Tls

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
    store = open_store(root)
    kinds = _column_kinds(store.catalog.at(store.catalog.head))
    rows = [_entity_row(text, kinds) for text in key]
    wanted = features[0] if len(features) == 1 and ":" not in features[0] else features
    answer = store.get_online_features(wanted, rows, now=now)
    print_arrow(answer.to_arrow(), rows=len(rows), as_json=as_json)


def serve(
    *,
    root: Root = ".",
    address: Annotated[
        str, typer.Option(help="Where gRPC listens; loopback unless you say otherwise. Port 0: a free one.")
    ] = "127.0.0.1:50051",
    http: Annotated[
        str | None, typer.Option(help="Where HTTP JSON listens; Feast's clients look for port 6566.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that share the port.")] = 1,
    now: Now = None,
    certificate: Annotated[str | None, typer.Option(help="TLS certificate, PEM.")] = None,
    private_key: Annotated[str | None, typer.Option(help="TLS private key, PEM.")] = None,
    client_ca: Annotated[
        str | None, typer.Option(help="Callers must show a certificate of this authority.")
    ] = None,
    allow_insecure: Annotated[
        bool, typer.Option("--allow-insecure", help="Listen beyond loopback without TLS.")
    ] = False,
) -> None:
    """Serve the newest values over gRPC until SIGTERM or Ctrl-C."""
    store = open_store(root)
    tls = _tls(certificate, private_key, client_ca)
    with notes().status("starting"):
        handle = store.serve(
            address=address,
            http_address=http,
            workers=workers,
            now=now,
            tls=tls,
            allow_insecure=allow_insecure,
        )
    with handle, _on_sigterm():
        where = handle.address + (f", HTTP on {handle.http_address}" if handle.http_address else "")
        notes().print(f"serving {escape(root)}: gRPC on {where}; Ctrl-C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            handle.wait()
        notes().print("draining")


def _tls(certificate: str | None, private_key: str | None, client_ca: str | None) -> "Tls | None":
    if certificate is None and private_key is None and client_ca is None:
        return None
    if certificate is None or private_key is None:
        raise DefinitionError(
            "TLS needs a certificate and its key", hint="give both --certificate and --private-key"
        )
    from featurestore.serve.config import Tls

    return Tls(certificate=certificate, key=private_key, client_ca=client_ca)


@contextlib.contextmanager
def _on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the wait as Ctrl-C does."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _column_kinds(snapshot: "CatalogSnapshot") -> dict[str, str]:
    """Return what the catalog knows of key and request columns: their types, as text."""
    kinds: dict[str, str] = {}
    for view in snapshot.definitions(OnDemandFeatureView.kind):
        if isinstance(view, OnDemandFeatureView):
            kinds |= view.request
    keys = {k for e in snapshot.definitions(Entity.kind) if isinstance(e, Entity) for k in e.join_keys}
    for view in snapshot.definitions(FeatureView.kind):
        schema = snapshot.schema_of(Ref(view.name))
        kinds |= {f.name: str(f.type) for f in schema if f.name in keys}
    return kinds


def _entity_row(text: str, kinds: Mapping[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise DefinitionError(
                f"--key {text!r} is not a key", hint="write --key symbol=AIG, once per entity"
            )
        row[name.strip()] = _typed(name.strip(), value, kinds.get(name.strip(), "string"))
    return row


def _typed(name: str, value: str, kind: str) -> Any:
    try:
        if "int" in kind:
            return int(value)
        if "float" in kind or "double" in kind:
            return float(value)
    except ValueError as error:
        raise DefinitionError(f"--key {name}={value}: {value!r} is not of type {kind}") from error
    return value.lower() in {"true", "1", "yes"} if kind == "bool" else value
