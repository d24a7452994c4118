"""Feast's protocols: our bytes read by classes with Feast's field numbers, and the HTTP JSON front."""

import http.client
import json
import socket
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serve.conftest import NOW, OPENER
from tests.serve.house import plain_channel

from featurestore.serve.feast_wire import _values
from featurestore.serve.proto import feast_compat_pb2 as pb
from featurestore.serve.server import ServerHandle, serve


def call(server: ServerHandle, path: str, request: Any) -> bytes:
    with plain_channel(server.address) as channel:
        found: bytes = channel.unary_unary(path)(request.SerializeToString(), timeout=10)
        return found


def values(kind: str, items: list[Any]) -> pb.RepeatedValue:
    made = [pb.Value() if i is None else pb.Value(**{kind: i}) for i in items]
    return pb.RepeatedValue(val=made)


def fields(data: bytes) -> list[tuple[int, Any]]:
    """Read protobuf fields: the oracle knows the wire format only."""
    out: list[tuple[int, Any]] = []
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        tag = varint()
        if tag & 7 == 0:
            out.append((tag >> 3, varint()))
        elif tag & 7 == 2:
            length = varint()
            out.append((tag >> 3, data[at : at + length]))
            at += length
        else:
            width = 8 if tag & 7 == 1 else 4
            out.append((tag >> 3, data[at : at + width]))
            at += width
    assert at == len(data)
    return out


@pytest.mark.parametrize("service", ["feast.serving.ServingService", "GrpcFeatureServer"])
def test_feast_grpc_answers_are_columns_of_full_length(server: ServerHandle, service: str) -> None:
    request = pb.GetOnlineFeaturesRequest(
        features=pb.FeatureList(val=["quote:mid", "quote:bid", "quote:size", "edge:edge"]),
        entities={"symbol": values("string_val", ["IBM", "AIG", "none"])},
        request_context={"price": values("double_val", [1.0, 2.0, 3.0])},
        full_feature_names=True,
    )
    top = fields(call(server, f"/{service}/GetOnlineFeatures", request))
    names = [v.decode() for _, v in fields(fields(top[0][1])[0][1])]
    assert names == ["symbol", "quote__mid", "quote__bid", "quote__size", "edge__edge"]
    columns = [v for number, v in top if number == 2]
    assert len(columns) == 5
    read = []
    for column in columns:
        parts = fields(column)
        cells = [pb.Value.FromString(v) for number, v in parts if number == 1]
        (statuses,) = [list(v) for number, v in parts if number == 2]
        times = [fields(v) for number, v in parts if number == 3]
        assert len(cells) == len(statuses) == len(times) == 3
        read.append(
            (
                [getattr(c, c.WhichOneof("val")) if c.WhichOneof("val") else None for c in cells],
                statuses,
                times,
            )
        )
    assert read[0] == (["IBM", "AIG", "none"], [1, 1, 1], [[], [], []])
    assert read[1][:2] == ([None, None, None], [2, 4, 3])
    assert read[2] == ([3.0, None, None], [1, 4, 3], [[(2, 990)], [], []])
    assert read[3][:2] == ([-7, None, None], [1, 4, 3])
    assert top[-1] == (3, 1)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_hand_written_values_are_the_bytes_protobuf_writes(data: st.DataObject) -> None:
    kind, field, items = data.draw(
        st.sampled_from(
            [
                (pa.int32(), "int32_val", st.integers(-(2**31), 2**31 - 1)),
                (pa.int64(), "int64_val", st.integers(-(2**63), 2**63 - 1)),
                (pa.float64(), "double_val", st.floats(allow_nan=False)),
                (pa.float32(), "float_val", st.floats(width=32, allow_nan=False)),
                (pa.bool_(), "bool_val", st.booleans()),
                (pa.string(), "string_val", st.text(max_size=200)),
                (pa.binary(), "bytes_val", st.binary(max_size=200)),
                (pa.timestamp("s"), "unix_timestamp_val", st.integers(-(2**31), 2**31)),
                (pa.list_(pa.int64()), "int64_list_val", st.lists(st.integers(-5, 2**40), max_size=4)),
                (pa.list_(pa.string()), "string_list_val", st.lists(st.text(max_size=3), max_size=3)),
            ]
        )
    )
    column = data.draw(st.lists(st.one_of(st.none(), items), max_size=8))
    wanted = b""
    for item in column:
        value = pb.Value()
        if item is not None and field.endswith("_list_val"):
            getattr(value, field).val.extend(item)
            getattr(value, field).SetInParent()
        elif item is not None:
            setattr(value, field, item)
        body = value.SerializeToString()
        wanted += b"\x0a" + pb.RepeatedValue(val=[value]).SerializeToString()[1:]
        assert len(body) < len(wanted)
    array = pa.array(column, pa.int64()).cast(kind) if kind == pa.timestamp("s") else pa.array(column, kind)
    assert _values(array) == wanted


