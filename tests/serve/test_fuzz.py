"""Hostile bytes on every method: a typed error or an answer, never a crash, a hang or growing memory."""

import json
import random
import resource
from collections.abc import Callable
from typing import Any

import grpc
import psutil
import pyarrow as pa
import pytest
from tests.serve.house import plain_channel, quotes
from tests.serve.test_writes import backend

from featurestore.errors import FeatureStoreError
from featurestore.serve.access import ANYONE
from featurestore.serve.config import Limits
from featurestore.serve.feast_service import FeastService
from featurestore.serve.http_server import _json
from featurestore.serve.metrics import Metrics
from featurestore.serve.proto import feast_compat_pb2 as feast
from featurestore.serve.proto import online_pb2 as pb
from featurestore.serve.server import ServerHandle
from featurestore.serve.service import OnlineService


def ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


ROWS = quotes([{"symbol": "A", "ts": 990, "bid": 1.0, "venue": "N"}, {"symbol": None, "ts": 991}])
NATIVE = pb.GetOnlineFeaturesRequest(
    features=["quote", "flow:n", "edge"],
    entities=[
        pb.EntityColumn(name="symbol", strings=["A", "B"]),
        pb.EntityColumn(name="price", arrow=ipc(pa.table({"p": [1.0, None]}))),
    ],
    now_ns=995,
).SerializeToString()
ALIVE = pb.GetOnlineFeaturesRequest(
    features=["quote"], entities=[pb.EntityColumn(name="symbol", strings=["A"])]
).SerializeToString()
PUSH = pb.PushRequest(source="quotes", rows=ipc(ROWS), producer="p", sequence=3).SerializeToString()
FEAST = feast.GetOnlineFeaturesRequest(
    features=feast.FeatureList(val=["quote:bid", "last"]),
    entities={"symbol": feast.RepeatedValue(val=[feast.Value(string_val="A"), feast.Value()])},
    full_feature_names=True,
).SerializeToString()
FEAST_PUSH = feast.PushRequest(
    features={"symbol": "A", "ts": "1970-01-01", "bid": "1"}, stream_feature_view="quotes"
).SerializeToString()
WRITE = feast.WriteToOnlineStoreRequest(
    typed_features={"symbol": feast.Value(string_val="A"), "ts": feast.Value(unix_timestamp_val=0)},
    feature_view_name="quote",
).SerializeToString()
GET_JSON = json.dumps(
    {"features": ["quote:bid", "edge"], "entities": {"symbol": ["A", None], "price": [1, 2.5]}}
).encode()
PUSH_JSON = json.dumps(
    {"push_source_name": "quotes", "df": {"symbol": ["A"], "ts": ["1970-01-01"], "bid": [1]}}
).encode()

Method = Callable[[bytes], object]


def methods() -> list[tuple[str, Method, bytes]]:
    service = OnlineService(backend(), Limits(rows=100, cells=1000), Metrics())
    theirs = FeastService(service)
    return [
        ("GetOnlineFeatures", lambda d: service.get_online_features(d, ANYONE), NATIVE),
        ("Push", lambda d: service.push(d, ANYONE), PUSH),
        ("ListFeatures", lambda d: service.list_features(d, ANYONE), b""),
        ("feast GetOnlineFeatures", lambda d: theirs.get_online_features(d, ANYONE), FEAST),
        ("feast Push", lambda d: theirs.push(d, ANYONE), FEAST_PUSH),
        ("feast WriteToOnlineStore", lambda d: theirs.write_to_online_store(d, ANYONE), WRITE),
        ("HTTP get", lambda d: json.dumps(theirs.get_json(_json(d), ANYONE), allow_nan=False), GET_JSON),
        ("HTTP push", lambda d: json.dumps(theirs.push_json(_json(d), ANYONE)), PUSH_JSON),
    ]


def mutated(draw: random.Random, seed: bytes) -> bytes:
    """Bytes flipped, cut, doubled, spliced; or noise."""
    if draw.random() < 0.1:
        return draw.randbytes(draw.randrange(200))
    data = bytearray(seed)
    for _ in range(draw.choice([1, 1, 1, 2, 4, 16])):
        at = draw.randrange(len(data) + 1)
        act = draw.randrange(5)
        if act == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif act == 1 and at < len(data):
            data[at] = draw.randrange(256)
        elif act == 2:
            del data[at : at + draw.randrange(1, 9)]
        elif act == 3:
            data[at:at] = draw.randbytes(draw.randrange(1, 9))
        else:
            data[at:at] = data[at : at + draw.randrange(1, 40)]
    return bytes(data)


def fuzz(count: int, seed: int) -> dict[str, int]:
    """Call every method `count` times in turn; returns how many calls each answered.

    Raises:
        AssertionError: something other than a typed error came out.
    """
    draw = random.Random(seed)  # noqa: S311 -- a test's dice
    answered: dict[str, int] = {}
    for name, call, good in methods():
        assert call(good) is not None, name
        for _ in range(count):
            data = mutated(draw, good)
            try:
                call(data)
                answered[name] = answered.get(name, 0) + 1
            except FeatureStoreError:
                pass
            except BaseException as error:
                raise AssertionError(f"{name} {data!r}") from error
    return answered


def test_hostile_bytes_get_a_typed_error_or_an_answer() -> None:
    answered = fuzz(400, seed=1)
    assert len(answered) == 8


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_fifty_thousand_hostile_bodies_leave_memory_flat() -> None:
    fuzz(500, seed=2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(13):
        fuzz(500, seed=10 + seed)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


@pytest.mark.parametrize(
    "count", [60, pytest.param(60_000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)
def test_a_server_survives_hostile_bodies_on_every_path(server: ServerHandle, count: int) -> None:
    draw = random.Random(3)  # noqa: S311 -- a test's dice
    paths = [
        ("/featurestore.v1.OnlineService/GetOnlineFeatures", NATIVE),
        ("/featurestore.v1.OnlineService/StreamOnlineFeatures", NATIVE),  # a stream of one message
        ("/featurestore.v1.OnlineService/Push", PUSH),
        ("/featurestore.v1.OnlineService/ListFeatures", NATIVE),
        ("/GrpcFeatureServer/Push", FEAST_PUSH),
        ("/GrpcFeatureServer/GetOnlineFeatures", FEAST),
        ("/feast.serving.ServingService/GetFeastServingInfo", FEAST),
        ("/feast.serving.ServingService/GetOnlineFeatures", FEAST),
        ("/GrpcFeatureServer/WriteToOnlineStore", WRITE),
        ("/nobody/home", FEAST),
    ]
    allowed = {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.OK,
    }
    seen: set[grpc.StatusCode] = set()
    worker = psutil.Process(server.pids[0])
    before = 0
    with plain_channel(server.address) as channel:
        for at in range(count):
            path, good = paths[at % len(paths)]
            if at == count // 3:
                before = worker.memory_info().rss
            call: Any = channel.unary_unary(path)
            try:
                call(mutated(draw, good), timeout=10)
            except grpc.RpcError as error:
                seen.add(error.code())
        assert seen <= allowed
        alive: Any = channel.unary_unary(paths[0][0])
        assert alive(ALIVE, timeout=10)
    assert worker.pid in server.pids
    assert worker.memory_info().rss - before < 64 << 20
