"""Arrow Flight: bulk reads. Datasets by version, SQL over them, and historical features of a streamed spine.

What the methods answer with is given to the server as functions: serving does not know the write path.
Streams move batch by batch at the speed of the slower side: memory is bounded by a chunk.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import pyarrow as pa

try:
    import pyarrow.flight as fl
except ImportError as missing:
    from featurestore.errors import MissingDependencyError

    raise MissingDependencyError(
        "this build of pyarrow has no Arrow Flight", hint="pip install pyarrow, from a wheel"
    ) from missing

from featurestore.core.clock import SystemClock
from featurestore.errors import (
    AccessDeniedError,
    DefinitionError,
    FeatureStoreError,
    NotFoundError,
    ServerError,
)
from featurestore.serve.access import ANYONE, Access, Caller
from featurestore.serve.certificates import Certificates
from featurestore.serve.config import ServerConfig, Tls, Token, check_config, split_address

Historical = Callable[[pa.Table, Sequence[str], Mapping[str, Any]], pa.Table]
Scan = Callable[[str, int | None, Sequence[str] | None], pa.RecordBatchReader]
Sql = Callable[[str], pa.RecordBatchReader]


@dataclass(frozen=True, slots=True)
class BulkReads:
    """What a Flight server answers with; `None`: it does not offer that.

    Attributes:
        historical: A spine chunk and features to their table, one row per spine row, in its order.
        scan: A dataset's rows by name, version (`None`: newest) and columns (`None`: all).
        sql: A read-only query over the datasets.
        names: The datasets there are.
    """

    historical: Historical | None = None
    scan: Scan | None = None
    sql: Sql | None = None
    names: Callable[[], Sequence[str]] = tuple


class FlightFront:
    """A running Flight server; a context manager that stops it.

    Attributes:
        address: `host:port`.
    """

    def __init__(self, reads: BulkReads, config: ServerConfig, *, chunk_rows: int = 131_072) -> None:
        """Listen and serve from threads of this process.

        Args:
            chunk_rows: How many spine rows are joined at a time; a chunk costs one read of the sources.

        Raises:
            ServerError: the port is taken.
        """
        config = check_config(config)
        scheme, options = "grpc+tcp", dict[str, Any]()
        if config.tls is not None:
            key, certificate, authority = Certificates(config.tls).read()
            scheme, options = "grpc+tls", {"tls_certificates": [(certificate, key)]}
            if authority is not None:
                options |= {"verify_client": True, "root_certificates": authority}
        access = Access(config, SystemClock())
        try:
            self._server = _Server(
                f"{scheme}://{config.host}:{config.port}",
                reads=reads,
                chunk_rows=chunk_rows,
                middleware={"access": _Guard(access)},
                **options,
            )
        except (OSError, pa.ArrowException) as error:
            raise ServerError(f"cannot listen on {config.host}:{config.port}", hint=str(error)) from error
        self.address = f"{config.host}:{self._server.port}"
        self._thread = threading.Thread(target=self._server.serve, daemon=True, name="flight")
        self._thread.start()

    def stop(self) -> None:
        """Finish the calls under way and stop."""
        self._server.shutdown()
        self._thread.join()

    def __enter__(self) -> "FlightFront":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def serve_flight(
    reads: BulkReads,
    *,
    address: str = "127.0.0.1:0",
    tls: Tls | None = None,
    tokens: tuple[Token, ...] = (),
    allow_insecure: bool = False,
    chunk_rows: int = 131_072,
) -> FlightFront:
    """Serve bulk reads from threads of this process.

    Raises:
        ServerError: the port is taken.
        DefinitionError: it would listen beyond loopback without TLS.
    """
    host, port = split_address(address)
    config = ServerConfig(
        root="", host=host, port=port, tls=tls, tokens=tokens, allow_insecure=allow_insecure
    )
    return FlightFront(reads, config, chunk_rows=chunk_rows)


class _Guard(fl.ServerMiddlewareFactory):  # type: ignore[misc] # pyarrow has no stubs
    """Finds out who calls before any method runs."""

    def __init__(self, access: Access) -> None:
        super().__init__()
        self._access = access

    def start_call(self, info: Any, headers: Mapping[str, Sequence[str]]) -> Any:
        del info
        pairs = [(name.lower(), value) for name, values in headers.items() for value in values]
        try:
            return _Known(self._access.caller(lambda: pairs))
        except AccessDeniedError as error:
            raise fl.FlightUnauthenticatedError(error.message) from error


class _Known(fl.ServerMiddleware):  # type: ignore[misc] # pyarrow has no stubs
    def __init__(self, caller: Caller) -> None:
        super().__init__()
        self.caller = caller


class _Server(fl.FlightServerBase):  # type: ignore[misc] # pyarrow has no stubs
    def __init__(self, location: str, *, reads: BulkReads, chunk_rows: int, **options: Any) -> None:
        super().__init__(location, **options)
        self._reads = reads
        self._chunk_rows = chunk_rows

    def list_flights(self, context: Any, criteria: bytes) -> Iterator[Any]:
        """Yield the datasets."""
        del criteria
        _check(context)
        for name in self._reads.names():
            descriptor = fl.FlightDescriptor.for_path(name)
            ticket = fl.Ticket(json.dumps({"dataset": name}).encode())
            yield fl.FlightInfo(pa.schema([]), descriptor, [fl.FlightEndpoint(ticket, [])], -1, -1)

    def list_actions(self, context: Any) -> list[Any]:
        """Return no actions: everything here is a flight."""
        _check(context)
        return []

    def do_get(self, context: Any, ticket: Any) -> Any:
        """Stream a dataset, or the answer of a query.

        Raises:
            DefinitionError: the ticket names neither.
        """
        caller = _check(context)
        with _Told():
            asked = _json(ticket.ticket)
            name = asked.get("dataset")
            if isinstance(name, str):
                caller.check("read", [name])
                return fl.RecordBatchStream(self._scan(name, asked))
            if isinstance(asked.get("sql"), str):
                if caller.views is not None:
                    caller.check("admin")  # a query may read any dataset
                return fl.RecordBatchStream(_offered(self._reads.sql, "SQL")(asked["sql"]))
            raise DefinitionError('a ticket is {"dataset": name, "version": n} or {"sql": text}')

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Answer a spine with its historical features, chunk after chunk.

        Raises:
            DefinitionError: the command names no features.
        """
        caller = _check(context)
        with _Told():
            asked = _json(descriptor.command or b"{}")
            features = asked.pop("features", None)
            if not isinstance(features, list) or not all(isinstance(f, str) for f in features):
                raise DefinitionError('the command is {"features": ["view:feature", …]}')
            caller.check("read", [f.partition(":")[0].partition("@")[0] for f in features])
            join = _offered(self._reads.historical, "historical reads")
            begun = False
            for spine in _chunks(reader, self._chunk_rows):
                found = join(spine, features, asked)
                if not begun:
                    writer.begin(found.schema)
                    begun = True
                writer.write_table(found)

    def _scan(self, name: str, asked: Mapping[str, Any]) -> pa.RecordBatchReader:
        version, columns = asked.get("version"), asked.get("columns")
        if not isinstance(version, (int, type(None))) or not isinstance(columns, (list, type(None))):
            raise DefinitionError("version is a number, columns a list")
        return _offered(self._reads.scan, "datasets")(name, version, columns)


