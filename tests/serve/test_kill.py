"""Kill -9 at any moment: no acknowledged push is lost, no value is torn, the server comes back."""

import os
import random
import signal
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tests.serve.conftest import NOW, OPENER
from tests.serve.house import backend_at, quotes

from featurestore.errors import FeatureStoreError
from featurestore.serve.grpc_client import OnlineClient
from featurestore.serve.server import serve


class Pusher(threading.Thread):
    """Pushes rows of ever new keys and remembers which were acknowledged."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.address = address
        self.acknowledged: list[int] = []
        self.stopping = threading.Event()

    def run(self) -> None:
        """Push until told to stop."""
        number = 0
        while not self.stopping.is_set():
            try:
                with OnlineClient(self.address, timeout_s=2.0, retries=0) as client:
                    while not self.stopping.is_set():
                        number += 1
                        rows = [
                            {"symbol": f"{number}/{part}", "ts": 990, "bid": float(number)}
                            for part in range(20)
                        ]
                        client.push("quotes", quotes(rows))
                        self.acknowledged.append(number)
            except FeatureStoreError:
                time.sleep(0.01)


LONG = [pytest.mark.soak, pytest.mark.timeout(3600)]


@pytest.mark.parametrize(
    ("workers", "kills"),
    [
        pytest.param(2, 3, id="one of two"),
        pytest.param(2, 100, marks=LONG, id="one of two, often"),
        pytest.param(1, 100, marks=LONG, id="the one that writes"),
    ],
)
def test_what_was_acknowledged_outlives_kills_of_workers(tmp_path: Path, workers: int, kills: int) -> None:
    draw = random.Random(7)  # noqa: S311 -- a test's dice
    with serve(str(tmp_path), now=NOW, opener=OPENER, workers=workers) as server:
        pusher = Pusher(server.address)
        pusher.start()
        away_s = []
        for _ in range(kills):
            before, killed = len(pusher.acknowledged), time.monotonic()
            while len(pusher.acknowledged) == before:
                assert time.monotonic() < killed + 60
                time.sleep(0.01)
            away_s.append(time.monotonic() - killed)
            time.sleep(draw.random() * 0.1)
            os.kill(draw.choice(server.pids), signal.SIGKILL)
        pusher.stopping.set()
        pusher.join()
        p50, p90 = np.percentile(away_s[1:], [50, 90])
        print(  # noqa: T201
            f"\n{kills} kills of {workers} workers, {len(pusher.acknowledged)} pushes acknowledged; "
            f"the next one after {p50:.2f} s, of ten nine within {p90:.2f} s"
        )
        assert len(pusher.acknowledged) >= kills
        with closing(backend_at(tmp_path, now_ns=NOW)) as backend:
            for number in pusher.acknowledged:
                keys = [f"{number}/{part}" for part in range(20)]
                found = backend.get_online_features(["quote:bid", "flow:n"], {"symbol": keys}).to_dict()
                assert found["bid"] == [float(number)] * 20
                assert found["n"] == [1] * 20
