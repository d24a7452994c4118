"""`get-online` and `serve`: the newest values, in this process and over the network."""

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
import yaml
from rich.markup import escape

from featurestore.cli.keys import Keys, read_keys
from featurestore.cli.session import (
    AsJson,
    Root,
    leave,
    notes,
    open_store,
    print_arrow,
    print_json,
    print_rows,
)
from featurestore.errors import DefinitionError

if TYPE_CHECKING:
    from featurestore.serve.config import Tls
    from featurestore.serve.flight_server import FlightFront
    from featurestore.store import FeatureStore

_ACCESS_HINT: Final = (
    "tokens: [{principal: model, sha256: <hex of its SHA-256>, roles: [read], views: [quote]}] and/or "
    "jwt: {issuer: …, audience: …, jwks: file or https URL}"
)

Now = Annotated[
    str | None, typer.Option(help="Answer as of this instant instead of the clock's, to replay the past.")
]


def get_online(
    features: Annotated[
        list[str], typer.Argument(help="Views, view:feature, view@2:feature, or one service.")
    ],
    key: Keys,
    root: Root = ".",
    now: Now = None,
    as_json: AsJson = False,
) -> None:
    """Read the newest values of one or more entities from the online store."""
    store = open_store(root)
    rows = read_keys(key, store.catalog.snapshot())
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
    flight: Annotated[
        str | None, typer.Option(help="Where Arrow Flight listens, for bulk reads and SQL.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that share the port.")] = 1,
    now: Now = None,
    answer_log: Annotated[
        str | None, typer.Option(help="Log a sample of answers to this folder, for verify-online.")
    ] = None,
    answer_fraction: Annotated[float, typer.Option(help="How much of all entities the sample takes.")] = 0.01,
    certificate: Annotated[str | None, typer.Option(help="TLS certificate, PEM.")] = None,
    private_key: Annotated[str | None, typer.Option(help="TLS private key, PEM.")] = None,
    client_ca: Annotated[
        str | None, typer.Option(help="Callers must show a certificate of this authority.")
    ] = None,
    access: Annotated[
        str | None, typer.Option(help="YAML file of who may call: tokens (hashed) and jwt (issuer, keys).")
    ] = None,
    allow_insecure: Annotated[
        bool, typer.Option("--allow-insecure", help="Listen beyond loopback without TLS.")
    ] = False,
    traces: Annotated[
        bool, typer.Option("--traces", help="Trace calls by OpenTelemetry, as OTEL_* variables say.")
    ] = False,
    log_calls: Annotated[
        bool,
        typer.Option("--log-calls", help="Log each call as a line of JSON: names and numbers, no values."),
    ] = False,
) -> None:
    """Serve the newest values over gRPC until SIGTERM or Ctrl-C."""
    store = open_store(root)
    tls = _tls(certificate, private_key, client_ca)
    callers = _callers(access)
    with notes().status("starting"):
        handle = store.serve(
            address=address,
            http_address=http,
            workers=workers,
            now=now,
            tls=tls,
            allow_insecure=allow_insecure,
            answer_log=answer_log,
            answer_fraction=answer_fraction,
            traces=traces,
            log_calls=log_calls,
            **callers,
        )
    with contextlib.ExitStack() as fronts:
        fronts.enter_context(handle)
        fronts.enter_context(_on_sigterm())
        where = f"gRPC on {handle.address}"
        where += f", HTTP on {handle.http_address}" if handle.http_address else ""
        if flight is not None:
            front = _flight(store, flight, tls=tls, allow_insecure=allow_insecure, **callers)
            where += f", Flight on {fronts.enter_context(front).address}"
        with contextlib.suppress(KeyboardInterrupt):
            notes().print(f"serving {escape(root)}: {where}; Ctrl-C ends it")
            handle.wait()
        notes().print("draining")


def verify_online(
    answers: Annotated[str, typer.Argument(help="The folder that `serve --answer-log` wrote.")],
    root: Root = ".",
    as_json: AsJson = False,
) -> None:
    """Replay logged answers against history, value for value; exits with 1 if any differs."""
    with notes().status("replaying answers"):
        report = open_store(root).verify_online(answers)
    counts = {name: getattr(report, name) for name in ("rows", "cells", "missing", "extra", "different")}
    if as_json:
        print_json({**counts, "ok": report.ok, "mismatches": [asdict(m) for m in report.mismatches]})
    else:
        print_rows([counts], columns=list(counts), as_json=False, empty="nothing was logged")
        for mismatch in report.mismatches[:10]:
            notes().print(escape(str(mismatch)))
    if not report.ok:
        leave(1)


def _flight(store: "FeatureStore", address: str, **options: Any) -> "FlightFront":
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise DefinitionError(f"--flight {address!r} is not an address", hint="write it like 127.0.0.1:8815")
    return store.serve_flight(host=host, port=int(port), **options)


def _callers(path: str | None) -> dict[str, Any]:
    """Read who may call: what `serve` takes as `tokens` and `jwt`.

    Raises:
        DefinitionError: the file cannot be read, or names nobody.
    """
    if path is None:
        return {}
    from featurestore.serve.config import Token

    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        found = {"tokens": given.get("tokens", ()), "jwt": given.get("jwt")}
        unknown = sorted(set(given) - set(found))
        tokens = tuple(Token(**token) for token in found["tokens"])
    except (OSError, yaml.YAMLError) as error:
        raise DefinitionError(f"--access {path} cannot be read: {error}", hint=_ACCESS_HINT) from error
    except (AttributeError, KeyError, TypeError) as error:
        raise DefinitionError(
            f"--access {path} is not as it should be: {error}", hint=_ACCESS_HINT
        ) from error
    if unknown or not (tokens or found["jwt"]):
        what = f"says {unknown[0]!r}" if unknown else "names nobody"
        raise DefinitionError(f"--access {path} {what}", hint=_ACCESS_HINT)
    return {"tokens": tokens, "jwt": found["jwt"]}


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
