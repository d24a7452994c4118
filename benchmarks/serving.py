"""Serving: in process, gRPC against a bare echo of the same bytes, Feast on the same data, writes, growth.

`python -m benchmarks serving`. Closed-loop latencies of two servers are taken in turn, call by call, so that
the machine's moods meet both alike. Feast takes part where tests/serve/test_feast_client.py has made its
virtual environment. FEATURESTORE_BENCH_KEYS=10000000 adds the largest size of the growth figure.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import lmdb
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.flight as fl

from featurestore.catalog.catalog import open_catalog
from featurestore.catalog.entity import Entity
from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.source import Source
from featurestore.core.clock import SystemClock
from featurestore.serve.backend import OnlineBackend
from featurestore.serve.client_messages import Question, write_request
from featurestore.serve.flight_client import BulkClient
from featurestore.serve.flight_server import BulkReads, serve_flight
from featurestore.serve.grpc_client import OnlineClient
from featurestore.serve.lmdb_store import LmdbStore
from featurestore.serve.proto import feast_compat_pb2 as feast_pb
from featurestore.serve.proto import online_pb2 as pb
from featurestore.serve.request import Readers
from featurestore.serve.server import serve

NAMES = [f"f{at}" for at in range(50)]
FEATURES = [f"wide:{name}" for name in NAMES]
KEYS = 10_000
PATH = "/featurestore.v1.OnlineService/"
SCHEMA = pa.schema(
    [("user_id", pa.int64()), ("ts", pa.timestamp("ns", "UTC")), *((n, pa.float64()) for n in NAMES)]
)
FEAST_PYTHON = Path.home() / ".cache/featurestore-tests/feast-0.67.0/bin/python"
FEAST_SCRIPT = Path(__file__).with_name("feast_serving.py")


def rows(first: int, count: int, at_ns: int, features: int = 50, keys: np.ndarray | None = None) -> pa.Table:
    """Return `count` keys from `first`, or given ones, each with features that tell it."""
    keys = np.arange(first, first + count) if keys is None else keys
    columns = [pa.array(keys), pa.array(np.full(count, at_ns)).cast(pa.timestamp("ns", "UTC"))]
    columns += [pa.array(keys + at / 64) for at in range(features)]
    return pa.Table.from_arrays(columns, names=SCHEMA.names[: 2 + features])


def prepared(root: Path, features: int = 50) -> OnlineBackend:
    """Return a backend over a catalog in `root` with one wide view."""
    user = Entity("user", join_keys=["user_id"])
    source = Source("users", path="users", timestamp_field="ts")
    view = FeatureView("wide", source=source, entities=[user], features=NAMES[:features], ttl="7d")
    schema = pa.schema([SCHEMA.field(at) for at in range(2 + features)])
    catalog = open_catalog(root, read_schema=lambda _: schema)
    catalog.apply([user, source, view])
    store = LmdbStore(root / "online")
    return OnlineBackend(catalog.snapshot, store, clock=SystemClock(), history_ns=0)


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return p50, p90 and p99 in microseconds."""
    found = np.percentile(np.array(seconds) * 1e6, [50, 90, 99]).round(1).tolist()
    return dict(zip(("p50_us", "p90_us", "p99_us"), found, strict=True))


