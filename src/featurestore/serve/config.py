"""What a server is told: one frozen value that crosses to its workers as JSON."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Final

from featurestore.core.arguments import (
    Check,
    flag,
    folder,
    listed,
    mapped,
    number,
    optional,
    refuse,
    text,
    whole,
)
from featurestore.core.time import INT64_MIN
from featurestore.errors import DefinitionError
from featurestore.serve.key_sets import check_location

ROLES: Final = ("read", "push", "admin")
SHARED: Final = ("HS256", "HS384", "HS512")
PUBLIC: Final = (
    *("RS256", "ES256", "EdDSA"),
    *("RS384", "RS512", "PS256", "PS384", "PS512", "ES384", "ES512"),
)
_SECRET_BYTES_MIN: Final = 32
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_PORT_MAX: Final = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what one caller may ask of a server.

    Attributes:
        message_bytes: The largest request; a larger one is refused before it is read whole.
        rows: Entity rows per request.
        cells: Entity rows times features per request.
        key_bytes: The longest entity key.
        concurrent: Calls at once per worker; further ones get RESOURCE_EXHAUSTED at once.
        deadline_s: How long a call may take where its caller set no deadline.
        streams: Calls at once per connection.
    """

    message_bytes: int = 4 << 20
    rows: int = 10_000
    cells: int = 1_000_000
    key_bytes: int = 4096
    concurrent: int = 1024
    deadline_s: float = 30.0
    streams: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files in PEM; they are read again when they change.

    Attributes:
        client_ca: Where given, callers must show a certificate of this authority.
    """

    certificate: str
    key: str
    client_ca: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A bearer token, kept as its SHA-256 in hex, and what its holder may do.

    Attributes:
        roles: Of `ROLES`; admin may do everything.
        views: The views it may read and push to; empty: all.
    """

    sha256: str
    principal: str
    roles: tuple[str, ...]
    views: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        what = f"the token of {text('a token', 'principal', self.principal)!r}"
        if not _SHA256.fullmatch(text(what, "sha256", self.sha256)):
            refuse(what, "sha256", "…", "give the SHA-256 of the token's text as 64 lower-case hex digits")
        for name in ("roles", "views"):
            given = listed(what, name, getattr(self, name), "texts")
            object.__setattr__(self, name, tuple(text(what, name, one) for one in given))


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtSettings:
    """Which JSON web tokens are believed.

    Attributes:
        issuer: What the token's `iss` must be.
        audience: What must be among its `aud`.
        secret: The key that the issuer shares, at least 32 bytes; or
        jwks: the issuer's public keys: a file that is read again when it changes, or an https URL.
        algorithms: Those that are allowed; by default HS256 with a secret, RS256, ES256 and EdDSA with keys.
        refresh_s: How often the URL is asked for new keys.
    """

    issuer: str
    audience: str
    secret: str | None = field(default=None, repr=False)
    jwks: str | None = None
    algorithms: tuple[str, ...] = ()
    refresh_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """A server.

    Attributes:
        root: The feature store's folder.
        storage_options: How a root in a store of objects is reached.
        online: The online store: a folder, or `redis://…`; by default the folder `online` in a local root.
        host: Where to listen; anything but loopback needs TLS or `allow_insecure`.
        port: 0 takes a free one.
        http_port: For the HTTP JSON front; `None`: no such front.
        workers: How many processes share the port.
        now_ns: A fixed clock, for replays; `None`: the wall clock.
        history_ns: See `open_backend`.
        reload_s: How often the catalog is looked at for a newer version.
        log_calls: Whether each call is a line of JSON on standard error: names and numbers, never values.
        answer_log: A folder for a sample of answers, for `verify-online`; `None`: no log.
        answer_fraction: How much of all entities the sample takes.
        traces: Whether calls are traced by OpenTelemetry, as the OTEL_* environment variables say.
        metrics_folder: Where the workers count, so that one scrape tells all; the server makes one.
        spare: Whether a further worker waits, ready but for its port, to take the place of one that dies.
        drain_s: How long calls under way may take after SIGTERM.
        linger_s: How long health says NOT_SERVING before new calls are refused.
        opener: `module:function` that makes the backend from this configuration, in each worker.
    """

    root: str
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    online: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    http_port: int | None = None
    workers: int = 1
    now_ns: int | None = None
    history_ns: int | None = None
    limits: Limits = field(default_factory=Limits)
    tls: Tls | None = None
    tokens: tuple[Token, ...] = ()
    jwt: JwtSettings | Mapping[str, Any] | None = None
    allow_insecure: bool = False
    reload_s: float = 1.0
    log_calls: bool = False
    answer_log: str | os.PathLike[str] | None = None
    answer_fraction: float = 0.01
    traces: bool = False
    metrics_folder: str | None = None
    spare: bool = True
    drain_s: float = 10.0
    linger_s: float = 0.0
    opener: str = "featurestore.serve.worker:open_root"

    def to_json(self) -> str:
        """Write as JSON."""
        return json.dumps(asdict(self), default=os.fspath)


def config_from_json(text: str) -> ServerConfig:
    """Read back what `ServerConfig.to_json` wrote."""
    fields: dict[str, Any] = json.loads(text)
    fields["limits"] = Limits(**fields["limits"])
    fields["tls"] = Tls(**fields["tls"]) if fields["tls"] else None
    fields["jwt"] = jwt_settings(fields["jwt"]) if fields["jwt"] else None
    fields["tokens"] = tuple(Token(**token) for token in fields["tokens"])
    return ServerConfig(**fields)


