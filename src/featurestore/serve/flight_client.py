"""BulkClient: datasets, queries and historical features over Arrow Flight."""

import json
import re
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Final

import pyarrow as pa

try:
    import pyarrow.flight as fl
except ImportError as missing:
    from featurestore.errors import MissingDependencyError

    raise MissingDependencyError(
        "this build of pyarrow has no Arrow Flight", hint="pip install pyarrow, from a wheel"
    ) from missing

import featurestore.errors as errors_module
from featurestore.errors import AccessDeniedError, FeatureStoreError, ServerError
from featurestore.serve.config import split_address

_NAMED: Final = re.compile(r"([A-Z]\w+Error): (.*?)(?:; (.*?))?(?:\. (?:Detail|gRPC)|$)", re.DOTALL)


class BulkClient:
    """A client of a Flight front."""

    def __init__(
        self, address: str, *, token: str | None = None, root_certificates: bytes | None = None
    ) -> None:
        """Connect.

        Args:
            root_certificates: PEM of the server's authority; given, the client speaks TLS.

        Raises:
            DefinitionError: the address is not host:port.
        """
        split_address(address)
        scheme = "grpc+tcp" if root_certificates is None else "grpc+tls"
        options = {} if root_certificates is None else {"tls_root_certs": root_certificates}
        self._client = fl.FlightClient(f"{scheme}://{address}", **options)
        headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode())]
        self._options = fl.FlightCallOptions(headers=headers)

    def dataset(
        self, name: str, version: int | None = None, columns: Sequence[str] | None = None
    ) -> pa.RecordBatchReader:
        """Stream a dataset's rows.

        Raises:
            NotFoundError: no such dataset or version.
        """
        ticket = {"dataset": name, "version": version, "columns": None if columns is None else list(columns)}
        return self._get(ticket)

    def sql(self, text: str) -> pa.RecordBatchReader:
        """Stream the answer of a read-only query over the datasets."""
        return self._get({"sql": text})

    def historical(
        self, spine: pa.Table | pa.RecordBatchReader, features: Sequence[str], **options: Any
    ) -> pa.RecordBatchReader:
        """Stream a spine there and its features back; neither side holds the whole.

        Args:
            spine: Rows with keys and the time column `event_timestamp`.
        """
        reader = spine.to_reader() if isinstance(spine, pa.Table) else spine
        command = json.dumps({"features": list(features), **options}).encode()
        descriptor = fl.FlightDescriptor.for_command(command)
        try:
            writer, answer = self._client.do_exchange(descriptor, self._options)
            writer.begin(reader.schema)
        except (pa.ArrowException, KeyError) as error:
            failure = _typed(error)
            raise failure from error
        threading.Thread(target=_send, args=(writer, reader), daemon=True).start()
        return _typed_reader(answer, held=writer)

    def datasets(self) -> list[str]:
        """Return the names of the datasets there are."""
        try:
            found = list(self._client.list_flights(b"", self._options))
        except pa.ArrowException as error:
            failure = _typed(error)
            raise failure from error
        return [info.descriptor.path[0].decode() for info in found]

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> "BulkClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _get(self, ticket: dict[str, Any]) -> pa.RecordBatchReader:
        try:
            reader = self._client.do_get(fl.Ticket(json.dumps(ticket).encode()), self._options)
        except (pa.ArrowException, KeyError) as error:
            failure = _typed(error)
            raise failure from error
        return _typed_reader(reader)


def _typed_reader(reader: Any, held: object = None) -> pa.RecordBatchReader:
    """Return a stream whose errors are ours; its schema comes with the first message.

    Args:
        held: Lives as long as the stream: a writer that goes away ends the call for both sides.
    """
    try:
        schema = reader.schema
    except (pa.ArrowException, KeyError) as error:
        failure = _typed(error)
        raise failure from error

    def batches(writer: object) -> Iterator[pa.RecordBatch]:
        try:
            for part in reader:
                yield part.data
        except (pa.ArrowException, KeyError) as error:
            failure = _typed(error)
            raise failure from error
        finally:
            del writer

    return pa.RecordBatchReader.from_batches(schema, batches(held))


def _send(writer: Any, batches: pa.RecordBatchReader) -> None:
    try:
        for batch in batches:
            writer.write_batch(batch)
        writer.done_writing()
    except pa.ArrowException:
        return  # the reading side has the server's reason


def _typed(error: Exception) -> FeatureStoreError:
    match = _NAMED.search(str(error).strip("'"))
    kind = None if match is None else getattr(errors_module, match[1], None)
    if match is not None and isinstance(kind, type) and issubclass(kind, FeatureStoreError):
        return kind(match[2], hint=match[3] or "")
    if isinstance(error, (fl.FlightUnauthenticatedError, fl.FlightUnauthorizedError)):
        return AccessDeniedError(str(error))
    return ServerError(f"the Flight call failed: {error}")
