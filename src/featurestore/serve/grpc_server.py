"""The gRPC front: one asyncio server per worker process, health and reflection beside it.

The only file that imports the gRPC server library. Handlers take and give bytes; calls that read are answered
on the event loop, because a lookup takes microseconds; pushes wait for their commit off it.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

try:
    import grpc
    from google.protobuf import descriptor_pool
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_health.v1.health import aio as health_aio  # type: ignore[attr-defined] # not in its stubs
    from grpc_reflection.v1alpha import reflection_pb2_grpc
    from grpc_reflection.v1alpha.reflection import ReflectionServicer
except ImportError as missing:
    from featurestore.errors import MissingDependencyError

    raise MissingDependencyError(
        f"the gRPC server needs {missing.name}", hint="pip install 'featurestore[serve]'"
    ) from missing

from featurestore.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    CommitConflictError,
    DefinitionError,
    ExpressionError,
    FeatureStoreError,
    LimitError,
    MissingDependencyError,
    NotFoundError,
    OnlineStoreError,
    OnlineStoreTimeoutError,
    SchemaError,
    ServerError,
    TimeOverflowError,
)
from featurestore.serve.access import Access, Caller
from featurestore.serve.call_log import CallLog
from featurestore.serve.config import ServerConfig
from featurestore.serve.feast_service import FeastService
from featurestore.serve.proto import online_pb2
from featurestore.serve.service import OnlineService
from featurestore.serve.write_threads import WriteThreads

SERVICE: Final = "featurestore.v1.OnlineService"
_STREAM: Final = f"{SERVICE}/StreamOnlineFeatures"
_CODES: Final = (
    (NotFoundError, grpc.StatusCode.NOT_FOUND),
    (LimitError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (AccessDeniedError, grpc.StatusCode.PERMISSION_DENIED),
    ((SchemaError, DefinitionError, ExpressionError, TimeOverflowError), grpc.StatusCode.INVALID_ARGUMENT),
    (AlreadyExistsError, grpc.StatusCode.ALREADY_EXISTS),
    (CommitConflictError, grpc.StatusCode.ABORTED),
    (OnlineStoreTimeoutError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (OnlineStoreError, grpc.StatusCode.UNAVAILABLE),
)
Unary = Callable[[bytes, Caller], bytes]


def status_of(error: FeatureStoreError) -> grpc.StatusCode:
    """Return the gRPC status that says what an error says."""
    if isinstance(error, AccessDeniedError) and error.context.get("unknown"):
        return grpc.StatusCode.UNAUTHENTICATED
    for kinds, code in _CODES:
        if isinstance(error, kinds):
            return code
    return grpc.StatusCode.INTERNAL


class GrpcServer:
    """One worker's server.

    Attributes:
        port: Where it listens.
    """

    def __init__(
        self, service: OnlineService, config: ServerConfig, access: Access, threads: WriteThreads
    ) -> None:
        """Register the handlers; `start` listens."""
        self._config = config
        self._access = access
        self._log = CallLog() if config.log_calls else None
        self._metrics = service.metrics
        self._service = service
        self._threads = threads
        limits = config.limits
        self._server: Any = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limits.message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", limits.streams),
                ("grpc.max_metadata_size", 16 << 10),
                ("grpc.so_reuseport", 1),
                ("grpc.http2.max_ping_strikes", 4),
            ],
            maximum_concurrent_rpcs=limits.concurrent,
        )
        self._health = health_aio.HealthServicer()
        self.port = 0
        self._register()

    async def start(self) -> int:
        """Listen and serve; returns the port.

        Raises:
            ServerError: the port is taken, or a certificate cannot be used.
        """
        address = f"{self._config.host}:{self._config.port}"
        try:
            if self._config.tls is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, _credentials(self._config))
        except (RuntimeError, OSError, ValueError) as error:
            raise ServerError(f"cannot listen on {address}", hint=str(error), address=address) from error
        await self._server.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        return int(self.port)

    async def drain(self) -> None:
        """Turn health to NOT_SERVING, let callers notice, finish calls under way, then stop."""
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(self._config.linger_s)
        await self._server.stop(self._config.drain_s)

    async def _set_health(self, status: Any) -> None:
        for name in ("", SERVICE):
            await self._health.set(name, status)

    def _register(self) -> None:
        service = self._service
        handlers = {
            SERVICE: {
                "GetOnlineFeatures": self._unary(SERVICE, "GetOnlineFeatures", service.get_online_features),
                "Push": self._unary(SERVICE, "Push", service.push, blocking=True),
                "ListFeatures": self._unary(SERVICE, "ListFeatures", service.list_features),
                "StreamOnlineFeatures": grpc.stream_stream_rpc_method_handler(self._stream),
            },
        }
        feast = FeastService(service).methods()
        for path, methods in feast.items():
            handlers[path] = {
                name: self._unary(path, name, method, blocking=blocking)
                for name, (method, blocking) in methods.items()
            }
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(path, methods) for path, methods in handlers.items()]
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        # A pool of its own: another library's messages of the same names are no concern of ours.
        pool = descriptor_pool.DescriptorPool()
        pool.AddSerializedFile(online_pb2.DESCRIPTOR.serialized_pb)
        pool.AddSerializedFile(health_pb2.DESCRIPTOR.serialized_pb)
        names = [SERVICE, "grpc.health.v1.Health", *feast]
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            ReflectionServicer(names, pool), self._server
        )

    def _unary(self, service: str, name: str, method: Unary, *, blocking: bool = False) -> Any:
        metrics, access, log, tracing = self._metrics, self._access, self._log, self._service.tracing
        path = f"{service}/{name}"

        async def call(request: bytes, context: Any) -> bytes:
            started = metrics.begin()
            status = "OK"
            with tracing.call(path, context.invocation_metadata):
                try:
                    left_s = self._left_s(context)
                    caller = access.caller(context.invocation_metadata)
                    if blocking:
                        return await self._threads.run(left_s, method, request, caller)
                    return method(request, caller)
                except FeatureStoreError as error:
                    status = type(error).__name__
                    tracing.failed(status, status_of(error).name)
                    await _abort(context, error)
                    raise
                finally:
                    taken_s = metrics.end(name, started, status)
                    if log is not None:
                        log.call(name, status, taken_s, len(request))

        return grpc.unary_unary_rpc_method_handler(call)

    def _left_s(self, context: Any) -> float:
        """Return how long the call may still take; the server's own bound where the caller set none.

        Raises:
            OnlineStoreTimeoutError: its deadline has passed, so that no one waits for the answer.
        """
        remaining = context.time_remaining()
        if remaining is not None and remaining <= 0:
            raise OnlineStoreTimeoutError("the deadline passed before the call began")
        bound = self._config.limits.deadline_s
        return bound if remaining is None else min(remaining, bound)

    async def _stream(self, requests: object, context: Any) -> None:
        """Answer requests as they come; awaiting read and write costs less than iterating.

        Raises:
            FeatureStoreError: never; the first one ends the stream with its status.
        """
        del requests
        answer: Unary = self._service.get_online_features
        metrics, tracing = self._metrics, self._service.tracing
        try:
            caller = self._access.caller(context.invocation_metadata)
        except FeatureStoreError as error:
            metrics.count("StreamOnlineFeatures", type(error).__name__)
            await _abort(context, error)
            return
        try:
            end: Any = grpc.aio.EOF  # type: ignore[attr-defined] # not in its stubs
            while (request := await context.read()) is not end:
                started, status = metrics.begin(), "OK"
                with tracing.call(_STREAM, context.invocation_metadata):
                    try:
                        out = answer(request, caller)
                    except FeatureStoreError as error:
                        status = type(error).__name__
                        tracing.failed(status, status_of(error).name)
                        raise
                    finally:
                        metrics.end("StreamOnlineFeatures", started, status)
                try:
                    await context.write(out)
                except grpc.aio.InternalError:
                    return  # the caller left before its answer: there is nobody to tell
        except FeatureStoreError as error:
            await _abort(context, error)


async def _abort(context: Any, error: FeatureStoreError) -> None:
    text = f"{error.message}; {error.hint}" if error.hint else error.message
    trailing = [("featurestore-error", type(error).__name__)]
    if error.retryable:
        trailing.append(("grpc-retry-pushback-ms", "100"))
    await context.abort(status_of(error), text[:2000], tuple(trailing))


def _credentials(config: ServerConfig) -> Any:
    """Make credentials whose files are looked at again for each new connection."""
    tls = config.tls
    assert tls is not None  # noqa: S101 -- the caller's branch
    from featurestore.serve.certificates import Certificates  # noqa: PLC0415 -- only where TLS is used

    files = Certificates(tls)

    def fetch() -> Any:
        pair = files.changed()
        return None if pair is None else _configuration(*pair)

    first = files.read()
    return grpc.dynamic_ssl_server_credentials(
        _configuration(*first), fetch, require_client_authentication=tls.client_ca is not None
    )


def _configuration(key: bytes, certificate: bytes, client_ca: bytes | None) -> Any:
    return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=client_ca)