def jwt_settings(given: Mapping[str, Any] | JwtSettings) -> JwtSettings:
    """Check what a caller says about web tokens, and fill in the algorithms.

    Raises:
        DefinitionError: an unknown setting, no issuer or audience, not exactly one of secret and jwks, a
            short secret, or an algorithm that does not go with the kind of key.
    """
    try:
        found = given if isinstance(given, JwtSettings) else JwtSettings(**given)
    except TypeError as error:
        raise DefinitionError(f"jwt: {error}", hint="see JwtSettings") from error
    for name in ("issuer", "audience"):
        text("jwt", name, getattr(found, name))
    if not isinstance(found.secret, (str, type(None))):
        refuse("jwt", "secret", "…", "give text")  # never shown
    if found.jwks is not None:
        text("jwt", "jwks", found.jwks)
    number("jwt", "refresh_s", found.refresh_s, least=1)
    if not found.issuer or not found.audience:
        raise DefinitionError(
            "jwt names no issuer or no audience", hint="give both: tokens of others are refused"
        )
    if (found.secret is None) == (found.jwks is None):
        raise DefinitionError("jwt needs a secret or a key set", hint="give secret=… or jwks=…, not both")
    if found.secret is not None and len(found.secret.encode()) < _SECRET_BYTES_MIN:
        raise DefinitionError(
            f"the secret of jwt has fewer than {_SECRET_BYTES_MIN} bytes",
            hint="take a random one; short ones can be guessed from a single token",
        )
    if found.jwks is not None:
        check_location(found.jwks)
    allowed = SHARED if found.secret is not None else PUBLIC
    algorithms = (
        listed("jwt", "algorithms", found.algorithms, "names")
        or allowed[: 1 if found.secret is not None else 3]
    )
    wrong = [name for name in algorithms if name not in allowed]
    if wrong:
        raise DefinitionError(
            f"algorithm {wrong[0]!r} does not go with a {'key set' if found.secret is None else 'secret'}",
            hint=f"of {', '.join(allowed)}",
        )
    return replace(found, algorithms=algorithms)


def check_config(config: ServerConfig) -> ServerConfig:
    """Return a configuration that is safe to serve.

    Raises:
        DefinitionError: a value of the wrong kind, an unknown role, or a server that would listen beyond
            loopback without TLS.
    """
    for name, check in _SERVER.items():
        check("a server", name, getattr(config, name))
    for name, check in _LIMITS.items():
        check("limits", name, getattr(config.limits, name))
    loopback = config.host in {"127.0.0.1", "localhost", "::1"}
    if not loopback and config.tls is None and not config.allow_insecure:
        raise DefinitionError(
            f"the server would listen on {config.host} without TLS",
            hint="give tls=… (--certificate, --private-key), listen on 127.0.0.1, or say allow_insecure=True "
            "(--allow-insecure)",
            host=config.host,
        )
    if config.jwt is not None:
        config = replace(config, jwt=jwt_settings(config.jwt))
    for token in config.tokens:
        unknown = [role for role in token.roles if role not in ROLES]
        if unknown or not token.roles:
            raise DefinitionError(
                f"the token of {token.principal!r} has roles {list(token.roles)}",
                hint=f"of {', '.join(ROLES)}",
            )
    return config


def split_address(address: str) -> tuple[str, int]:
    """Read `host:port`.

    Raises:
        DefinitionError: it is not one.
    """
    host, _, port = text("a server", "address", address).rpartition(":")
    if not port.isdigit() or int(port) > _PORT_MAX:
        raise DefinitionError(f"address {address!r} is not host:port", hint='write it like "127.0.0.1:6565"')
    return host.strip("[]") or "127.0.0.1", int(port)


def _port(what: str, field: str, value: Any) -> int:
    if whole(what, field, value, least=0) > _PORT_MAX:
        refuse(what, field, value, f"a port is at most {_PORT_MAX}")
    return int(value)


def _of(what: str, field: str, value: Any, *, kind: type[Any] | tuple[type[Any], ...]) -> Any:
    if not isinstance(value, kind):
        refuse(what, field, value, f"featurestore.serve.config says what {field} is")
    return value


def _tokens(what: str, field: str, value: Any) -> tuple[Token, ...]:
    return tuple(_of(what, field, token, kind=Token) for token in listed(what, field, value, "Token(…)"))


_LIMITS: Final[Mapping[str, Check]] = {
    **dict.fromkeys(
        ("message_bytes", "rows", "cells", "key_bytes", "concurrent", "streams"), partial(whole, least=1)
    ),
    "deadline_s": partial(number, least=0.001),
}
_SERVER: Final[Mapping[str, Check]] = {
    **dict.fromkeys(("root", "host", "opener"), text),
    "storage_options": lambda what, field, value: mapped(what, field, value, "fsspec's options"),
    **dict.fromkeys(("online", "answer_log", "metrics_folder"), optional(folder)),
    "port": _port,
    "http_port": optional(_port),
    "workers": partial(whole, least=1),
    "now_ns": optional(partial(whole, least=INT64_MIN)),
    "history_ns": optional(partial(whole, least=0)),
    "limits": partial(_of, kind=Limits),
    "tls": optional(partial(_of, kind=Tls)),
    "tokens": _tokens,
    "jwt": optional(partial(_of, kind=(JwtSettings, Mapping))),
    **dict.fromkeys(("allow_insecure", "log_calls", "traces", "spare"), flag),
    "reload_s": partial(number, least=0.001),
    "answer_fraction": partial(number, least=0, most=1),
    **dict.fromkeys(("drain_s", "linger_s"), partial(number, least=0)),
}
