"""The native protocol, from a client in this process to a server in another."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.serve.conftest import NOW, OPENER
from tests.serve.house import backend_at, plain_channel, quotes

from featurestore.core.clock import ManualClock
from featurestore.errors import (
    DefinitionError,
    LimitError,
    MissingDependencyError,
    NotFoundError,
    OnlineStoreError,
    OnlineStoreTimeoutError,
    SchemaError,
    ServerError,
)
from featurestore.serve.call_log import CallLog
from featurestore.serve.config import Limits
from featurestore.serve.grpc_client import OnlineClient
from featurestore.serve.lmdb_store import LmdbStore
from featurestore.serve.proto import online_pb2 as pb
from featurestore.serve.server import ServerHandle, serve

ALL = ["quote", "last", "flow", "edge"]
ROWS: dict[str, list[Any]] = {"symbol": ["IBM", "AIG", "none", None], "price": [1.0, 2.0, 3.0, 4.0]}
HISTORY: list[dict[str, Any]] = [
    {"symbol": "IBM", "ts": 980, "bid": 1.0, "ask": 2.0, "venue": "N", "size": 5},
    {"symbol": "IBM", "ts": 990, "bid": 3.0, "venue": "Q", "size": -7, "seq": 1},
    {"symbol": "AIG", "ts": 100, "bid": 3.0, "ask": 4.0},
]


@pytest.mark.parametrize("arrow", [False, True], ids=["columnar", "one Arrow batch"])
@pytest.mark.parametrize(
    "rows", [ROWS, {k: v[:1] for k, v in ROWS.items()}], ids=["many readers", "one reader"]
)
@pytest.mark.parametrize("features", [["quote"], ["quote:mid", "quote:bid"], ["quote:venue"], ALL, "model"])
def test_the_wire_carries_what_is_read_in_process(
    client: OnlineClient, tmp_path: Path, features: Any, rows: Any, arrow: bool
) -> None:
    backend = backend_at(tmp_path, now_ns=NOW)
    backend.push("quotes", quotes(HISTORY))
    wanted = backend.get_online_features(features, rows)
    for _ in range(2):  # the second time the client knows the schema
        found = client.get_online_features(features, rows, arrow=arrow)
        assert found.to_arrow().equals(wanted.to_arrow())
        assert found.to_pandas().equals(wanted.to_pandas())
        assert found.to_dict() == wanted.to_dict()
        assert found.statuses() == wanted.statuses()
        assert found.event_timestamps() == wanted.event_timestamps()
        assert found.now_ns == NOW
    backend.close()


def test_a_whole_view_of_one_type_comes_as_a_matrix(client: OnlineClient) -> None:
    found = client.get_online_features(["quote:bid", "quote:ask"], {"symbol": ["AIG", "IBM"]}, now=1000)
    assert np.array_equal(found.to_numpy(), [[0.0, 3.0], [0.0, 0.0]])
    assert found.status_codes().tolist() == [[3, 0], [3, 1]]


def test_a_stream_answers_in_the_order_of_its_requests(client: OnlineClient) -> None:
    asked = [{"symbol": [s]} for s in ["IBM", "AIG", "IBM"] * 20]
    found = [r.to_dict()["bid"] for r in client.stream(["quote:bid"], asked)]
    assert found == [[3.0], [None], [3.0]] * 20


@pytest.mark.parametrize(
    ("features", "rows", "kind", "text"),
    [
        (["qoute"], {"symbol": ["A"]}, NotFoundError, "did you mean 'quote'"),
        (["quote@9"], {"symbol": ["A"]}, NotFoundError, "no version 9"),
        (["quote:bidd"], {"symbol": ["A"]}, NotFoundError, "did you mean 'bid'"),
        ("modle", {"symbol": ["A"]}, NotFoundError, "did you mean 'model'"),
        (["quote"], {"symbol": [1]}, SchemaError, "'symbol'"),
        (["quote"], {"ticker": ["A"]}, SchemaError, "'symbol'"),
        (["edge"], {"symbol": ["A"]}, SchemaError, "'price'"),
        (["edge"], {"symbol": ["A"], "price": ["x"]}, SchemaError, "'price'"),
        ([], {"symbol": ["A"]}, DefinitionError, "features"),
        (["a b"], {"symbol": ["A"]}, DefinitionError, "not allowed"),
        (["quote"], {"symbol": ["A" * 5000]}, LimitError, "symbol"),
        (["quote"], {"symbol": ["A"] * 10_001}, LimitError, "10001 rows"),
    ],
)
def test_a_wrong_request_is_told_precisely(
    client: OnlineClient, features: Any, rows: Any, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind) as caught:
        client.get_online_features(features, rows)
    assert text in str(caught.value)


def test_a_reader_before_the_floor_is_refused(client: OnlineClient) -> None:
    with pytest.raises(DefinitionError, match="answers exactly from"):
        client.get_online_features(["quote"], {"symbol": ["IBM"]}, now=500)


def test_what_is_asked_for_can_be_listed(client: OnlineClient) -> None:
    listed = client.list_features()
    assert {(f.view, f.name, f.type) for f in listed.features} >= {
        ("quote", "mid", "double"),
        ("flow", "n", "int64"),
        ("edge", "edge", "double"),
    }
    assert [s.name for s in listed.services] == ["model"]


def test_health_and_reflection_answer_their_standard_clients(server: ServerHandle) -> None:
    with plain_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "featurestore.v1.OnlineService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="featurestore.v1.OnlineService"),
        ]
        listed, described = stub.ServerReflectionInfo(iter(asked))
        names = {s.name for s in listed.list_services_response.service}
        assert {"featurestore.v1.OnlineService", "grpc.health.v1.Health"} <= names
        assert described.file_descriptor_response.file_descriptor_proto


def raw(server: ServerHandle, method: str, request: bytes) -> bytes:
    with plain_channel(server.address) as channel:
        found: bytes = channel.unary_unary(f"/featurestore.v1.OnlineService/{method}")(request, timeout=10)
        return found


@pytest.mark.parametrize(
    ("method", "request_bytes"),
    [
        ("GetOnlineFeatures", b"\xff\xff\xff"),
        ("GetOnlineFeatures", b"\x0a\x05ab"),
        ("Push", b"\x0a\x01"),
        ("Push", pb.PushRequest(source="quotes", rows=b"not arrow").SerializeToString()),
        ("Push", pb.PushRequest(source="quotes").SerializeToString()),
        (
            "GetOnlineFeatures",
            pb.GetOnlineFeaturesRequest(
                features=["quote"], entities=[pb.EntityColumn(name="symbol", arrow=b"\0" * 64)]
            ).SerializeToString(),
        ),
    ],
)
def test_malformed_bytes_are_invalid_and_the_server_lives_on(
    server: ServerHandle, client: OnlineClient, method: str, request_bytes: bytes
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw(server, method, request_bytes)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert client.get_online_features(["quote:bid"], {"symbol": ["IBM"]}).to_dict()["bid"] == [3.0]


def test_a_push_is_refused_whole_if_a_column_does_not_fit(client: OnlineClient) -> None:
    rows = quotes([{"symbol": "NEW", "ts": 999, "bid": 1.0}])
    with pytest.raises(SchemaError, match="'bid'"):
        client.push("quotes", rows.set_column(4, "bid", pa.array(["x"])))
    with pytest.raises(SchemaError, match="'ask'"):
        client.push("quotes", rows.drop_columns(["ask"]))
    with pytest.raises(NotFoundError, match="quotes"):
        client.push("quote_source", rows)
    assert client.get_online_features(["quote:bid"], {"symbol": ["NEW"]}).statuses()["bid"] == ["NOT_FOUND"]


def test_a_numbered_push_is_applied_once(tmp_path: Path) -> None:
    with serve(str(tmp_path), now=NOW, opener=OPENER) as server, OnlineClient(server.address) as client:
        rows = quotes([{"symbol": "A", "ts": 995, "size": 1}, {"symbol": "A", "ts": 995, "size": 1}])
        assert client.push("quotes", rows, producer="p", sequence=1).applied
        assert not client.push("quotes", rows, producer="p", sequence=1).applied
        assert client.get_online_features(["flow:n"], {"symbol": ["A"]}).to_dict()["n"] == [2]


def test_a_port_in_use_is_a_typed_error(server: ServerHandle, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="cannot listen"):
        serve(str(tmp_path), address=server.address, opener=OPENER)


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerError, match=r"could not start.*file"):
        serve(str(tmp_path / "file"), opener=OPENER)


def test_beyond_loopback_needs_tls_or_an_explicit_word(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="without TLS"):
        serve(str(tmp_path), address="0.0.0.0:0", opener=OPENER)


def test_a_killed_worker_is_replaced_and_acknowledged_pushes_stay(tmp_path: Path) -> None:
    with serve(str(tmp_path), now=NOW, opener=OPENER, workers=2) as server:
        with OnlineClient(server.address) as client:
            client.push("quotes", quotes([{"symbol": "A", "ts": 995, "bid": 7.0}]))
        for pid in server.pids:
            os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + 20
        found: list[object] = []
        while not found:
            try:
                with OnlineClient(server.address, timeout_s=1.0) as client:
                    found = client.get_online_features(["quote:bid"], {"symbol": ["A"]}).to_dict()["bid"]
            except (OnlineStoreError, ServerError):
                assert time.monotonic() < until
                time.sleep(0.02)
        assert found == [7.0]


def test_a_spare_worker_takes_the_place_of_one_that_is_killed(tmp_path: Path) -> None:
    with serve(str(tmp_path), now=NOW, opener=OPENER) as server:
        until = time.monotonic() + 90
        while server.spare_pid is None:
            assert time.monotonic() < until
            time.sleep(0.02)
        killed, spare = server.pids[0], server.spare_pid
        os.kill(killed, signal.SIGKILL)
        while server.pids[0] == killed:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert server.pids == [spare]
        answered = 0
        while answered == 0:  # it has been told to listen, and may not have come to it
            try:
                with OnlineClient(server.address) as client:
                    answered = client.get_online_features(["quote"], {"symbol": ["A"]}).num_rows
            except OnlineStoreError:
                assert time.monotonic() < until


def test_a_stop_finishes_the_calls_under_way(tmp_path: Path) -> None:
    failures: list[Exception] = []
    done = threading.Event()
    server = serve(str(tmp_path), now=NOW, opener=OPENER)

    def ask(client: OnlineClient) -> None:
        while not done.is_set():
            try:
                client.get_online_features(["quote"], {"symbol": ["A"]})
            except OnlineStoreError:
                return  # refused before it was begun
            except Exception as error:  # noqa: BLE001 -- whatever it is, it is the finding
                failures.append(error)
                return

    with OnlineClient(server.address, retries=0) as client:
        threads = [threading.Thread(target=ask, args=(client,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 10
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []


def test_a_caller_who_leaves_its_stream_unread_is_no_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wide = pb.GetOnlineFeaturesRequest(
        features=["quote"], entities=[pb.EntityColumn(name="symbol", strings=["A"] * 5_000)]
    ).SerializeToString()
    with serve(str(tmp_path), now=NOW, opener=OPENER) as server, OnlineClient(server.address) as client:
        with plain_channel(server.address) as channel:
            held = channel.stream_stream("/featurestore.v1.OnlineService/StreamOnlineFeatures")(
                itertools.repeat(wide)
            )
            assert next(held)
            time.sleep(0.5)  # until answers fill what the connection holds, and the server waits to write
            held.cancel()
        assert client.get_online_features(["quote"], {"symbol": ["A"]}).num_rows == 1
    assert "Traceback" not in capfd.readouterr().err


def test_calls_over_the_limit_at_once_are_turned_away(tmp_path: Path) -> None:
    limits = Limits(concurrent=1, message_bytes=1 << 16)
    started = serve(str(tmp_path), now=NOW, opener=OPENER, limits=limits)
    with started as server, plain_channel(server.address) as channel:
        gate = threading.Event()

        def slow() -> Any:
            yield pb.GetOnlineFeaturesRequest(
                features=["quote"], entities=[pb.EntityColumn(name="symbol", strings=["A"])]
            ).SerializeToString()
            gate.wait(10)

        held = channel.stream_stream("/featurestore.v1.OnlineService/StreamOnlineFeatures")(slow())
        assert next(held)
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/featurestore.v1.OnlineService/ListFeatures")(b"", timeout=5)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        gate.set()
        assert list(held) == []
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/featurestore.v1.OnlineService/Push")(bytes(1 << 17), timeout=5)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("limit_s", "timeout_s"), [(0.3, 10.0), (10.0, 0.3)], ids=["the server's", "the caller's"]
)
def test_a_push_that_waits_too_long_ends_with_its_deadline(
    tmp_path: Path, limit_s: float, timeout_s: float
) -> None:
    rows = quotes([{"symbol": "A", "ts": 990, "bid": 1.0}])
    limits = Limits(deadline_s=limit_s)
    server = serve(str(tmp_path), now=NOW, opener=OPENER, limits=limits)
    with server, OnlineClient(server.address) as client, closing(LmdbStore(tmp_path)) as other:
        writing = other._begin(write=True)  # another process would hold LMDB's one write lock so
        with pytest.raises(OnlineStoreTimeoutError):
            client.push("quotes", rows, timeout_s=timeout_s)
        assert client.get_online_features(["quote"], {"symbol": ["A"]}).num_rows == 1
        writing.abort()
        assert client.push("quotes", rows).applied


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from featurestore.serve.server import serve;"
        f"s = serve(sys.argv[1], now={NOW}, opener={OPENER!r});"
        "print(*s.pids, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_logged_call_names_neither_keys_nor_values() -> None:
    out = io.StringIO()
    CallLog(out, ManualClock(1_500_000_000)).call("Push", "OK", 0.00123456, 77)
    assert json.loads(out.getvalue()) == {
        "time": "1970-01-01T00:00:01.5Z",
        "method": "Push",
        "status": "OK",
        "seconds": 0.001235,
        "request_bytes": 77,
    }


def test_a_server_without_its_extra_names_the_pip_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "grpc_health" else name)
    with pytest.raises(MissingDependencyError, match=r"pip install 'featurestore\[serve\]'"):
        serve(str(tmp_path), opener=OPENER)
