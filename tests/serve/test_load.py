"""Steady load at 70 % of capacity: neither memory nor latency grows."""

import asyncio
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


async def open_loop(call: Any, rate: float, seconds: float) -> tuple[list[float], int]:
    """Send at a fixed rate, whatever the answers do.

    Returns:
        Latencies counted from when each was due, and how many calls were turned away.
    """
    taken: list[float] = []
    refused = 0
    started = time.monotonic()
    pending: set[asyncio.Task[None]] = set()

    async def one(due: float) -> None:
        nonlocal refused
        try:
            await call(REQUEST)
        except grpc.aio.AioRpcError:
            refused += 1
        else:
            taken.append(time.monotonic() - due)

    for at in range(int(rate * seconds)):
        due = started + at / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        task = asyncio.create_task(one(due))
        pending.add(task)
        task.add_done_callback(pending.discard)
    await asyncio.gather(*pending)
    return taken, refused


async def never_read(channel: Any) -> tuple[Any, asyncio.Task[None]]:
    """Send requests over a stream until the server's answers have nowhere to go, and read none.

    The last write stays under way: cancelling it would end the call, and free the server of it.
    """
    stream = channel.stream_stream("/featurestore.v1.OnlineService/StreamOnlineFeatures")()
    wide = pb.GetOnlineFeaturesRequest(
        features=["quote", "flow"], entities=[pb.EntityColumn(name="symbol", strings=["IBM"] * 5_000)]
    ).SerializeToString()
    sent = 0

    async def send() -> None:
        nonlocal sent
        while True:
            await stream.write(wide)
            sent += 1

    sending = asyncio.create_task(send())
    before = -1
    while sent != before:
        before = sent
        await asyncio.sleep(2)
    return stream, sending


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_steady_load_beside_a_slow_client_grows_neither_memory_nor_latency(server: ServerHandle) -> None:
    async def run() -> tuple[float, list[list[float]], list[int], int]:
        worker = psutil.Process(server.pids[0])
        opened: Any = grpc.aio.insecure_channel(server.address)
        apart: Any = grpc.aio.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)])
        async with opened as channel, apart as slow:
            call: Any = channel.unary_unary("/featurestore.v1.OnlineService/GetOnlineFeatures")
            await capacity(call)
            rate = 0.7 * await capacity(call)
            latencies, memory, refused = [], [], 0
            held, sending = None, None
            for part in range(10):
                if part == 2:
                    held, sending = await never_read(slow)
                taken, away = await open_loop(call, rate, SECONDS / 10)
                refused += away
                latencies.append(np.percentile(np.array(taken) * 1e3, [50, 99]).round(2).tolist())
                memory.append(worker.memory_info().rss)
            assert held is not None
            assert sending is not None
            assert not held.done(), "the server ended the slow client's stream"
            assert not sending.done()
            held.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            return rate, latencies, memory, refused

    rate, latencies, memory, refused = asyncio.run(run())
    print(f"\n{rate:.0f} calls/s, ten times {SECONDS / 10:.0f} s; from the third on a client reads nothing")  # noqa: T201
    for part, (p50_p99_ms, rss) in enumerate(zip(latencies, memory, strict=True), 1):
        print(f"part {part}: p50, p99 {p50_p99_ms} ms, {rss >> 20} MB")  # noqa: T201
    print(f"{refused} calls of {rate * SECONDS:.0f} turned away")  # noqa: T201
    medians = [p50 for p50, _ in latencies]
    assert refused < rate * SECONDS / 1000
    assert memory[-1] - memory[2] < 32 << 20
    assert np.median(medians[5:]) < 3 * np.median(medians[:5])