def timed(call: Callable[[int], object], count: int) -> dict[str, float]:
    """Call `count` times after a tenth as many; returns percentiles."""
    for at in range(count // 10):
        call(at)
    taken = []
    for at in range(count):
        started = time.perf_counter()
        call(at)
        taken.append(time.perf_counter() - started)
    return percentiles(taken)


def in_turn(calls: dict[str, Callable[[], object]], count: int) -> dict[str, dict[str, float]]:
    """Call several things in turn, `count` times each; returns percentiles of each."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for at in range(count + count // 10):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if at >= count // 10:
                taken[name].append(time.perf_counter() - started)
    return {name: percentiles(found) for name, found in taken.items()}


def in_process(backend: OnlineBackend) -> dict[str, Any]:
    """Time reads of 1 and 100 keys in this process, answers as Python lists."""
    draw = np.random.default_rng(1)
    many = [[int(k) for k in draw.integers(0, KEYS, 100)] for _ in range(50)]
    found = backend.get_online_features(FEATURES, {"user_id": many[0]}).to_dict()
    assert [found[f"f{at}"] for at in range(50)] == [[k + at / 64 for k in many[0]] for at in range(50)]
    return {
        "1x50": timed(
            lambda at: backend.get_online_features(FEATURES, {"user_id": [at % KEYS]}).to_dict(), 10_000
        ),
        "100x50": timed(
            lambda at: backend.get_online_features(FEATURES, {"user_id": many[at % 50]}).to_dict(), 2_000
        ),
    }


def writes(root: Path, at_ns: int) -> dict[str, Any]:
    """Time durable upserts in batches of 1,000 rows over 100,000 keys, beside bare puts of as many bytes.

    Keys come in their order, as materialization writes them, and drawn at random: then nearly every row is
    on a page of its own, which is written whole.
    """
    out: dict[str, Any] = {}
    for features in (50, 5):
        backend = prepared(root / str(features), features)
        ordered = np.arange(100_000).reshape(100, 1000)
        drawn = np.random.default_rng(3).permutation(100_000).reshape(100, 1000)
        for number, (name, callers) in enumerate(
            (("first", 1), ("1 caller", 1), ("4 callers", 4), ("1 caller, random keys", 1))
        ):
            keys = drawn if "random" in name else ordered
            tables = [rows(0, 1000, at_ns + number, features, mine) for mine in keys]
            found = timed_rows(partial(backend.write_rows, "wide"), tables, callers)
            out[f"{features} features, {name}"] = found
        answer = backend.get_online_features(["wide:f0"], {"user_id": [99_999]})
        assert answer.to_dict()["f0"] == [99_999.0]
        assert answer.event_timestamps()["f0"] == [at_ns + 3]
        backend.close()
        size = 16 + 8 * 4 + (features + 7) // 8 + 8 * features
        for name, keys in (("bare puts", ordered), ("bare puts, random keys", drawn)):
            out[f"{features} features, {name}"] = bare_puts(root / f"{name}{features}", size, keys)
    return out


def timed_rows(write: Callable[[Any], object], batches: list[Any], callers: int) -> dict[str, int]:
    """Write batches of 1,000 rows from some threads; returns rows per second, by the clock and by CPU."""

    def work(mine: list[Any]) -> None:
        for batch in mine:
            write(batch)

    threads = [threading.Thread(target=work, args=(batches[at::callers],)) for at in range(callers)]
    wall, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    count = 1000 * len(batches)
    return {"rows_per_s": round(count / wall), "rows_per_cpu_s": round(count / cpu)}


def bare_puts(folder: Path, size: int, keys: np.ndarray) -> dict[str, int]:
    """Put as many bytes under such keys with nothing but LMDB, one durable commit a batch."""
    folder.mkdir(parents=True)
    environment = lmdb.open(str(folder), map_size=1 << 34)

    def put(batch: list[tuple[bytes, bytes]]) -> None:
        with environment.begin(write=True) as txn, txn.cursor() as cursor:
            cursor.putmulti(batch)

    taken = []
    for turn in range(2):  # the second time over rows that are there
        value = bytes([turn]) * size
        batches = [[(k.to_bytes(12, "big"), value) for k in sorted(some)] for some in keys.tolist()]
        taken.append(timed_rows(put, batches, 1))
    environment.close()
    return taken[-1]


def ask_one(backend: OnlineBackend, keys: list[int], at: int) -> object:
    """Look the view up for one of the keys."""
    return backend.get_online_features(["slim"], {"user_id": [keys[at]]})


def growth(root: Path, at_ns: int) -> dict[str, Any]:
    """Time one lookup at growing numbers of keys; the keys' values are narrow, so that they fit in memory."""
    user = Entity("user", join_keys=["user_id"])
    source = Source("users", path="users", timestamp_field="ts")
    view = FeatureView("slim", source=source, entities=[user], features=["f0"])
    schema = pa.schema([SCHEMA.field(name) for name in ("user_id", "ts", "f0")])
    sizes = [1_000, 100_000]
    if int(os.environ.get("FEATURESTORE_BENCH_KEYS", "0")) > sizes[-1]:
        sizes.append(int(os.environ["FEATURESTORE_BENCH_KEYS"]))
    out = {}
    for size in sizes:
        folder = root / str(size)
        catalog = open_catalog(folder, read_schema=lambda _: schema)
        catalog.apply([user, source, view])
        backend = OnlineBackend(
            catalog.snapshot, LmdbStore(folder / "online"), clock=SystemClock(), history_ns=0
        )
        for first in range(0, size, 100_000):
            keys = np.arange(first, min(size, first + 100_000))
            times = pa.array(np.full(keys.size, at_ns)).cast(pa.timestamp("ns", "UTC"))
            backend.write_rows("slim", pa.table({"user_id": keys, "ts": times, "f0": keys * 0.5}))
        keys_asked = np.random.default_rng(2).integers(0, size, 20_000).tolist()
        assert backend.get_online_features(["slim"], {"user_id": [size - 1]}).to_dict()["f0"] == [
            (size - 1) * 0.5
        ]
        out[f"{size:,} keys"] = timed(partial(ask_one, backend, keys_asked), 15_000)
        backend.close()
    return out


ECHO = """
import asyncio, sys, grpc, uvloop
async def main():
    sizes = {}
    async def echo(request, context):
        return answers.get(request[:1], request)
    async def stream(requests, context):
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(answers.get(request[:1], request))
    answers = {b"\\x01": bytes(int(sys.argv[1])), b"\\x02": bytes(int(sys.argv[2]))}
    server = grpc.aio.server()
    methods = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Stream": grpc.stream_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("echo", methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()
uvloop.run(main())
"""


@contextmanager
def echo_server(*sizes: int) -> Iterator[tuple[str, int]]:
    """Run a bare grpc.aio server that answers bytes of given sizes; gives its address and process id."""
    command = [sys.executable, "-c", ECHO, *map(str, sizes)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield f"127.0.0.1:{int(server.stdout.readline())}", server.pid
    finally:
        server.terminate()
        server.wait()


def native_request(keys: list[int], schema_id: int) -> bytes:
    """Return a native request for 50 features of keys."""
    return write_request(Question(tuple(FEATURES)), Readers({"user_id": keys}, len(keys)), schema_id)


def feast_request(keys: list[int]) -> bytes:
    """Return a Feast request for 50 features of keys."""
    values = feast_pb.RepeatedValue(val=[feast_pb.Value(int64_val=k) for k in keys])
    return feast_pb.GetOnlineFeaturesRequest(
        features=feast_pb.FeatureList(val=FEATURES), entities={"user_id": values}
    ).SerializeToString()


def over_grpc(address: str, feast_address: str | None) -> dict[str, Any]:
    """Time the native and the Feast wire against an echo of as many bytes, and against Feast itself."""
    keys = list(range(100))
    with grpc.insecure_channel(address) as channel:
        ours: Any = raw_call(channel, PATH + "GetOnlineFeatures")
        first = pb.GetOnlineFeaturesResponse.FromString(ours(native_request([5], 0)))
        one, many = native_request([5], first.schema_id), native_request(keys, first.schema_id)
        sizes = [len(ours(one)), len(ours(many))]
        matrix = np.frombuffer(pb.GetOnlineFeaturesResponse.FromString(ours(many)).blocks[0])
        assert np.array_equal(matrix.reshape(50, 100)[7], np.arange(100) + 7 / 64)
        theirs: Any = raw_call(channel, "/feast.serving.ServingService/GetOnlineFeatures")
        calls: dict[str, Callable[[], object]] = {
            "native 1x50": lambda: ours(one),
            "native 100x50": lambda: ours(many),
            "feast wire 100x50": lambda: theirs(feast_request(keys)),
        }
        with echo_server(*sizes) as (echo_address, _), grpc.insecure_channel(echo_address) as echo_channel:
            echo: Any = raw_call(echo_channel, "/echo/Echo")
            calls["echo 1x50"] = lambda: echo(b"\x01" + one[1:])
            calls["echo 100x50"] = lambda: echo(b"\x02" + many[1:])
            found = in_turn(calls, 3_000)
        if feast_address is not None:
            with grpc.insecure_channel(feast_address) as feast_channel:
                slow: Any = raw_call(feast_channel, "/GrpcFeatureServer/GetOnlineFeatures")
                request = feast_request(keys)
                found |= in_turn({"Feast's gRPC server 100x50": lambda: slow(request, timeout=30)}, 60)
    return found


def raw_call(channel: Any, path: str) -> Any:
    """Return a unary call that takes and gives bytes."""
    return channel.unary_unary(path)


async def ask_unary(address: str, path: str, request: bytes, count: int) -> None:
    """Make `count` unary calls, 16 at a time."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = raw_call(channel, path)

        async def one() -> None:
            for _ in range(count // 16):
                await call(request)

        await asyncio.gather(*(one() for _ in range(16)))


async def ask_stream(address: str, path: str, request: bytes, count: int) -> None:
    """Send `count` messages over one stream, 16 outstanding."""
    async with grpc.aio.insecure_channel(address) as channel:
        open_stream: Any = channel.stream_stream
        call = open_stream(path)()
        for _ in range(16):
            await call.write(request)
        for at in range(count):
            await call.read()
            if at < count - 16:
                await call.write(request)
        await call.done_writing()


def client_calls(client: OnlineClient, count: int) -> None:
    """Make `count` calls from 16 threads, as an application without streams would."""

    def one() -> None:
        for at in range(count // 16):
            client.get_online_features(FEATURES, {"user_id": [at % KEYS]}).to_numpy()

    threads = [threading.Thread(target=one) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def client_stream(client: OnlineClient, count: int, pack: int) -> None:
    """Ask `count` times over one stream, at most 16 without an answer."""
    room = threading.Semaphore(16)

    def asks() -> Iterator[Any]:
        for at in range(count):
            room.acquire()
            yield {"user_id": [at % KEYS]}

    for at, answer in enumerate(client.stream(FEATURES, asks(), pack=pack)):
        assert answer.to_numpy()[0, 0] == at % KEYS
        room.release()


def streaming(address: str, pid: int) -> dict[str, Any]:
    """Count requests per second of CPU, the server's and the callers': calls, streams, and an echo's."""
    with OnlineClient(address) as client, echo_server(430, 1) as (echo, echo_pid):
        client.get_online_features(FEATURES, {"user_id": [5]})
        with grpc.insecure_channel(address) as channel:
            answer = raw_call(channel, PATH + "GetOnlineFeatures")(native_request([5], 0))
        one = native_request([5], pb.GetOnlineFeaturesResponse.FromString(answer).schema_id)
        other = b"\x01" + one
        get, stream = PATH + "GetOnlineFeatures", PATH + "StreamOnlineFeatures"
        works: dict[str, tuple[int, Callable[[int], object]]] = {
            "calls": (pid, lambda n: asyncio.run(ask_unary(address, get, one, n))),
            "stream, a message each": (pid, lambda n: asyncio.run(ask_stream(address, stream, one, n))),
            "echo calls": (echo_pid, lambda n: asyncio.run(ask_unary(echo, "/echo/Echo", other, n))),
            "echo stream": (echo_pid, lambda n: asyncio.run(ask_stream(echo, "/echo/Stream", other, n))),
            "client's calls": (pid, lambda n: client_calls(client, n)),
            "client's stream": (pid, lambda n: client_stream(client, n, 64)),
            "client's stream, pack=1": (pid, lambda n: client_stream(client, n, 1)),
        }
        taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in works}
        for turn in range(4):
            for name, (server_pid, work) in works.items():
                found = cpu_of(server_pid, work, 1_600)
                if turn:
                    taken[name].append(found)
    medians = {name: np.median(np.array(found), axis=0) * 1e6 for name, found in taken.items()}
    keys = ("server_us", "caller_us", "wall_us")
    return {name: dict(zip(keys, x.round(1).tolist(), strict=True)) for name, x in medians.items()}


def cpu_of(pid: int, work: Callable[[int], object], count: int) -> tuple[float, float, float]:
    """Return seconds per request: the server's CPU, this process's CPU, and the clock's."""
    server = psutil.Process(pid)
    before, mine, wall = sum(server.cpu_times()[:2]), time.process_time(), time.perf_counter()
    work(count)
    spent = sum(server.cpu_times()[:2]) - before
    return spent / count, (time.process_time() - mine) / count, (time.perf_counter() - wall) / count


class BareFlight(fl.FlightServerBase):  # type: ignore[misc] # pyarrow has no stubs
    """Streams a table and does nothing else."""

    def __init__(self, table: pa.Table) -> None:
        """Listen on a free port."""
        super().__init__("grpc+tcp://127.0.0.1:0")
        self.table = table

    def do_get(self, context: Any, ticket: Any) -> Any:
        """Stream the table."""
        del context, ticket
        return fl.RecordBatchStream(self.table)


def bulk() -> dict[str, float]:
    """Time a bulk read over our Flight front and over a bare one, in MB/s."""
    table = pa.table({f"x{at}": np.random.default_rng(at).random(500_000) for at in range(20)})
    table = pa.Table.from_batches(table.to_batches(max_chunksize=65_536))
    reads = BulkReads(scan=lambda *_: table.to_reader())
    bare = BareFlight(table)
    threading.Thread(target=bare.serve, daemon=True).start()
    out: dict[str, list[float]] = {"ours": [], "bare": []}
    with serve_flight(reads) as front, BulkClient(front.address) as client:
        plain = fl.FlightClient(f"grpc+tcp://127.0.0.1:{bare.port}")
        calls: dict[str, Callable[[], pa.Table]] = {
            "ours": lambda: client.dataset("x").read_all(),
            "bare": lambda: plain.do_get(fl.Ticket(b"")).read_all(),
        }
        assert calls["ours"]().equals(table)
        for _ in range(7):
            for name, call in calls.items():
                started = time.perf_counter()
                call()
                out[name].append(time.perf_counter() - started)
    bare.shutdown()
    return {name: round(table.nbytes / 1e6 / float(np.median(taken))) for name, taken in out.items()}


@contextmanager
def feast_server() -> Iterator[dict[str, Any] | None]:
    """Run Feast's own server on the same data, and give what it measured in its own process."""
    if not FEAST_PYTHON.exists():
        yield None
        return
    environment = {**os.environ, "FEAST_USAGE": "False"}
    server = subprocess.Popen(
        [str(FEAST_PYTHON), str(FEAST_SCRIPT)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert server.stdout is not None
    try:
        found = next((json.loads(x[7:]) for x in server.stdout if x.startswith("RESULT ")), None)
        yield found
    finally:
        server.kill()
        server.wait()


def main(arguments: list[str]) -> dict[str, Any]:
    """Run everything; returns the figures."""
    del arguments
    at_ns = SystemClock().now_ns()
    out: dict[str, Any] = {"load_average": os.getloadavg()}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        out["writes"] = writes(root / "writes", at_ns)
        out["growth"] = growth(root / "growth", at_ns)
        backend = prepared(root / "wide")
        backend.write_rows("wide", rows(0, KEYS, at_ns))
        out["in process"] = in_process(backend)
        backend.close()
        with feast_server() as feast, serve(str(root / "wide")) as server:
            out["feast in process"] = None if feast is None else feast["in process"]
            out["grpc"] = over_grpc(server.address, None if feast is None else feast["address"])
            out["streaming"] = streaming(server.address, server.pids[0])
        out["flight MB/s"] = bulk()
    out["ratios"] = ratios(out)
    print(json.dumps(out, indent=1))
    return out


def ratios(out: dict[str, Any]) -> dict[str, float]:
    """Return the figures that have a goal."""
    wire, here = out["grpc"], out["in process"]
    found = {
        "native 1x50 / echo (goal 1.25 at most)": wire["native 1x50"]["p50_us"] / wire["echo 1x50"]["p50_us"],
        "native 100x50 / echo (2 at most)": wire["native 100x50"]["p50_us"] / wire["echo 100x50"]["p50_us"],
    }
    cpu = {name: spent["server_us"] for name, spent in out["streaming"].items()}
    found |= {
        "our client: stream / calls per server CPU (2)": cpu["client's calls"] / cpu["client's stream"],
        "the same, a message for each request": cpu["calls"] / cpu["stream, a message each"],
        "the same, a bare echo": cpu["echo calls"] / cpu["echo stream"],
    }
    found["Flight / bare Flight (0.8 at least)"] = out["flight MB/s"]["ours"] / out["flight MB/s"]["bare"]
    feast, server = out["feast in process"], wire.get("Feast's gRPC server 100x50")
    if feast:
        found["Feast / in process 1x50 (10 at least)"] = feast["1x50"]["p50_us"] / here["1x50"]["p50_us"]
        found["Feast / in process 100x50 (15 at least)"] = (
            feast["100x50"]["p50_us"] / here["100x50"]["p50_us"]
        )
    if server:
        found["Feast's server / native 100x50 (5 at least)"] = (
            server["p50_us"] / wire["native 100x50"]["p50_us"]
        )
        found["Feast's server / Feast wire 100x50 (3 at least)"] = (
            server["p50_us"] / wire["feast wire 100x50"]["p50_us"]
        )
    return {name: round(ratio, 2) for name, ratio in found.items()}
