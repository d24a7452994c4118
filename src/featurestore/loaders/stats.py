"""What a loader measures about itself."""

import threading
import time
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Stats:
    """Counters of one loader; safe for threads.

    Attributes:
        wait_s: Time the consumer spent waiting for a batch.
        consumer_s: Time the consumer spent with its batches, between two of them.
        build_s: Time threads spent making batches, summed over threads.
    """

    batches: int = 0
    rows: int = 0
    bytes: int = 0
    wait_s: float = 0.0
    consumer_s: float = 0.0
    build_s: float = 0.0
    first_batch_s: float | None = None
    queue_depth: int = 0
    queue_depth_sum: int = 0
    _lock: Any = None
    _handed_out: float | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def built(self, seconds: float) -> None:
        """Count a batch made by a thread."""
        with self._lock:
            self.build_s += seconds

    def asked(self) -> float:
        """Note that the consumer wants a batch; returns the clock."""
        now = time.perf_counter()
        if self._handed_out is not None:
            self.consumer_s += now - self._handed_out
        return now

    def delivered(self, asked: float, *, rows: int, size: int, depth: int) -> None:
        """Note that the consumer has its batch."""
        now = time.perf_counter()
        if self.first_batch_s is None:
            self.first_batch_s = now - asked
        self.wait_s += now - asked
        self.batches += 1
        self.rows += rows
        self.bytes += size
        self.queue_depth = depth
        self.queue_depth_sum += depth
        self._handed_out = now

    def paused(self) -> None:
        """Forget when the last batch was handed out: the time until the next epoch is nobody's."""
        self._handed_out = None

    def rates(self) -> str:
        """Say how fast it is, and how much of the time the consumer waited."""
        counted = self.as_dict()
        return f"{counted['rows_per_s']:,.0f} rows/s, {counted['wait_share']:.1%} waiting"

    def as_dict(self) -> dict[str, Any]:
        """Return the counters, rates over waiting and consuming, and the share waited."""
        total = self.wait_s + self.consumer_s
        return {
            "batches": self.batches,
            "rows": self.rows,
            "bytes": self.bytes,
            "rows_per_s": self.rows / total if total else 0.0,
            "bytes_per_s": self.bytes / total if total else 0.0,
            "wait_s": self.wait_s,
            "wait_share": self.wait_s / total if total else 0.0,
            "build_s": self.build_s,
            "first_batch_s": self.first_batch_s,
            "queue_depth": self.queue_depth,
            "queue_depth_mean": self.queue_depth_sum / self.batches if self.batches else 0.0,
        }
