"""Traces: one span per call with its parts below it, joined to the caller's own, without keys and values."""

import asyncio
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.serve.conftest import NOW, OPENER
from tests.serve.house import backend_at, plain_channel, quotes

from featurestore.core.clock import SystemClock
from featurestore.errors import NotFoundError, ServerError
from featurestore.serve.access import Access
from featurestore.serve.config import ServerConfig
from featurestore.serve.grpc_client import OnlineClient
from featurestore.serve.grpc_server import GrpcServer
from featurestore.serve.http_server import HttpServer
from featurestore.serve.metrics import Metrics
from featurestore.serve.opentelemetry_tracing import OpenTelemetryTracing
from featurestore.serve.proto import online_pb2 as pb
from featurestore.serve.server import serve
from featurestore.serve.service import OnlineService
from featurestore.serve.write_threads import WriteThreads

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
SECRET = "SECRET-KEY"  # noqa: S105 -- an entity key
READ = "featurestore.v1.OnlineService/GetOnlineFeatures"


class Traced:
    """Both fronts in this process, and the spans that they make."""

    def __init__(self, folder: Path) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        config = ServerConfig(root="", http_port=0)
        backend = backend_at(folder, now_ns=NOW)
        metrics = Metrics()
        service = OnlineService(backend, config.limits, metrics, tracing=OpenTelemetryTracing(provider))
        access, threads = Access(config, SystemClock()), WriteThreads(metrics)
        self._fronts = (service, config, access, threads)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port, self.http_port = self._run(self._start())

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _start(self) -> tuple[int, int]:
        self._grpc, self._http = GrpcServer(*self._fronts), HttpServer(*self._fronts)
        return await self._grpc.start(), await self._http.start()

    async def _stop(self) -> None:
        await self._grpc.drain()
        await self._http.stop()

    def spans(self) -> Sequence[ReadableSpan]:
        """Return what was traced since the last time, oldest first.

        A server's span ends just after its caller has the answer: those of its parts are there before it.
        """
        deadline = time.monotonic() + 10
        while not whole(self.exporter.get_finished_spans()) and time.monotonic() < deadline:
            time.sleep(0.01)
        found = sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)
        self.exporter.clear()
        return found

    def close(self) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        service, _, _, threads = self._fronts
        threads.close()
        service.tracing.close()
        service.backend.close()


@contextmanager
def opened(folder: Path) -> Iterator[Traced]:
    traced = Traced(folder)
    try:
        yield traced
    finally:
        traced.close()


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    with opened(tmp_path_factory.mktemp("online")) as found:
        with OnlineClient(f"127.0.0.1:{found.port}") as client:
            client.push("quotes", quotes([{"symbol": SECRET, "ts": 990, "bid": 42.125, "ask": 1.0}]))
        yield found


@pytest.fixture
def fresh(traced: Traced) -> Traced:
    traced.spans()
    return traced


def request(*features: str) -> bytes:
    return pb.GetOnlineFeaturesRequest(
        features=features, entities=[pb.EntityColumn(name="symbol", strings=[SECRET])]
    ).SerializeToString()


def whole(spans: Sequence[ReadableSpan]) -> bool:
    ids = {span.context.span_id for span in spans if span.context}
    return all(s.parent is None or s.parent.is_remote or s.parent.span_id in ids for s in spans)


def names(spans: Sequence[ReadableSpan]) -> list[str]:
    return [span.name for span in spans]


def test_a_read_is_a_span_under_the_callers_with_its_four_parts_below(fresh: Traced) -> None:
    with plain_channel(f"127.0.0.1:{fresh.port}") as channel:
        channel.unary_unary(f"/{READ}")(request("quote", "flow:n"), metadata=[("traceparent", PARENT)])
    call, *parts = fresh.spans()
    assert call.name == READ
    assert call.kind.name == "SERVER"
    assert call.parent is not None
    assert call.context is not None
    assert (f"{call.context.trace_id:032x}", f"{call.parent.span_id:016x}") == (TRACE, SPAN)
    assert names(parts) == ["decode", "read", "evaluate", "encode"]
    for part in parts:
        assert part.parent is not None
        assert part.parent.span_id == call.context.span_id
    assert call.attributes is not None
    assert (call.attributes["rpc.system"], call.attributes["rpc.method"]) == ("grpc", "GetOnlineFeatures")
    assert parts[3].attributes == {
        "featurestore.views": ("quote@1", "flow@1"),
        "featurestore.rows": 1,
        "featurestore.features": 6,
    }


