"""Step 5: the same features, live. A real server in its own process must answer what history says."""

import time
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from featurestore.core.time import format_instant
from featurestore.demo.bar import Bar
from featurestore.demo.memory import peak_bytes
from featurestore.demo.steps import SERVICE, Demo
from featurestore.serve.grpc_client import OnlineClient

ONLINE_VIEWS: Final = ("quote", "flow")
CALLS: Final = 400


@dataclass(frozen=True, slots=True)
class Latency:
    """Round trips of one kind of request, ms."""

    p50: float
    p99: float

    def __str__(self) -> str:
        return f"{self.p50:.2f} / {self.p99:.2f} ms"


def serve(demo: Demo) -> None:
    """Write the newest values, ask over gRPC, and compare every value with the historical answer."""
    now_ns, symbols = _busy_instant(demo)
    now = format_instant(now_ns)
    for view in ONLINE_VIEWS:
        with Bar(demo.screen.console) as bar:
            result = demo.store.materialize(view, end=now, progress=bar)
        demo.screen.say(f"{view}: {result.rows:,} rows up to {now} in {result.seconds:.1f} s")
    spine = pa.table({"symbol": symbols, "ts": pa.array([now_ns] * len(symbols), pa.timestamp("ns", "UTC"))})
    history = demo.store.get_historical_features(spine, SERVICE, timestamp_field="ts").to_arrow()
    rows = pa.table({"symbol": symbols})
    with demo.screen.work("starting the server"):
        handle = demo.store.serve(now=now)
    with handle, OnlineClient(handle.address, timeout_s=60) as client:
        answer = client.get_online_features(SERVICE, rows).to_arrow()
        _compare(demo, "gRPC equals history", answer, history, now)
        one = _latency(client, rows.slice(0, 1))
        every = _latency(client, rows)
        demo.peaks["server process"] = max(peak_bytes(pid) for pid in handle.pids)
    local = demo.store.get_online_features(SERVICE, rows, now=now).to_arrow()
    _compare(demo, "in process equals history", local, history, now)
    demo.screen.facts["gRPC p50 / p99"] = f"one symbol {one}, {len(symbols)} symbols {every}"
    demo.screen.say(f"gRPC round trip p50 / p99: one symbol {one}, {len(symbols)} symbols {every}")


def _busy_instant(demo: Demo) -> tuple[int, list[str]]:
    """Choose an instant late on the last delivered day, between two events, and all symbols."""
    assert demo.first is not None  # noqa: S101 -- step 2 ran
    times = demo.first["ts"].cast(pa.int64()).to_numpy()
    last_day = times[times // 86_400_000_000_000 == times.max() // 86_400_000_000_000]
    busy = int(np.quantile(last_day, 0.9, method="nearest"))
    return busy + 1, sorted(set(demo.first["symbol"].unique().to_pylist()))


def _compare(demo: Demo, what: str, answer: pa.Table, history: pa.Table, now: str) -> None:
    features = [name for name in history.column_names if name not in {"symbol", "ts"}]
    wrong = [
        name
        for name in features
        if name not in answer.column_names or answer[name].to_pylist() != history[name].to_pylist()
    ]
    values = len(features) * history.num_rows
    present = values - sum(history[name].null_count for name in features)
    found = f"{values} values ({present} not null) of {history.num_rows} symbols at {now}, all equal"
    demo.screen.check(what, not wrong, found if not wrong else f"differ: {', '.join(wrong)}")


def _latency(client: OnlineClient, rows: pa.Table) -> Latency:
    took = []
    for _ in range(CALLS):
        began = time.perf_counter()
        client.get_online_features(SERVICE, rows)
        took.append((time.perf_counter() - began) * 1e3)
    return Latency(float(np.percentile(took, 50)), float(np.percentile(took, 99)))
