"""Counts and latencies in the Prometheus text format. No values, no keys: names and numbers only.

A worker counts in a file that its siblings map: whichever of them is scraped tells the sums of all. The file
outlives a worker that is killed, so counters never go back while the server runs.
"""

import bisect
import fcntl
import json
import mmap
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

BUCKETS_S: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)
_SLOTS: Final = 1 << 20  # a sparse file: only touched pages take room
_KEPT_FREE: Final = 1 << 10
_BYTES: Final = 8 * _SLOTS
_UNDER_WAY: Final = "featurestore_calls_under_way"
_QUEUE: Final = "featurestore_queue_depth"
_GAUGES: Final = (_UNDER_WAY, _QUEUE)
_TYPES: Final = (
    ("featurestore_calls_total", "counter"),
    ("featurestore_call_seconds", "histogram"),
    ("featurestore_rows_total", "counter"),
    (_UNDER_WAY, "gauge"),
    (_QUEUE, "gauge"),
)
Samples = Mapping[str, float]


class Metrics:
    """One worker's counters; single-threaded, as the event loop that feeds them.

    Cost: about a microsecond a call, with or without a folder.
    """

    def __init__(
        self, timer: Callable[[], float] = time.perf_counter, folder: str | os.PathLike[str] | None = None
    ) -> None:
        """Start at zero; with a folder, siblings that name it too are told together."""
        self._timer = timer
        self._folder = None if folder is None else Path(folder)
        self._file: _CountFile | None = None
        if self._folder is None:
            self._counts = memoryview(mmap.mmap(-1, _BYTES)).cast("d")
        else:
            self._file = _CountFile(self._folder)
            self._counts = self._file.counts
        self._names: list[str] = []
        self._methods: dict[str, int] = {}
        self._slots: dict[tuple[str, str, str], int] = {}
        self._under_way = self._slot(_UNDER_WAY)
        self._queued = self._slot(f'{_QUEUE}{{queue="write"}}')

    def begin(self) -> float:
        """Note that a call begins; returns what `end` needs."""
        self._counts[self._under_way] += 1
        return self._timer()

    def end(self, method: str, started: float, status: str) -> float:
        """Note that a call ended; returns how long it took, in seconds."""
        counts = self._counts
        counts[self._under_way] -= 1
        taken = self._timer() - started
        self.count(method, status)
        first = self._methods.get(method) or self._histogram(method)
        counts[first + bisect.bisect_left(BUCKETS_S, taken)] += 1
        counts[first + len(BUCKETS_S) + 1] += taken
        return taken

    def count(self, method: str, status: str, calls: int = 1) -> None:
        """Count calls without their time."""
        key = ("calls", method, status)
        slot = self._slots.get(key)
        if slot is None:
            name = f'featurestore_calls_total{{method="{method}",status="{status}"}}'
            slot = self._slots[key] = self._slot(name)
        self._counts[slot] += calls

    def cells(self, view: str, status: str, count: int) -> None:
        """Count answered rows of a view by status."""
        slot = self._slots.get(("rows", view, status))
        self._counts[self._row_slot(view, status) if slot is None else slot] += count

    def queued(self, change: int) -> None:
        """Note that a write was taken in, or that it is done: what is between waits for a commit."""
        self._counts[self._queued] += change

    def text(self, newest_ns: Mapping[str, int], now_ns: int) -> str:
        """Return everything, of all workers, in the Prometheus text format, version 0.0.4.

        Args:
            newest_ns: The newest event of each view.
        """
        found = self._samples()
        lines: list[str] = []
        for kind, word in _TYPES:
            lines.append(f"# TYPE {kind} {word}")
            mine = {name: value for name, value in found.items() if name.partition("{")[0] == kind}
            lines += _histogram_lines(mine) if word == "histogram" else _lines(mine)
        lines.append("# TYPE featurestore_freshness_seconds gauge")
        for view, newest in sorted(newest_ns.items()):
            age = (now_ns - newest) / 1e9
            lines.append(f'featurestore_freshness_seconds{{view="{view}"}} {age:.6f}')
        return "\n".join(lines) + "\n"

    def close(self) -> None:
        """Let go of the file; what it counted stays in the sums."""
        if self._file is not None:
            self._file.close()

    def _samples(self) -> Samples:
        if self._file is None or self._folder is None:
            return dict(zip(self._names, self._counts, strict=False))
        out: defaultdict[str, float] = defaultdict(float)
        for name, value in _of_all(self._folder, self._file.path):
            out[name] += value
        return out

    def _slot(self, name: str) -> int:
        """Give a name its place."""
        self._names.append(name)
        if self._file is not None:
            self._file.name(name)
        return len(self._names) - 1

    def _row_slot(self, view: str, status: str) -> int:
        key = ("rows", view if len(self._names) < _SLOTS - _KEPT_FREE else "others", status)
        if key not in self._slots:
            self._slots[key] = self._slot(f'featurestore_rows_total{{view="{key[1]}",status="{status}"}}')
        return self._slots[key]

    def _histogram(self, method: str) -> int:
        """Lay out a method's buckets side by side, then the sum of seconds; returns the first place."""
        first = self._methods[method] = len(self._names)
        for part in (*map(str, BUCKETS_S), "+Inf", "sum"):
            self._slot(f"featurestore_call_seconds{{{method}|{part}}}")
        return first


