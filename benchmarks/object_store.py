"""A root in a store of objects against one on a local disk: writing, reading with a cold and a warm cache.

Real ticks where they are there (FEATURESTORE_TICKS), the generated ones of the demo otherwise. The store is
moto's S3 server in a process of its own on this machine: no network and no durability, so the figures are
what the protocol, the copies and the checks cost, and the requests say what a real store's latency adds.
"""

import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import s3fs  # type: ignore[import-untyped] # it has no types
from benchmarks.measure import OURS, Workload, compare

import featurestore as fs
from featurestore.demo.ticks import TickSize, write_ticks
from featurestore.storage.cache import file_cache
from featurestore.storage.files import is_remote

TICKS = Path(os.environ.get("FEATURESTORE_TICKS", Path(__file__).parents[2] / "shared" / "data" / "ticks"))
BUCKET = "bench"


@contextmanager
def server() -> Iterator[dict[str, Any]]:
    """Run moto's S3 server; yields the options that reach it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    options = {
        "key": "t",
        "secret": "t",
        "client_kwargs": {"endpoint_url": f"http://127.0.0.1:{port}", "region_name": "eu-west-1"},
    }
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            for _ in range(300):
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            s3fs.S3FileSystem(**options).mkdir(BUCKET)
            yield options
        finally:
            running.kill()


def tick_folder(scratch: Path) -> Path:
    """Return a folder with `trades` and `quotes`, one Parquet file a day."""
    if TICKS.is_dir():
        return TICKS
    days = ["2025-06-02", "2025-06-03"]
    for _ in write_ticks(scratch / "ticks", days, seed=20250602, size=TickSize()):
        pass
    return scratch / "ticks"


def definitions() -> list[Any]:
    """Trades as examples, the market's state and its recent flow as features, the next minute as label."""
    symbol = fs.Entity("symbol")
    quotes = fs.Source("quotes", path="ticks/quotes", timestamp_field="ts", entities=[symbol])
    trades = fs.Source("trades", path="ticks/trades", timestamp_field="ts", entities=[symbol])
    quote = fs.FeatureView(
        "quote",
        source=quotes,
        entities=[symbol],
        features={"bid": "bid", "ask": "ask", "spread": "ask - bid"},
        nulls="last_known",
        ttl="5s",
    )
    flow = fs.FeatureView(
        "flow",
        source=trades,
        entities=[symbol],
        aggregations=[
            fs.Aggregation("size", "sum", "60s", name="volume"),
            fs.Aggregation("price", "mean", "60s", name="average"),
        ],
    )
    label = fs.Label("later", source=trades, expression="mean(price)", horizon="60s")
    return [fs.TrainingSet("trades_set", spine=trades, features=[quote, flow], labels=[label])]


def fill(origin: Path, root: str, options: dict[str, Any]) -> None:
    """Copy the ticks below a root."""
    filesystem, inside = fsspec.core.url_to_fs(root, **options)
    for path in sorted(origin.rglob("*.parquet")):
        target = f"{inside}/ticks/{path.relative_to(origin).as_posix()}"
        filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
        filesystem.pipe_file(target, path.read_bytes())


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Count requests by operation while the block runs."""
    counts: dict[str, int] = {}
    plain = s3fs.S3FileSystem._call_s3

    async def call(self: Any, method: str, *args: Any, **given: Any) -> Any:
        counts[method] = counts.get(method, 0) + 1
        return await plain(self, method, *args, **given)

    s3fs.S3FileSystem._call_s3 = call
    try:
        yield counts
    finally:
        s3fs.S3FileSystem._call_s3 = plain


def run() -> list[Workload]:
    """Measure writing and reading, local and remote."""
    with server() as options, tempfile.TemporaryDirectory(prefix="fs-bench-") as folder:
        scratch = Path(folder)
        origin = tick_folder(scratch)
        local = _opened(origin, str(scratch / "local"), {}, scratch)
        remote = _opened(origin, f"s3://{BUCKET}/root", options, scratch)
        return [_writing(local, remote), _unchanged(local, remote), _reading(local, remote, scratch)]


def _opened(origin: Path, root: str, options: dict[str, Any], scratch: Path) -> fs.FeatureStore:
    if not is_remote(root):
        Path(root).mkdir(parents=True)
    fill(origin, root, options)
    settings = {
        "storage_options": options,
        "buckets": 4,
        "cache": {"path": str(scratch / "cache"), "size": "2GB"},
    }
    store = fs.FeatureStore(root, settings)
    store.apply(definitions())
    return store


def _writing(local: fs.FeatureStore, remote: fs.FeatureStore) -> Workload:
    """Materialize a version each time: the range's end moves, so nothing is reused."""
    rows = local.materialize("trades_set").rows
    remote.materialize("trades_set")
    mine, theirs = local.dataset("trades_set"), remote.dataset("trades_set")
    assert mine.fingerprint == theirs.fingerprint
    assert theirs.verify().rows == rows
    last = pc.max(mine.to_arrow(["ts"]).column("ts")).cast(pa.int64()).as_py()
    ends = itertools.count(last + 1)

    def write(store: fs.FeatureStore) -> Callable[[], object]:
        return lambda: store.materialize("trades_set", end=next(ends))

    with counted() as requests:
        result = remote.materialize("trades_set", end=next(ends))
    engines = {OURS: write(local), "s3 (moto)": write(remote)}
    found = compare("materialize", engines, rows=rows, repeats=5)
    found.notes["requests"] = dict(requests)
    found.notes["partitions"] = result.partitions
    found.notes["written_bytes"] = result.written_bytes
    return found


def _unchanged(local: fs.FeatureStore, remote: fs.FeatureStore) -> Workload:
    """Find out that there is nothing to do."""
    for store in (local, remote):
        store.materialize("trades_set")
        assert not store.materialize("trades_set").created
    rows = local.dataset("trades_set").num_rows
    engines = {
        OURS: lambda: local.materialize("trades_set"),
        "s3 (moto)": lambda: remote.materialize("trades_set"),
    }
    with counted() as requests:
        remote.materialize("trades_set")
    found = compare("nothing to do", engines, rows=rows, repeats=5)
    found.notes["requests"] = dict(requests)
    return found


def _reading(local: fs.FeatureStore, remote: fs.FeatureStore, scratch: Path) -> Workload:
    """Open the newest version and touch every value."""
    rows = local.dataset("trades_set").num_rows

    def read(store: fs.FeatureStore) -> int:
        return int(store.dataset("trades_set").to_arrow().nbytes)

    def first() -> int:
        shutil.rmtree(scratch / "cache" / "objects", ignore_errors=True)
        (scratch / "cache" / "INDEX").unlink(missing_ok=True)
        file_cache.cache_clear()  # as a new process
        return read(remote)

    def second() -> int:
        file_cache.cache_clear()
        return read(remote)

    assert read(local) == first() == second()
    with counted() as cold:
        first()
    with counted() as warm:
        second()
    engines: dict[str, Callable[[], object]] = {
        OURS: lambda: read(local),
        "s3 (moto), first": first,
        "s3 (moto), again": second,
    }
    found = compare("open and read", engines, rows=rows, repeats=7)
    found.notes["requests first"] = dict(cold)
    found.notes["requests again"] = dict(warm)
    return found
