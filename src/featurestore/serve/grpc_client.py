"""OnlineClient: the typed Python client of the native protocol.

The only file that imports the gRPC client library. Reads are retried where the server was not reached or
asked to wait; a push is retried only when it is numbered, because then the server applies it once.
"""

import itertools
from collections.abc import Generator, Iterable, Sequence
from types import TracebackType
from typing import Any, Final

import pyarrow as pa

try:
    import google.protobuf  # noqa: F401 -- found missing here, by name, and not later
    import grpc
except ImportError as missing:
    from featurestore.errors import MissingDependencyError

    raise MissingDependencyError(
        f"the gRPC client needs {missing.name}", hint="pip install 'featurestore[serve]'"
    ) from missing

import featurestore.errors as errors_module
from featurestore.catalog.training_set import KeyMap
from featurestore.core.arguments import text, whole
from featurestore.core.canonical import canonical_json
from featurestore.core.time import Instant, instant_ns
from featurestore.errors import (
    AccessDeniedError,
    DefinitionError,
    FeatureStoreError,
    LimitError,
    NotFoundError,
    OnlineStoreError,
    OnlineStoreTimeoutError,
    ServerError,
)
from featurestore.serve.client_messages import ClientResponse, Question, SchemaCache, write_request
from featurestore.serve.client_stream import RequestStream
from featurestore.serve.proto import online_pb2 as pb
from featurestore.serve.request import EntityRows, key_mapping, read_entity_rows
from featurestore.temporal.tables import read_table

_PATH: Final = "/featurestore.v1.OnlineService/"
_BY_STATUS: Final = {
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.INVALID_ARGUMENT: DefinitionError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LimitError,
    grpc.StatusCode.UNAUTHENTICATED: AccessDeniedError,
    grpc.StatusCode.PERMISSION_DENIED: AccessDeniedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: OnlineStoreTimeoutError,
    grpc.StatusCode.UNAVAILABLE: OnlineStoreError,
    # Not by us: a server that stops gives back the calls it had not begun.
    grpc.StatusCode.CANCELLED: OnlineStoreError,
}