def _chunks(reader: Any, chunk_rows: int) -> Iterator[pa.Table]:
    """Yield the spine in chunks of about `chunk_rows` rows; at least one, also of no rows."""
    batches: list[pa.RecordBatch] = []
    schema, pending, sent = reader.schema, 0, False
    for part in reader:
        part.data.validate(full=True)
        batches.append(part.data)
        pending += part.data.num_rows
        if pending >= chunk_rows:
            yield _aligned(pa.Table.from_batches(batches, schema))
            batches, pending, sent = [], 0, True
    if batches or not sent:
        yield _aligned(pa.Table.from_batches(batches, schema))


def _aligned(table: pa.Table) -> pa.Table:
    """Return a received table copied to where kernels want it: inside a message columns begin anywhere."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    options = pa.ipc.IpcReadOptions(ensure_alignment=pa.ipc.Alignment.DataTypeSpecific)
    with pa.ipc.open_stream(sink.getvalue(), options=options) as stream:
        return stream.read_all()


def _check(context: Any) -> Caller:
    known = context.get_middleware("access")
    caller: Caller = ANYONE if known is None else known.caller
    return caller


def _offered(found: Callable[..., Any] | None, what: str) -> Callable[..., Any]:
    if found is None:
        raise NotFoundError(f"this server offers no {what}")
    return found


def _json(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DefinitionError(f"not JSON: {str(error)[:200]}", hint="send a JSON object") from error
    if not isinstance(found, dict):
        raise DefinitionError("not a JSON object", hint="send a JSON object")
    return found


class _Told:
    """Turns our errors into Flight's; their kind goes first, so that a client can tell.

    Arrow sends the traceback of what it is given, causes included, to the client: so there are no causes.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, FeatureStoreError):
            return
        text = f"{type(error).__name__}: {error.message}" + (f"; {error.hint}" if error.hint else "")
        if isinstance(error, AccessDeniedError):
            raise fl.FlightUnauthorizedError(text) from None
        if isinstance(error, NotFoundError):
            raise pa.lib.ArrowKeyError(text) from None
        if isinstance(error, (ValueError, TypeError)):
            raise pa.ArrowInvalid(text) from None
        raise fl.FlightServerError(text) from None
