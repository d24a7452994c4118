"""Streaming against our own batch join: batches of 10,000 rows, the state's size beside.

    python -m benchmarks.streaming [--left 2000000 --right 1000000 --keys 1000 --batch 10000]

Both give the same table, compared before any time is reported.
"""

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.temporal.join import asof_join
from featurestore.temporal.streaming import StreamingJoin

STEP_NS = 1_000


def feeds(left: int, right: int, keys: int) -> tuple[pa.Table, pa.Table]:
    """Return two feeds over the same span, in time order, with string keys."""
    rng = np.random.default_rng(3)
    names = pa.array([f"SYM{k:04d}" for k in range(keys)])

    def feed(count: int, seed: int) -> dict[str, Any]:
        times = np.sort(np.random.default_rng(seed).integers(0, left * STEP_NS, count))
        return {"t": pa.array(times).view(pa.timestamp("ns")), "k": names.take(rng.integers(0, keys, count))}

    prices = {name: rng.normal(100, 5, right) for name in ("bid", "ask")}
    return pa.table(feed(left, 1)), pa.table(feed(right, 2) | prices)


def stream(left: pa.Table, right: pa.Table, batch: int) -> tuple[pa.Table, int]:
    """Push both feeds by time, `batch` left rows at a time; return what came out and the most rows held."""
    join, out, most = StreamingJoin("t", "k"), [], 0
    times = right["t"].cast(pa.int64()).to_numpy()
    ends = left["t"].cast(pa.int64()).to_numpy()[batch - 1 :: batch]
    cuts = [0, *np.searchsorted(times, ends, side="right").tolist(), len(right)]
    for place, begin in enumerate(range(0, len(left), batch)):
        join.push_right(right.slice(cuts[place], cuts[place + 1] - cuts[place]))
        join.push_left(left.slice(begin, batch))
        join.advance_watermark(int(ends[place]))
        out.append(join.emit())
        held = join.stats
        most = max(most, sum(held[side] or 0 for side in ("pending_left", "retained_right")))
    out.append(join.flush())
    return pa.concat_tables(out), most


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Compare answers, then report rows per second and the most rows held as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--left", type=int, default=2_000_000)
    parser.add_argument("--right", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, default=1_000)
    parser.add_argument("--batch", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args(arguments)
    left, right = feeds(asked.left // asked.batch * asked.batch, asked.right, asked.keys)
    out, most = stream(left, right, asked.batch)
    assert out.equals(asof_join(left, right, on="t", by="k"))
    seconds: dict[str, list[float]] = {"batch": [], "stream": []}
    for _ in range(asked.repeats):
        begin = time.perf_counter()
        asof_join(left, right, on="t", by="k")
        seconds["batch"].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        stream(left, right, asked.batch)
        seconds["stream"].append(time.perf_counter() - begin)
    medians = {who: statistics.median(times) for who, times in seconds.items()}
    rows = len(left) + len(right)
    report = {
        "benchmark": "streaming",
        "rows": {"left": len(left), "right": len(right), "keys": asked.keys, "batch": asked.batch},
        "medians_s": {who: round(value, 3) for who, value in medians.items()},
        "rows_per_s": {who: round(rows / value) for who, value in medians.items()},
        "share_of_batch": round(medians["batch"] / medians["stream"], 3),
        "most_rows_held": most,
    }
    print(json.dumps(report))
    return report


if __name__ == "__main__":
    main()
