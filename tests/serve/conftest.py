"""One server for the tests that only read; each test that changes a server's life starts its own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.serve.house import quotes

from featurestore.serve.grpc_client import OnlineClient
from featurestore.serve.server import ServerHandle, serve

ROOT = Path(__file__).parents[2]
OPENER = "tests.serve.house:open_for_worker"
NOW = 1000


@pytest.fixture(scope="session", autouse=True)
def _workers_find_the_tests() -> Iterator[None]:
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHandle]:
    folder = tmp_path_factory.mktemp("online")
    with serve(str(folder), now=NOW, opener=OPENER, http_address="127.0.0.1:0") as handle:
        with OnlineClient(handle.address) as client:
            client.push(
                "quotes",
                quotes(
                    [
                        {"symbol": "IBM", "ts": 980, "bid": 1.0, "ask": 2.0, "venue": "N", "size": 5},
                        {"symbol": "IBM", "ts": 990, "bid": 3.0, "venue": "Q", "size": -7, "seq": 1},
                        {"symbol": "AIG", "ts": 100, "bid": 3.0, "ask": 4.0},
                    ]
                ),
            )
        yield handle


@pytest.fixture
def client(server: ServerHandle) -> Iterator[OnlineClient]:
    with OnlineClient(server.address) as client:
        yield client