def test_a_row_pushed_as_texts_or_typed_is_read_back(tmp_path: Path) -> None:
    with serve(str(tmp_path), now=NOW, opener=OPENER) as server:
        texts = {"symbol": "A", "ts": "1970-01-01T00:00:00.000000995Z", "bid": "1.5", "size": "3", "seq": "1"}
        call(server, "/GrpcFeatureServer/Push", pb.PushRequest(features=texts, stream_feature_view="quotes"))
        typed = {
            "symbol": pb.Value(string_val="B"),
            "event_timestamp": pb.Value(unix_timestamp_val=0),
            "bid": pb.Value(double_val=2.5),
        }
        request = pb.WriteToOnlineStoreRequest(typed_features=typed, feature_view_name="quote")
        call(server, "/GrpcFeatureServer/WriteToOnlineStore", request)
        asked = pb.GetOnlineFeaturesRequest(
            features=pb.FeatureList(val=["quote:bid"]),
            entities={"symbol": values("string_val", ["A", "B"])},
        )
        top = fields(call(server, "/feast.serving.ServingService/GetOnlineFeatures", asked))
        parts = fields([v for number, v in top if number == 2][1])
        assert pb.Value.FromString(parts[0][1]).double_val == 1.5
        assert next(list(v) for number, v in parts if number == 2) == [1, 4]
        both = pb.PushRequest(features=texts, typed_features=typed, stream_feature_view="quotes")
        with pytest.raises(grpc.RpcError) as caught:
            call(server, "/GrpcFeatureServer/Push", both)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def ask(
    server: ServerHandle, method: str, path: str, body: Any = None, raw: bytes | None = None
) -> tuple[int, Any]:
    assert server.http_address is not None
    connection = http.client.HTTPConnection(server.http_address, timeout=10)
    try:
        connection.request(method, path, raw if raw is not None else body and json.dumps(body))
        answer = connection.getresponse()
        data = answer.read()
        return answer.status, json.loads(data) if answer.headers["content-type"].endswith("json") else data
    finally:
        connection.close()


