"""Counts and latencies in the Prometheus text format. No values, no keys: names and numbers only."""

import bisect
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Final

BUCKETS_S: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)


class Metrics:
    """One worker's counters; single-threaded, as the event loop that feeds them."""

    def __init__(self, timer: Callable[[], float] = time.perf_counter) -> None:
        """Start at zero."""
        self._timer = timer
        self._calls: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._latency: defaultdict[str, list[int]] = defaultdict(lambda: [0] * (len(BUCKETS_S) + 1))
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._cells: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._under_way = 0

    def begin(self) -> float:
        """Note that a call begins; returns what `end` needs."""
        self._under_way += 1
        return self._timer()

    def end(self, method: str, started: float, status: str) -> float:
        """Note that a call ended; returns how long it took, in seconds."""
        self._under_way -= 1
        taken = self._timer() - started
        self._calls[method, status] += 1
        self._seconds[method] += taken
        self._latency[method][bisect.bisect_left(BUCKETS_S, taken)] += 1
        return taken

    def count(self, method: str, status: str) -> None:
        """Count a call without its time."""
        self._calls[method, status] += 1

    def cells(self, view: str, status: str, count: int) -> None:
        """Count answered rows of a view by status."""
        self._cells[view, status] += count

    def text(self, newest_ns: Mapping[str, int], now_ns: int) -> str:
        """Return everything in the Prometheus text format, version 0.0.4.

        Args:
            newest_ns: The newest event of each view.
        """
        lines = ["# TYPE featurestore_calls_total counter"]
        for (method, status), count in sorted(self._calls.items()):
            lines.append(f'featurestore_calls_total{{method="{method}",status="{status}"}} {count}')
        lines.append("# TYPE featurestore_call_seconds histogram")
        for method, counts in sorted(self._latency.items()):
            total = 0
            for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), counts, strict=True):
                total += count
                lines.append(f'featurestore_call_seconds_bucket{{method="{method}",le="{bound}"}} {total}')
            lines.append(f'featurestore_call_seconds_sum{{method="{method}"}} {self._seconds[method]:.6f}')
            lines.append(f'featurestore_call_seconds_count{{method="{method}"}} {total}')
        lines.append("# TYPE featurestore_rows_total counter")
        for (view, status), count in sorted(self._cells.items()):
            lines.append(f'featurestore_rows_total{{view="{view}",status="{status}"}} {count}')
        lines.append("# TYPE featurestore_freshness_seconds gauge")
        for view, newest in sorted(newest_ns.items()):
            age = (now_ns - newest) / 1e9
            lines.append(f'featurestore_freshness_seconds{{view="{view}"}} {age:.6f}')
        lines += [
            "# TYPE featurestore_calls_under_way gauge",
            f"featurestore_calls_under_way {self._under_way}",
        ]
        return "\n".join(lines) + "\n"
