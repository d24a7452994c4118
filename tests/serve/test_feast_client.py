"""Feast's own package, in a virtual environment of its own, as a client of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from featurestore.serve.grpc_client import OnlineClient
from featurestore.serve.server import ServerHandle

FEAST = "feast[grpcio]==0.67.0"
SCRIPT = Path(__file__).with_name("feast_script.py")


def feast_python() -> Path:
    """Return the interpreter of an environment with feast, made on first use in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "featurestore-tests"
    folder = cache / "feast-0.67.0"
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        made = subprocess.run([str(python), "-m", "pip", "install", "-q", FEAST], check=False)
        if made.returncode:
            pytest.skip(f"{FEAST} cannot be installed here")
        (folder / "done").touch()
    return python


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_feasts_own_clients_read_and_push(server: ServerHandle) -> None:
    assert server.http_address is not None
    command = [str(feast_python()), str(SCRIPT), server.address, server.http_address]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"FEAST_USAGE": "False"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr[-3000:]
    line = next(x for x in ran.stdout.splitlines() if x.startswith("RESULT "))
    out: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    assert out["info"] == "0.1.0"
    assert out["serving"] == out["listen"]
    assert out["serving"]["symbol"]["values"] == ["IBM", "AIG", "none"]
    assert out["serving"]["bid"] == {"values": [3.0, None, None], "statuses": [1, 4, 3], "nanos": [990, 0, 0]}
    assert out["serving"]["mid"]["statuses"] == [2, 4, 3]
    assert out["serving"]["venue"]["values"] == ["Q", None, None]
    assert out["push"] is True
    assert out["pushed"] == 4.5
    assert out["remote"] == {
        "symbol": ["IBM", "none"],
        "bid": [3.0, None],
        "venue": ["Q", None],
        "size": [-7, None],
    }
    with OnlineClient(server.address) as client:
        found = client.get_online_features(["quote:bid"], {"symbol": ["W"]})
        assert found.statuses()["bid"] == ["OUTSIDE_MAX_AGE"]  # its event is at 0, the ttl 50 ns