def test_a_push_is_traced_into_its_thread(fresh: Traced) -> None:
    with OnlineClient(f"127.0.0.1:{fresh.port}") as client:
        client.push("quotes", quotes([{"symbol": SECRET, "ts": 991, "bid": 42.125}]))
    call, *parts = fresh.spans()
    assert call.name == "featurestore.v1.OnlineService/Push"
    assert names(parts) == ["decode", "write"]
    assert call.context is not None
    assert {part.parent and part.parent.span_id for part in parts} == {call.context.span_id}


def test_each_request_of_a_stream_is_a_span_of_its_own(fresh: Traced) -> None:
    with plain_channel(f"127.0.0.1:{fresh.port}") as channel:
        stream = channel.stream_stream("/featurestore.v1.OnlineService/StreamOnlineFeatures")
        answers = list(stream(iter([request("quote")] * 3), metadata=[("traceparent", PARENT)]))
    assert len(answers) == 3
    calls = [span for span in fresh.spans() if span.kind.name == "SERVER"]
    assert [f"{span.context.trace_id:032x}" for span in calls if span.context] == [TRACE] * 3


def test_http_is_traced_by_its_header(fresh: Traced) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", fresh.http_port, timeout=10)
    body = json.dumps({"features": ["quote:bid"], "entities": {"symbol": [SECRET]}})
    for path, status in (("/get-online-features", 200), (f"/{SECRET}", 404)):
        connection.request("POST", path, body, {"traceparent": PARENT})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
    connection.close()
    found = fresh.spans()
    assert names(found) == ["POST /get-online-features", "decode", "read", "evaluate", "encode", "HTTP"]
    assert {f"{span.context.trace_id:032x}" for span in found if span.context} == {TRACE}
    assert [span.status.status_code.name for span in found if span.kind.name == "SERVER"] == [
        "UNSET",
        "ERROR",
    ]


def test_a_failure_is_marked_by_its_type_and_quotes_nothing(fresh: Traced) -> None:
    with plain_channel(f"127.0.0.1:{fresh.port}") as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary(f"/{READ}")(request(f"quote:{SECRET}"))
    call, decode = fresh.spans()
    assert call.status.status_code.name == "ERROR"
    assert call.attributes is not None
    assert call.attributes["error.type"] in {"DefinitionError", "NotFoundError"}
    assert decode.name == "decode"
    assert not call.events


def test_no_span_holds_a_key_or_a_value(fresh: Traced) -> None:
    with OnlineClient(f"127.0.0.1:{fresh.port}") as client:
        client.push("quotes", quotes([{"symbol": SECRET, "ts": 992, "bid": 42.125}]))
        assert client.get_online_features(["quote:bid"], {"symbol": [SECRET]}).to_dict()["bid"] == [42.125]
        with pytest.raises(NotFoundError):
            client.get_online_features([f"quote_{SECRET.lower().replace('-', '_')}"], {"symbol": [SECRET]})
    text = "".join(span.to_json() for span in fresh.spans())
    assert SECRET not in text
    assert "42.125" not in text


def test_a_caller_that_does_not_sample_is_not_traced_and_noise_begins_a_trace(fresh: Traced) -> None:
    with plain_channel(f"127.0.0.1:{fresh.port}") as channel:
        read = channel.unary_unary(f"/{READ}")
        read(request("quote"), metadata=[("traceparent", PARENT.replace("-01", "-00"))])
        assert fresh.spans() == []
        for noise in ("", "00-zz-11-01", "x" * 4000, f"ff-{TRACE}-{SPAN}-01"):
            read(request("quote"), metadata=[("traceparent", noise)])
            call = fresh.spans()[0]
            assert call.parent is None


def test_a_worker_exports_as_the_environment_says(tmp_path: Path) -> None:
    program = (
        "from featurestore.serve.server import serve\n"
        "from featurestore.serve.grpc_client import OnlineClient\n"
        f"with serve({str(tmp_path)!r}, now={NOW}, opener={OPENER!r}, traces=True) as server:\n"
        "    with OnlineClient(server.address) as client:\n"
        "        client.get_online_features(['quote'], {'symbol': ['A']})\n"
    )
    environment = {"OTEL_TRACES_EXPORTER": "console", "OTEL_SERVICE_NAME": "prices"}
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    assert (
        ran.stdout == ""
    )  # what a worker prints goes to standard error; its standard output is its parent's
    assert f'"name": "{READ}"' in ran.stderr
    assert '"service.name": "prices"' in ran.stderr


def test_an_exporter_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, hint in (("otlp", "opentelemetry-exporter-otlp"), ("consol", "console")):
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", name)
        with pytest.raises(ServerError, match=f"OTEL_TRACES_EXPORTER is '{name}'.*{hint}"):
            serve(str(tmp_path), now=NOW, opener=OPENER, traces=True)
