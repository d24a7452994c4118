"""Traces through OpenTelemetry: the only file that imports it.

The exporter, the sampler, the resource and the propagators are those of the OTEL_* environment variables.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any, Final

try:
    from opentelemetry import propagate, trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import SpanKind, Status, StatusCode
except ImportError as missing:
    from featurestore.errors import MissingDependencyError

    raise MissingDependencyError(
        f"tracing needs {missing.name}", hint="pip install 'featurestore[otel]'"
    ) from missing

from featurestore.core.names import near
from featurestore.errors import DefinitionError, MissingDependencyError
from featurestore.serve.tracing import Headers

_GROUP: Final = "opentelemetry_traces_exporter"
_EXPORTERS: Final = {
    "otlp": "opentelemetry-exporter-otlp",
    "otlp_proto_grpc": "opentelemetry-exporter-otlp-proto-grpc",
    "otlp_proto_http": "opentelemetry-exporter-otlp-proto-http",
    "zipkin": "opentelemetry-exporter-zipkin",
}


class OpenTelemetryTracing:
    """`Tracing` over a tracer provider."""

    def __init__(self, provider: TracerProvider) -> None:
        """Take a provider, which this closes."""
        self._provider = provider
        self._tracer = provider.get_tracer("featurestore.serve")

    @contextmanager
    def call(self, name: str, headers: Headers) -> Iterator[object]:
        """Open the span of a call; the context comes from `traceparent`, or what OTEL_PROPAGATORS says."""
        # A header that is no text, or comes twice, is no trace context: the first text counts.
        carrier: dict[str, str] = {}
        for key, value in headers():
            if isinstance(value, str):
                carrier.setdefault(key, value)
        with self._tracer.start_as_current_span(
            name,
            context=propagate.extract(carrier),
            kind=SpanKind.SERVER,
            attributes=_named(name),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield span

    @contextmanager
    def stage(self, name: str) -> Iterator[object]:
        """Open the span of a part of the call under way."""
        with self._tracer.start_as_current_span(
            name, record_exception=False, set_status_on_exception=False
        ) as span:
            yield span

    def note(self, **attributes: str | int | tuple[str, ...]) -> None:
        """Write attributes `featurestore.*` on the span under way."""
        span = trace.get_current_span()
        if span.is_recording():
            span.set_attributes({f"featurestore.{name}": value for name, value in attributes.items()})

    def failed(self, error: str, status: str) -> None:
        """Mark the span under way as failed."""
        span = trace.get_current_span()
        if span.is_recording():
            span.set_attributes({"error.type": error, "featurestore.status": status})
            span.set_status(Status(StatusCode.ERROR, error))

    def close(self) -> None:
        """Export what is pending and stop."""
        self._provider.shutdown()


def open_tracing() -> OpenTelemetryTracing:
    """Open what the environment names: OTEL_TRACES_EXPORTER (`otlp` where it is unset), comma-separated.

    OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_BSP_* and OTEL_EXPORTER_* are read
    by the SDK and the exporters.

    Raises:
        DefinitionError: an exporter that nothing installed offers.
        MissingDependencyError: a known exporter that is not installed.
    """
    resource = Resource.create()
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "featurestore"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    names = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    for name in [part.strip() for part in names.split(",")]:
        if name != "none":
            provider.add_span_processor(BatchSpanProcessor(_exporter(name)()))
    return OpenTelemetryTracing(provider)


def _exporter(name: str) -> Any:
    offered = {point.name: point for point in entry_points(group=_GROUP)}
    if name in offered:
        return offered[name].load()
    if name in _EXPORTERS:
        raise MissingDependencyError(
            f"OTEL_TRACES_EXPORTER is {name!r}, which is not installed",
            hint=f"pip install {_EXPORTERS[name]}, or set OTEL_TRACES_EXPORTER to one of "
            + ", ".join(sorted({*offered, "none"})),
        )
    raise DefinitionError(f"OTEL_TRACES_EXPORTER is {name!r}", hint=near(name, [*offered, "none"]))


def _named(name: str) -> dict[str, str]:
    """Return the standard attributes that a call's name gives."""
    method, space, path = name.partition(" ")
    if space:
        return {"http.request.method": method, "url.path": path}
    service, _, verb = name.rpartition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": verb}