class OnlineClient:
    """A client of one server address; threads may share it.

    The kernel hands connections, not calls, to the server's workers: with several channels the calls of one
    client spread over them.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        timeout_s: float = 5.0,
        channels: int = 1,
        retries: int = 3,
        root_certificates: bytes | None = None,
        private_key: bytes | None = None,
        certificate: bytes | None = None,
        max_message_bytes: int = 256 << 20,
    ) -> None:
        """Open channels; they connect at the first call.

        Args:
            token: A bearer token; needs TLS unless the server is on this machine.
            timeout_s: The deadline of each call, retries included.
            channels: How many connections to keep.
            root_certificates: PEM of the server's authority; given, the client speaks TLS.
            private_key: With `certificate`, what the client shows a server that wants mutual TLS.

        Raises:
            DefinitionError: an address that is no text, or no channel.
        """
        text("a client", "address", address)
        self._timeout_s = timeout_s
        self._metadata = None if token is None else (("authorization", f"Bearer {token}"),)
        options = _options(retries, max_message_bytes)
        secure = None
        if root_certificates is not None:
            secure = grpc.ssl_channel_credentials(root_certificates, private_key, certificate)
        self._channels: list[Any] = [
            grpc.insecure_channel(address, options)
            if secure is None
            else grpc.secure_channel(address, secure, options)
            for _ in range(whole("a client", "channels", channels, least=1))
        ]
        self._reads = itertools.cycle([c.unary_unary(_PATH + "GetOnlineFeatures") for c in self._channels])
        self._schemas = SchemaCache()

    def get_online_features(
        self,
        features: str | Sequence[str],
        entity_rows: EntityRows,
        *,
        now: Instant | None = None,
        full_feature_names: bool = False,
        key_map: KeyMap | None = None,
        preprocessing: str | None = None,
        arrow: bool = False,
        timeout_s: float | None = None,
    ) -> ClientResponse:
        """Return features as a training row at this very instant would have them.

        Args:
            features: References in order, or the name of a feature service or of a training set.
            now: The readers' instant; by default the server's clock.
            key_map: As for training: join key → entity column, or alias → join key → entity column.
            preprocessing: `dataset@version[:name]`: what was fitted there is applied to its columns.
            arrow: Whether the whole answer travels as one Arrow batch.

        Raises:
            NotFoundError: an unknown view, feature, service or version.
            SchemaError: a key column is missing or of the wrong kind.
            OnlineStoreTimeoutError: no answer before the deadline.
            OnlineStoreError: the server cannot be reached.
        """
        readers = read_entity_rows(entity_rows)
        question = Question(
            features if isinstance(features, str) else tuple(features),
            None if now is None else instant_ns(now, what="now"),
            full_feature_names,
            key_mapping(key_map),
            preprocessing or "",
            arrow,
        )
        name = question.name(readers.columns)
        request = write_request(question, readers, self._schemas.id_of(name))
        data = self._call(next(self._reads), request, timeout_s)
        return ClientResponse(readers, self._schemas.received(name, readers.rows, data, arrow=arrow))

    def stream(
        self,
        features: str | Sequence[str],
        entity_rows: Iterable[EntityRows],
        *,
        now: Instant | None = None,
        key_map: KeyMap | None = None,
        preprocessing: str | None = None,
        pack: int = 64,
    ) -> Generator[ClientResponse, None, None]:
        """Ask again and again over one open stream; answers come in the order of `entity_rows`.

        Requests that wait when a message is sent travel in it together, so that a stream of many small ones
        costs a fraction of as many calls; a lone one is sent at once.

        Args:
            entity_rows: One element per request; it is taken from ahead of the answers, on another thread.
            pack: The most requests in one message; 1 sends each alone.

        Raises:
            FeatureStoreError: the first request that fails ends the stream, with those it travelled with.
        """
        question = Question(
            features if isinstance(features, str) else tuple(features),
            None if now is None else instant_ns(now, what="now"),
            key_map=key_mapping(key_map),
            preprocessing=preprocessing or "",
        )
        feed = RequestStream(question, entity_rows, self._schemas, pack=pack)
        call = self._channels[0].stream_stream(_PATH + "StreamOnlineFeatures")(
            iter(feed), metadata=self._metadata
        )
        try:
            for data in call:
                yield from feed.answers(data)
        except grpc.RpcError as error:
            failure = _typed(error)
            raise failure from error
        finally:
            call.cancel()
            feed.close()
        if feed.failure is not None:
            raise feed.failure

    def push(
        self,
        source: str,
        rows: Any,
        *,
        producer: str = "",
        sequence: int = 0,
        timeout_s: float | None = None,
    ) -> pb.PushResponse:
        """Send rows of a source to every online view over it; durable when this returns.

        Args:
            rows: An Arrow table, or anything that speaks the Arrow PyCapsule protocol.
            producer: With `sequence`, numbers deliveries: each is applied once, however often it is sent.

        Raises:
            NotFoundError: no such source.
            SchemaError: the rows do not fit it.
            OnlineStoreError: the server cannot be reached.
        """
        table = read_table(rows, f"data for {source!r}")
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        request = pb.PushRequest(
            source=source, rows=sink.getvalue().to_pybytes(), producer=producer, sequence=sequence
        )
        call = self._channels[0].unary_unary(_PATH + "Push")
        left = 2 if producer else 0
        while True:
            try:
                return pb.PushResponse.FromString(self._call(call, request.SerializeToString(), timeout_s))
            except OnlineStoreError:
                if not left:
                    raise
                left -= 1

    def list_features(self) -> pb.ListFeaturesResponse:
        """Return what can be asked for."""
        call = self._channels[0].unary_unary(_PATH + "ListFeatures")
        return pb.ListFeaturesResponse.FromString(self._call(call, b"", None))

    def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> "OnlineClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, call: Any, request: bytes, timeout_s: float | None) -> bytes:
        try:
            data: bytes = call(request, timeout=timeout_s or self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            failure = _typed(error)
            raise failure from error
        return data


def _options(retries: int, max_message_bytes: int) -> list[tuple[str, Any]]:
    policy = {
        "maxAttempts": retries + 1,
        "initialBackoff": "0.02s",
        "maxBackoff": "0.5s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
    }
    name = {"service": "featurestore.v1.OnlineService"}
    reads = [{**name, "method": m} for m in ("GetOnlineFeatures", "ListFeatures")]
    config = {"methodConfig": [{"name": reads, "retryPolicy": policy}] if retries > 0 else []}
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 1),
        ("grpc.service_config", canonical_json(config)),
    ]


def _typed(error: grpc.RpcError) -> FeatureStoreError:
    """Return the error that the server raised, or the one its status stands for."""
    code, details = error.code(), error.details() or ""
    message, _, hint = details.partition("; ")
    trailing: Iterable[Any] = error.trailing_metadata() or ()
    for key, value in trailing:
        kind = getattr(errors_module, str(value), None) if key == "featurestore-error" else None
        if isinstance(kind, type) and issubclass(kind, FeatureStoreError):
            return kind(message, hint=hint)
    return _BY_STATUS.get(code, ServerError)(f"{code.name}: {message}", hint=hint)
