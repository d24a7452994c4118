"""Materializing a training set: Parquet in, Delta and Arrow out, fsync and commit included.

Against Polars' streaming join_asof into sink_parquet, DuckDB's ASOF JOIN into COPY, and a bare copy of the
same rows with our own writers and no join, for both formats and for each. Answers are compared before
anything is timed; peak memory is that of a process of its own. By default 2 M spine rows x 1 M view rows;
`FEATURESTORE_BENCH=large` takes 20 M x 10 M. Polars and DuckDB write Parquet alone and fsync nothing; we
write Parquet and the Arrow version, hash both, sort, fsync and commit.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from benchmarks.measure import OURS, Workload, compare

import featurestore as fs
from featurestore.catalog.catalog import open_catalog
from featurestore.core.clock import SystemClock
from featurestore.core.config import StoreConfig
from featurestore.core.time import DAY_NS
from featurestore.materialize.context import Context, home_of, source_spec
from featurestore.materialize.job import Job
from featurestore.materialize.plan import plan_materialization
from featurestore.materialize.training_set import materialize
from featurestore.materialize.versions import open_version
from featurestore.storage.ipc import write_ipc
from featurestore.storage.parquet import read_parquet, write_parquet
from featurestore.storage.sources import open_source

LARGE = os.environ.get("FEATURESTORE_BENCH") == "large"
SPINE, ROWS = (20_000_000, 10_000_000) if LARGE else (2_000_000, 1_000_000)
DAYS, KEYS = 10, 10_000
UTC = pa.timestamp("ns", "UTC")
VALUES = ["v0", "v1", "v2", "v3"]


def write_sources(root: Path, spine: int, rows: int) -> None:
    """Write both sides as one Parquet file per day, in time order: what Polars' join needs."""
    rng = np.random.default_rng(5)
    for name, count, columns in (("spine", spine, ["x"]), ("events", rows, VALUES)):
        (root / name).mkdir(parents=True)
        for day in range(DAYS):
            own = count // DAYS
            ts = np.sort(rng.integers(0, DAY_NS, own)) + (16_000 + day) * DAY_NS
            table: dict[str, Any] = {"key": rng.integers(0, KEYS, own), "ts": pa.array(ts).view(UTC)}
            table |= {c: rng.normal(size=own) for c in columns}
            pq.write_table(pa.table(table), root / name / f"d{day:02d}.parquet", compression="zstd")


def store(root: Path) -> Context:
    """Define the training set over the sources."""
    key = fs.Entity("key")
    spine = fs.Source("spine", path="spine", timestamp_field="ts", entities=[key])
    events = fs.Source("events", path="events", timestamp_field="ts", entities=[key])
    view = fs.FeatureView("view", source=events, entities=[key], features=VALUES, ttl="1d")
    catalog = open_catalog(root, read_schema=lambda s: open_source(source_spec(s), str(root)).schema)
    catalog.apply([fs.TrainingSet("set", spine=spine, features=[view])])
    config = StoreConfig(buckets=8, memory_bytes=1_000_000_000)
    return Context(str(root), catalog.at(catalog.head), SystemClock(), config)


def ours(context: Context) -> int:
    """Materialize from nothing."""
    return materialize(context, "set").rows


def remove(*paths: Path) -> None:
    """Remove what the run before wrote: freeing its pages is no part of the next."""
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)


def polars_join(root: Path, out: Path) -> None:
    """Join and write with Polars' streaming engine."""
    left = pl.scan_parquet(root / "spine" / "*.parquet").set_sorted("ts")
    right = pl.scan_parquet(root / "events" / "*.parquet").set_sorted("ts")
    right = right.with_columns(pl.col("ts").alias("at"))
    joined = left.join_asof(right, on="ts", by="key", tolerance="1d", check_sortedness=False)
    joined.drop("at").sink_parquet(out, compression="zstd", compression_level=1, engine="streaming")


def duckdb_join(root: Path, out: Path) -> None:
    """Join and write with DuckDB."""
    connection = duckdb.connect()
    # DuckDB has no arithmetic on nanosecond timestamps with a zone.
    fresh = f"epoch_ns(e.ts) >= epoch_ns(s.ts) - {DAY_NS}"
    values = ", ".join(f"CASE WHEN {fresh} THEN {v} END AS {v}" for v in VALUES)
    connection.execute(
        f"COPY (SELECT s.*, {values} FROM '{root}/spine/*.parquet' s "  # noqa: S608 -- our own paths
        f"ASOF LEFT JOIN '{root}/events/*.parquet' e ON s.key = e.key AND s.ts >= e.ts) "
        f"TO '{out}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)"
    )
    connection.close()


