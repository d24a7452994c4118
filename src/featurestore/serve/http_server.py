"""The HTTP JSON front that Feast's HTTP clients speak, and `/metrics`: HTTP/1.1 on asyncio streams.

Small on purpose: no chunked bodies, no pipelining, one response per request, connections kept open.
"""

import asyncio
import contextlib
import json
import logging
import socket
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from featurestore.core.clock import SystemClock
from featurestore.errors import (
    AccessDeniedError,
    DefinitionError,
    ExpressionError,
    FeatureStoreError,
    LimitError,
    NotFoundError,
    OnlineStoreError,
    SchemaError,
    ServerError,
    TimeOverflowError,
)
from featurestore.serve.access import Access, Caller
from featurestore.serve.certificates import Certificates
from featurestore.serve.config import ServerConfig, Tls
from featurestore.serve.feast_service import FeastService
from featurestore.serve.service import OnlineService
from featurestore.serve.write_threads import WriteThreads

_HEAD_BYTES: Final = 16 << 10
_IDLE_S: Final = 60.0
_HEAD_S: Final = 10.0
_BACKLOG: Final = 512
_METHODS: Final = ("GET", "POST")
_log = logging.getLogger("featurestore.serve")
_CODES: Final = (
    (NotFoundError, HTTPStatus.NOT_FOUND),
    (LimitError, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    ((SchemaError, DefinitionError, ExpressionError, TimeOverflowError), HTTPStatus.BAD_REQUEST),
    (OnlineStoreError, HTTPStatus.SERVICE_UNAVAILABLE),
)


class _Refused(Exception):  # noqa: N818 -- it never leaves this module
    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


class HttpServer:
    """One worker's HTTP front.

    Attributes:
        draining: Whether health says so and connections are closed after their answer.
    """

    def __init__(
        self, service: OnlineService, config: ServerConfig, access: Access, threads: WriteThreads
    ) -> None:
        """Serve over a service; `start` listens."""
        self._service = service
        self._feast = FeastService(service)
        self._config = config
        self._access = access
        self._metrics = service.metrics
        self._threads = threads
        self._files = None if config.tls is None else Certificates(config.tls)
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.draining = False

    async def start(self) -> int:
        """Listen; returns the port.

        Raises:
            ServerError: the port is taken.
        """
        try:
            if self._files is not None:
                self._files.read()  # what `changed` compares with
            self._socket = await self._bound()
            self._server = await self._listening()
        except (OSError, ssl.SSLError) as error:
            raise ServerError(
                f"cannot listen for HTTP on port {self._config.http_port}: {error}",
                hint="give a free port, or 0",
            ) from error
        port: int = self._socket.getsockname()[1]
        return port

    async def renew(self) -> bool:
        """Take over certificate files that changed, for new connections; returns whether they did.

        The port stays open: the new listener takes from the same queue before the old one is closed. Files
        that do not fit each other keep the old ones.
        """
        if self._files is None or self._server is None or self._files.changed() is None:
            return False
        try:
            server = await self._listening()
        except (OSError, ssl.SSLError) as error:
            _log.warning("the HTTP front keeps its certificate: %s", error)
            return False
        old, self._server = self._server, server
        old.close()
        return True

    async def stop(self) -> None:
        """Close the port and every connection."""
        if self._server is not None:
            self._server.close()
        if self._socket is not None:
            self._socket.close()
        for writer in list(self._open):
            writer.close()

    async def _bound(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        host, port = self._config.host, self._config.http_port
        family, kind, protocol, _, address = (
            await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.setblocking(False)
        found.bind(address)
        return found

    async def _listening(self) -> asyncio.Server:
        assert self._socket is not None  # noqa: S101 -- bound in start
        tls = None if self._config.tls is None else _context(self._config.tls)
        return await asyncio.start_server(
            self._connected, sock=self._socket.dup(), limit=_HEAD_BYTES, ssl=tls, backlog=_BACKLOG
        )

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= self._config.limits.concurrent:
            writer.close()
            return
        self._open.add(writer)
        try:
            with contextlib.suppress(
                ConnectionError, asyncio.IncompleteReadError, TimeoutError, ssl.SSLError
            ):
                while await self._one(reader, writer):
                    pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read one request and answer it; returns whether the connection stays open."""
        try:
            line = await asyncio.wait_for(reader.readuntil(b"\r\n"), _IDLE_S)
            method, path, headers = await asyncio.wait_for(_head(line, reader), _HEAD_S)
            body = await asyncio.wait_for(_body(reader, headers, self._config.limits.message_bytes), _HEAD_S)
        except asyncio.LimitOverrunError:
            await _send(
                writer, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, {"detail": "too long"}, keep=False
            )
            return False
        except _Refused as refused:
            await _send(writer, refused.status, {"detail": refused.why}, keep=False)
            return False
        keep = headers.get("connection", "").lower() != "close" and not self.draining
        status, answer = await self._answer(method, path.rstrip("/") or "/", headers, body)
        await _send(writer, status, answer, keep=keep)
        return keep

    async def _answer(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[HTTPStatus, Any]:
        if path == "/health":
            unwell = HTTPStatus.SERVICE_UNAVAILABLE if self.draining else HTTPStatus.OK
            return unwell, {"status": "draining" if self.draining else "ok"}
        known = f"HTTP {path}" if path in _PATHS else "HTTP"
        started, tracing = self._metrics.begin(), self._service.tracing
        name = "HTTP" if known == "HTTP" else f"{method if method in _METHODS else '_OTHER'} {path}"
        with tracing.call(name, headers.items):
            try:
                answer = await self._routed(method, path, self._caller(headers), body)
            except FeatureStoreError as error:
                self._metrics.end(known, started, type(error).__name__)
                tracing.failed(type(error).__name__, str(_status(error).value))
                detail = {"detail": error.message, "hint": error.hint, "error": type(error).__name__}
                return _status(error), detail
            except _Refused as refused:
                self._metrics.end(known, started, str(refused.status.value))
                tracing.failed("refused", str(refused.status.value))
                return refused.status, {"detail": refused.why}
        self._metrics.end(known, started, "OK")
        return HTTPStatus.OK, answer

    async def _routed(self, method: str, path: str, caller: Caller, body: bytes) -> Any:
        if path == "/metrics" and method == "GET":
            return self._service.metrics_text(SystemClock().now_ns())
        if path not in _PATHS or method not in _METHODS:
            raise _Refused(HTTPStatus.NOT_FOUND, f"there is {', '.join(_PATHS)}")
        if path == "/get-online-features":  # some clients send their body with GET
            return self._feast.get_json(_json(body), caller)
        if path.startswith("/materialize"):
            raise _Refused(HTTPStatus.NOT_IMPLEMENTED, "a server does not materialize; use the store")
        left_s = self._config.limits.deadline_s
        return await self._threads.run(left_s, self._feast.push_json, _json(body), caller)

    def _caller(self, headers: Mapping[str, str]) -> Caller:
        authorization = headers.get("authorization")
        pairs = [] if authorization is None else [("authorization", authorization)]
        return self._access.caller(lambda: pairs)


_PATHS: Final = (
    "/health",
    "/metrics",
    "/get-online-features",
    "/push",
    "/write-to-online-store",
    "/materialize",
    "/materialize-incremental",
)


async def _head(line: bytes, reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str]]:
    parts = line.decode("latin-1").split()
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        raise _Refused(HTTPStatus.BAD_REQUEST, "not HTTP/1.1")
    headers: dict[str, str] = {}
    size = 0
    while (entry := await reader.readuntil(b"\r\n")) != b"\r\n":
        size += len(entry)
        name, colon, value = entry.decode("latin-1").partition(":")
        if not colon or size > _HEAD_BYTES or len(headers) > 100:
            raise _Refused(HTTPStatus.BAD_REQUEST, "malformed headers")
        headers[name.strip().lower()] = value.strip()
    return parts[0], parts[1].partition("?")[0], headers


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str], limit: int) -> bytes:
    if "transfer-encoding" in headers:
        raise _Refused(HTTPStatus.NOT_IMPLEMENTED, "send a content-length, not chunks")
    length = headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit():
        raise _Refused(HTTPStatus.BAD_REQUEST, "content-length is not a number")
    if len(length) > 12 or int(length) > limit:
        raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {limit} bytes")
    return await reader.readexactly(int(length))


async def _send(writer: asyncio.StreamWriter, status: HTTPStatus, answer: Any, *, keep: bool) -> None:
    plain = isinstance(answer, str)
    data = answer.encode() if plain else json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()
    kind = "text/plain; version=0.0.4" if plain else "application/json"
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n"
        f"connection: {'keep-alive' if keep else 'close'}\r\n\r\n"
    )
    writer.write(head.encode("latin-1") + data)
    # A client that does not read is let go of; it harms nobody else.
    await asyncio.wait_for(writer.drain(), _IDLE_S)


def _json(body: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body or b"{}", parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DefinitionError("the body is not JSON", hint=str(error)[:200]) from error
    if not isinstance(found, dict):
        raise DefinitionError("the body is not a JSON object")
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _status(error: FeatureStoreError) -> HTTPStatus:
    if isinstance(error, AccessDeniedError):
        return HTTPStatus.UNAUTHORIZED if error.context.get("unknown") else HTTPStatus.FORBIDDEN
    for kinds, status in _CODES:
        if isinstance(error, kinds):
            return status
    return HTTPStatus.INTERNAL_SERVER_ERROR


def _context(tls: Tls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.certificate, tls.key)
    if tls.client_ca is not None:
        context.load_verify_locations(tls.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
