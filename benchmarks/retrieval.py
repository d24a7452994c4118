"""Retrieval from a stored view: many rows against Polars in memory, a hundred by the clock; opening versions.

By default a view of 2 M rows and a spine of 200 k; `FEATURESTORE_BENCH=large` takes 20 M and 1 M.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from benchmarks.materialize import DAYS, KEYS, UTC, VALUES, store, write_sources
from benchmarks.measure import OURS, Workload, compare

from featurestore.core.time import DAY_NS
from featurestore.materialize.context import Context
from featurestore.materialize.retrieval import RetrievalJob, historical_features
from featurestore.materialize.training_set import materialize
from featurestore.materialize.versions import open_version, rollback

LARGE = os.environ.get("FEATURESTORE_BENCH") == "large"
ROWS, SPINE = (20_000_000, 1_000_000) if LARGE else (2_000_000, 200_000)


def spine_of(rows: int, seed: int, *, days: int = DAYS) -> pa.Table:
    """Draw readers, in time order."""
    rng = np.random.default_rng(seed)
    ts = np.sort(rng.integers(0, days * DAY_NS, rows)) + 16_000 * DAY_NS
    return pa.table({"key": rng.integers(0, KEYS, rows), "ts": pa.array(ts).view(UTC)})


def job_of(context: Context, spine: pa.Table) -> RetrievalJob:
    """Plan the four values of the view."""
    return historical_features(
        context,
        spine,
        ["view"],
        full_feature_names=False,
        as_of_ns=None,
        timestamps=False,
        timestamp_field=None,
        key_map={},
    )


def run() -> list[Workload]:
    """Compare on one stored view."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_sources(root, 10_000, ROWS)
        context = store(root)
        materialize(context, "view")
        spine = spine_of(SPINE, 1)
        left: Any = pl.from_arrow(spine)
        left = left.set_sorted("ts")
        right = pl.read_parquet(root / "events" / "*.parquet").set_sorted("ts")

        def theirs() -> pl.DataFrame:
            joined: pl.DataFrame = left.join_asof(
                right, on="ts", by="key", tolerance="1d", check_sortedness=False
            )
            return joined

        mine, other = job_of(context, spine).to_arrow(), theirs().to_arrow()
        for name in VALUES:
            assert mine.column(name).equals(other.column(name).cast(mine.schema.field(name).type)), name
        many = compare(
            f"{SPINE:,} readers of {ROWS:,} stored rows",
            {OURS: lambda: job_of(context, spine).to_arrow(), "polars": theirs},
            rows=SPINE,
            repeats=7,
            goals={"polars": 8.0},
        )
        return [many, _few(context), _opening(context)]


def _few(context: Context) -> Workload:
    """A hundred readers within one hour."""
    spine = spine_of(100, 2)
    ts = pa.array(np.asarray(spine.column("ts").cast(pa.int64())) % (3600 * 10**9) + 16_005 * DAY_NS).view(
        UTC
    )
    spine = spine.set_column(1, "ts", ts)
    text = job_of(context, spine).explain()
    found = compare("100 readers", {OURS: lambda: job_of(context, spine).to_arrow()}, rows=100, repeats=9)
    return Workload(found.name, 100, found.seconds, {}, {"limit_s": 0.05, "explain": text})


def _opening(context: Context) -> Workload:
    """Open a version by number and the newest among a hundred."""
    for _ in range(100):
        rollback(context, "view", 1)
    seconds = []
    for number in range(9):
        begin = time.perf_counter()
        assert open_version(context, "view", 1 + number, verify="lazy").version == 1 + number
        seconds.append(time.perf_counter() - begin)
    return Workload("open one of 101 versions", 1, {OURS: seconds}, {}, {"limit_s": 0.05})
