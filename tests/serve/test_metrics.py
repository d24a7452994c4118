"""Counts: exact, of all workers in one scrape, and never going back."""

import os
import re
import signal
import time
import urllib.request
from pathlib import Path

from tests.serve.conftest import NOW, OPENER
from tests.serve.house import quotes

from featurestore.errors import FeatureStoreError
from featurestore.serve.grpc_client import OnlineClient
from featurestore.serve.metrics import Metrics
from featurestore.serve.server import serve


def value(text: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_a_histogram_counts_each_call_in_its_bucket_and_all_above() -> None:
    now = [0.0]
    metrics = Metrics(lambda: now[0])
    for taken in (0.0001, 0.0002, 9.0):
        started = metrics.begin()
        now[0] += taken
        metrics.end("Get", started, "OK")
    text = metrics.text({}, 0)
    bucket = 'featurestore_call_seconds_bucket{method="Get",le='
    counts = [value(text, f'{bucket}"{bound}"}}') for bound in ("0.0001", "0.00025", "5.0", "+Inf")]
    assert counts == [1, 2, 2, 3]
    assert value(text, 'featurestore_call_seconds_sum{method="Get"}') == 9.0003
    assert value(text, 'featurestore_calls_total{method="Get",status="OK"}') == 3
    assert value(text, "featurestore_calls_under_way") == 0


def test_freshness_is_the_age_of_the_newest_event() -> None:
    text = Metrics().text({"quote@1": 1_500_000_000}, 4_000_000_000)
    assert value(text, 'featurestore_freshness_seconds{view="quote@1"}') == 2.5


def test_siblings_are_told_together_and_the_dead_keep_their_counts_but_no_gauges(tmp_path: Path) -> None:
    one, two = Metrics(folder=tmp_path), Metrics(folder=tmp_path)
    for metrics, calls in ((one, 3), (two, 4)):
        for _ in range(calls):
            metrics.end("Get", metrics.begin(), "OK")
        metrics.cells("quote@1", "PRESENT", calls)
        metrics.begin()
        metrics.queued(calls)
    for text in (one.text({}, 0), two.text({}, 0)):
        assert value(text, 'featurestore_calls_total{method="Get",status="OK"}') == 7
        assert value(text, 'featurestore_rows_total{view="quote@1",status="PRESENT"}') == 7
        assert value(text, "featurestore_calls_under_way") == 2
        assert value(text, 'featurestore_queue_depth{queue="write"}') == 7
    two.close()
    text = one.text({}, 0)
    one.close()
    assert value(text, 'featurestore_calls_total{method="Get",status="OK"}') == 7
    assert value(text, "featurestore_calls_under_way") == 1
    assert value(text, 'featurestore_queue_depth{queue="write"}') == 3


def scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def test_any_worker_tells_the_calls_of_all_also_of_those_that_were_killed(tmp_path: Path) -> None:
    done = 0
    name = 'featurestore_calls_total{method="GetOnlineFeatures",status="OK"}'
    options = {"now": NOW, "opener": OPENER, "http_address": "127.0.0.1:0"}
    with serve(str(tmp_path), workers=2, **options) as server:  # type: ignore[arg-type] # as users write it
        assert server.http_address is not None
        with OnlineClient(server.address) as client:
            client.push("quotes", quotes([{"symbol": "A", "ts": 990, "bid": 1.0}]))
        for round_ in range(2):
            for _ in range(8):  # each a connection of its own: the kernel spreads them over the workers
                with OnlineClient(server.address) as client:
                    client.get_online_features(["quote"], {"symbol": ["A"]})
                done += 1
            assert [value(scrape(server.http_address), name) for _ in range(8)] == [done] * 8
            if round_ == 0:
                killed = server.pids[0]
                os.kill(killed, signal.SIGKILL)
                until = time.monotonic() + 20
                while killed in server.pids or not _answers(server.address):
                    assert time.monotonic() < until
                    time.sleep(0.02)


def _answers(address: str) -> bool:
    try:
        with OnlineClient(address, timeout_s=1.0, retries=0) as client:
            client.list_features()
    except FeatureStoreError:
        return False
    return True
