"""A foreign peer that speaks HTTP/2 and knows no gRPC library: nghttp2's h2load."""

import re
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest
from tests.serve.conftest import NOW, OPENER

from featurestore.serve.proto import online_pb2 as pb
from featurestore.serve.server import serve

CALLS = 20_000


@pytest.mark.soak
def test_h2load_calls_are_all_answered(tmp_path: Path) -> None:
    h2load = shutil.which("h2load")
    if h2load is None:
        pytest.skip("h2load (nghttp2-client) is not installed")
    request = pb.GetOnlineFeaturesRequest(
        features=["quote"], entities=[pb.EntityColumn(name="symbol", strings=["A", "B"])]
    ).SerializeToString()
    body = tmp_path / "body"
    body.write_bytes(b"\0" + len(request).to_bytes(4, "big") + request)  # a gRPC frame
    online = str(tmp_path / "online")
    with serve(online, now=NOW, opener=OPENER, http_address="127.0.0.1:0", workers=2) as server:
        url = f"http://{server.address}/featurestore.v1.OnlineService/GetOnlineFeatures"
        command = [h2load, "-n", str(CALLS), "-c", "4", "-m", "8", "-d", str(body)]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers", url]
        ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
        print(ran.stdout)  # noqa: T201 -- what it measured
        assert f"{CALLS} succeeded, 0 failed, 0 errored" in ran.stdout
        with urllib.request.urlopen(f"http://{server.http_address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    counted = re.search(r'calls_total\{method="GetOnlineFeatures",status="OK"\} (\d+)', text)
    assert counted is not None
    assert int(counted[1]) == CALLS