class _CountFile:
    """A worker's counts in two files: numbers that are mapped, and their names, one a line, in order."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = folder / f"{os.getpid()}-{time.monotonic_ns()}.counts"
        self._names = self.path.with_suffix(".names").open("a", encoding="utf-8")
        self._handle = self.path.open("w+b")
        # Held for as long as this process lives: siblings tell the living from the dead by it.
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        self._handle.truncate(_BYTES)
        self._map = mmap.mmap(self._handle.fileno(), _BYTES)
        self.counts = memoryview(self._map).cast("d")

    def name(self, name: str) -> None:
        self._names.write(json.dumps(name) + "\n")
        self._names.flush()

    def close(self) -> None:
        # The map holds the file open, and with it the lock.
        fcntl.flock(self._handle, fcntl.LOCK_UN)
        self._names.close()
        self._handle.close()


def _of_all(folder: Path, mine: Path) -> Iterator[tuple[str, float]]:
    """Yield every worker's counts; of the dead no gauges."""
    for path in folder.glob("*.counts"):
        with path.open("rb") as handle:
            # A line without its end is being written; its count is still zero.
            names = path.with_suffix(".names").read_text(encoding="utf-8").split("\n")[:-1]
            counts = memoryview(handle.read(8 * len(names))).cast("d")
            lives = path == mine or _is_locked(handle.fileno())
        for name, value in zip((json.loads(line) for line in names), counts, strict=False):
            if lives or not name.startswith(_GAUGES):
                yield name, value


def _is_locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def _lines(found: Samples) -> list[str]:
    return [f"{name} {value:.0f}" for name, value in sorted(found.items())]


def _histogram_lines(found: Samples) -> list[str]:
    """Write buckets as the running totals that the format wants."""
    methods: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for name, value in found.items():
        method, _, bound = name.partition("{")[2].removesuffix("}").rpartition("|")
        methods[method][bound] = value
    lines = []
    for method, counts in sorted(methods.items()):
        total = 0.0
        for bound in (*map(str, BUCKETS_S), "+Inf"):
            total += counts.get(bound, 0.0)
            lines.append(f'featurestore_call_seconds_bucket{{method="{method}",le="{bound}"}} {total:.0f}')
        lines.append(f'featurestore_call_seconds_sum{{method="{method}"}} {counts.get("sum", 0.0):.6f}')
        lines.append(f'featurestore_call_seconds_count{{method="{method}"}} {total:.0f}')
    return lines