@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize("path", ["/get-online-features", "/get-online-features/"])
def test_http_json_answers_like_feasts_server(server: ServerHandle, method: str, path: str) -> None:
    body = {"features": ["quote:bid", "quote:venue"], "entities": {"symbol": ["IBM", "x"]}}
    status, answer = ask(server, method, path, body)
    assert status == 200
    assert answer == {
        "metadata": {"feature_names": ["symbol", "bid", "venue"]},
        "results": [
            {
                "values": ["IBM", "x"],
                "statuses": ["PRESENT"] * 2,
                "event_timestamps": ["1970-01-01T00:00:00Z"] * 2,
            },
            {
                "values": [3.0, None],
                "statuses": ["PRESENT", "NOT_FOUND"],
                "event_timestamps": ["1970-01-01T00:00:00.00000099Z", "1970-01-01T00:00:00Z"],
            },
            {
                "values": ["Q", None],
                "statuses": ["PRESENT", "NOT_FOUND"],
                "event_timestamps": ["1970-01-01T00:00:00.00000099Z", "1970-01-01T00:00:00Z"],
            },
        ],
    }


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/get-online-features", {"features": ["nope:x"], "entities": {"symbol": ["A"]}}, 404),
        ("/get-online-features", {"feature_service": "nope", "entities": {"symbol": ["A"]}}, 404),
        ("/get-online-features", {"features": ["quote"], "entities": {"symbol": [1]}}, 400),
        ("/get-online-features", {"features": ["quote"], "entities": {"symbol": ["A", 1]}}, 400),
        ("/get-online-features", {"features": ["quote"], "entities": {"symbol": "A"}}, 400),
        ("/get-online-features", {"features": 1, "entities": {"symbol": ["A"]}}, 400),
        ("/get-online-features", {"entities": {"symbol": ["A"]}}, 400),
        ("/get-online-features", [1], 400),
        ("/push", {"push_source_name": "nope", "df": {}}, 404),
        ("/push", {"push_source_name": "quotes", "df": {"symbol": ["A"]}}, 400),
        ("/push", {"push_source_name": "quotes", "df": {}, "to": "offline"}, 400),
        ("/materialize", {}, 501),
        ("/read-document", {"path": "/etc/passwd"}, 404),
    ],
)
def test_http_errors_have_their_status_and_say_why(
    server: ServerHandle, path: str, body: Any, status: int
) -> None:
    found, answer = ask(server, "POST", path, body)
    assert found == status
    assert answer["detail"]


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"POST /push HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /push HTTP/1.1\r\ncontent-length: 99999999999999\r\n\r\n",
        b"POST /push HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nx\r\n\r\n",
    ],
)
def test_malformed_http_is_refused_and_the_server_lives_on(server: ServerHandle, raw: bytes) -> None:
    assert server.http_address is not None
    host, _, port = server.http_address.partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(raw)
        assert connection.recv(12)[:10] == b"HTTP/1.1 4" or raw.count(b"chunked")
    assert ask(server, "GET", "/health") == (200, {"status": "ok"})


def test_http_push_is_read_back_and_metrics_count_it(tmp_path: Path) -> None:
    with serve(str(tmp_path), now=NOW, opener=OPENER, http_address="127.0.0.1:0") as server:
        df = {
            "symbol": ["A", "A"],
            "event_timestamp": ["1970-01-01T00:00:00.000000990Z"] * 2,
            "created": [None, None],
        }
        df |= {"bid": [1.5, 2.5], "size": [1, 2], "venue": [None, "é"], "created": df["event_timestamp"]}
        assert (
            ask(server, "POST", "/push", {"push_source_name": "quotes", "df": df, "to": "online"})[0] == 200
        )
        body = {"features": ["quote:venue", "flow:total"], "entities": {"symbol": ["A"]}}
        _, answer = ask(server, "POST", "/get-online-features", body)
        assert [c["values"] for c in answer["results"]] == [["A"], ["é"], [3]]
        status, text = ask(server, "GET", "/metrics")
        assert status == 200
        assert b'featurestore_calls_total{method="HTTP /push",status="OK"} 1' in text
        assert b'featurestore_rows_total{view="quote@1",status="PRESENT"} 1' in text


def test_callers_that_hang_harm_nobody_else(server: ServerHandle) -> None:
    assert server.http_address is not None
    host, _, port = server.http_address.partition(":")
    hanging = [socket.create_connection((host, int(port))) for _ in range(50)]
    grpc_host, _, grpc_port = server.address.partition(":")
    hanging += [socket.create_connection((grpc_host, int(grpc_port))) for _ in range(50)]
    try:
        for connection in hanging:
            connection.sendall(b"POST /push HTTP/1.1\r\ncontent-length: 100\r\n\r\n{")
        body = {"features": ["quote:bid"], "entities": {"symbol": ["IBM"]}}
        for _ in range(5):
            assert ask(server, "POST", "/get-online-features", body)[0] == 200
        request = pb.GetOnlineFeaturesRequest(
            features=pb.FeatureList(val=["quote:bid"]), entities={"symbol": values("string_val", ["IBM"])}
        )
        assert call(server, "/feast.serving.ServingService/GetOnlineFeatures", request)
    finally:
        for connection in hanging:
            connection.close()
