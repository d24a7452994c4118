"""Steady load at 70 % of capacity: neither memory nor latency grows."""

import asyncio
import contextlib
import os
import time
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

from featurestore.serve.proto import online_pb2 as pb
from featurestore.serve.server import ServerHandle

SECONDS = float(os.environ.get("FEATURESTORE_LOAD_SECONDS", "600"))
REQUEST = pb.GetOnlineFeaturesRequest(
    features=["quote", "flow"], entities=[pb.EntityColumn(name="symbol", strings=["IBM", "AIG"])]
).SerializeToString()


async def capacity(call: Any) -> float:
    """Return requests per second with eight outstanding."""

    async def one() -> None:
        for _ in range(200):
            await call(REQUEST)

    started = time.monotonic()
    await asyncio.gather(*(one() for _ in range(8)))
    return 1600 / (time.monotonic() - started)


async def open_loop(call: Any, rate: float, seconds: float) -> list[float]:
    """Send at a fixed rate, whatever the answers do; returns latencies counted from when each was due."""
    taken: list[float] = []
    started = time.monotonic()
    pending: set[asyncio.Task[None]] = set()

    async def one(due: float) -> None:
        await call(REQUEST)
        taken.append(time.monotonic() - due)

    for at in range(int(rate * seconds)):
        due = started + at / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        task = asyncio.create_task(one(due))
        pending.add(task)
        task.add_done_callback(pending.discard)
    await asyncio.gather(*pending)
    return taken


async def never_read(channel: Any) -> Any:
    """Send requests over a stream until the server's answers have nowhere to go, and read none."""
    stream = channel.stream_stream("/featurestore.v1.OnlineService/StreamOnlineFeatures")()
    wide = pb.GetOnlineFeaturesRequest(
        features=["quote", "flow"], entities=[pb.EntityColumn(name="symbol", strings=["IBM"] * 5_000)]
    ).SerializeToString()
    with contextlib.suppress(TimeoutError):
        for _ in range(1_000):
            await asyncio.wait_for(stream.write(wide), 2.0)
    return stream


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_steady_load_beside_a_slow_client_grows_neither_memory_nor_latency(server: ServerHandle) -> None:
    async def run() -> tuple[list[float], list[int]]:
        worker = psutil.Process(server.pids[0])
        opened: Any = grpc.aio.insecure_channel(server.address)
        apart: Any = grpc.aio.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)])
        async with opened as channel, apart as slow:
            call: Any = channel.unary_unary("/featurestore.v1.OnlineService/GetOnlineFeatures")
            await capacity(call)
            rate = 0.7 * await capacity(call)
            medians, memory = [], []
            held = None
            for part in range(10):
                if part == 2:
                    held = await never_read(slow)
                taken = await open_loop(call, rate, SECONDS / 10)
                medians.append(float(np.median(taken)))
                memory.append(worker.memory_info().rss)
            assert held is not None
            held.cancel()
            return medians, memory

    medians, memory = asyncio.run(run())
    print(f"medians ms {[round(m * 1e3, 2) for m in medians]}, MB {[m >> 20 for m in memory]}")  # noqa: T201
    assert memory[-1] - memory[2] < 32 << 20
    assert np.median(medians[5:]) < 3 * np.median(medians[:5])