def copy_parquet(context: Context, out: Path) -> None:
    """Read the Parquet that was written and write it again, hashed and fsynced: no join, no sort."""
    out.mkdir()
    for path in sorted(Path(str(home_of(context, "set").delta)).rglob("*.parquet")):
        write_parquet(out, read_parquet(path), times=("ts",), sort=("key", "ts"))


def copy_arrow(context: Context, out: Path) -> None:
    """Write the Arrow mirror once more from memory-mapped shards: what it adds to the Delta table."""
    out.mkdir()
    shards = open_version(context, "set", verify="off").shards()
    for index, view in enumerate(shards):
        write_ipc(out / f"{index}.arrow", view.table.combine_chunks().to_batches()[0])


def copy(context: Context, out: Path) -> None:
    """Write the same bytes as we do with the same writers: Parquet and Arrow."""
    copy_parquet(context, out)
    copy_arrow(context, out.with_name("arrow"))


def peak_memory(root: Path) -> dict[str, int]:
    """Materialize in a process of its own; returns its peak and what imports alone take, in bytes (Linux)."""
    program = (
        "import sys; from pathlib import Path; from benchmarks import materialize as m\n"
        "status = lambda: Path('/proc/self/status').read_text()\n"
        "peak = lambda: 1024 * int(status().split('VmHWM:')[1].split()[0])\n"
        "before = peak(); m.ours(m.store(Path(sys.argv[1]))); print(before, peak())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(root)], capture_output=True, text=True, check=True
    )
    before, peak = map(int, done.stdout.split())
    return {"imports_bytes": before, "peak_bytes": peak}


def check(context: Context, root: Path, out: Path) -> None:
    """Compare rows and sums of every value with Polars and DuckDB."""
    stored = open_version(context, "set").to_arrow(VALUES)
    assert stored.num_rows == SPINE
    for join in (polars_join, duckdb_join):
        join(root, out)
        theirs = pq.read_table(out, columns=VALUES)
        for name in VALUES:
            assert stored.column(name).null_count == theirs.column(name).null_count, (join.__name__, name)
            assert abs(pc.sum(stored.column(name)).as_py() - pc.sum(theirs.column(name)).as_py()) < 1e-3


def plan_only() -> Workload:
    """Plan 10^12 rows in 10^5 partitions from made-up statistics: no data."""
    partitions = {(16_000 + day, bucket): 10_000_000 for day in range(1000) for bucket in range(100)}
    source = SimpleNamespace(name="events")
    rows = SimpleNamespace(source=source, look_back_ns=3600 * 10**9, look_ahead_ns=0, keys=("key",))
    job = cast("Job", SimpleNamespace(name="huge", rows={"events": rows}, buckets=100))
    tracemalloc.start()
    plan = plan_materialization(job, partitions, task_rows=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (plan.rows, plan.tasks) == (10**12, 100_000)
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        plan_materialization(job, partitions, task_rows=1 << 20)
        seconds.append(time.perf_counter() - begin)
    notes = {"rows": plan.rows, "tasks": plan.tasks, "peak_bytes": peak}
    return Workload("plan of 10^12 rows, 10^5 partitions", 10**12, {OURS: seconds}, {}, notes)


def run() -> list[Workload]:
    """Compare on one pair of sources."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        out = root / "out.parquet"
        copied, mirrored, stored = root / "copy", root / "arrow", root / "datasets"
        write_sources(root, SPINE, ROWS)
        context = store(root)
        ours(context)
        check(context, root, out)
        workload = compare(
            f"{SPINE:,} x {ROWS:,} rows, Parquet to Delta",
            {
                OURS: lambda: ours(context),
                "polars": lambda: polars_join(root, out),
                "duckdb": lambda: duckdb_join(root, out),
                "copy": lambda: copy(context, copied),
                "copy, Parquet alone": lambda: copy_parquet(context, copied),
                "copy, Arrow alone": lambda: copy_arrow(context, mirrored),
            },
            prepare={
                OURS: lambda: remove(stored),
                "polars": lambda: remove(out),
                "duckdb": lambda: remove(out),
                "copy": lambda: remove(copied, mirrored),
                "copy, Parquet alone": lambda: remove(copied),
                "copy, Arrow alone": lambda: remove(mirrored),
            },
            rows=SPINE,
            repeats=2 if LARGE else 3,
            goals={"polars": 2.5, "duckdb": 3.5, "copy": 1 / 1.4},
        )
        remove(stored)
        workload.notes.update(peak_memory(root))
    return [workload, plan_only()]
