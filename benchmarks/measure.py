"""Timing engines side by side: answers first, then alternating runs, medians and ratios."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

OURS = "featurestore"


@dataclass(frozen=True)
class Workload:
    """The seconds of every engine on one workload, ours among them.

    Attributes:
        name: what was done.
        rows: rows per run, for a rate.
        seconds: per engine, every run.
        goals: how many times faster than an engine ours should be.
        notes: anything else that was measured.
    """

    name: str
    rows: int
    seconds: dict[str, list[float]]
    goals: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def medians(self) -> dict[str, float]:
        """Median seconds per engine."""
        return {engine: statistics.median(runs) for engine, runs in self.seconds.items()}

    @property
    def ratios(self) -> dict[str, float]:
        """How many times longer each other engine takes."""
        medians = self.medians
        return {e: s / medians[OURS] for e, s in medians.items() if e != OURS and OURS in medians}

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self) | {"medians_s": self.medians, "ratios": self.ratios}


def compare(
    name: str,
    engines: Mapping[str, Callable[[], object]],
    *,
    rows: int,
    repeats: int = 7,
    goals: Mapping[str, float] | None = None,
    slow_s: float = 5.0,
    prepare: Mapping[str, Callable[[], object]] | None = None,
) -> Workload:
    """Run the engines in turn, `repeats` times after one warm-up; an engine slower than `slow_s` runs twice.

    What `prepare` has for an engine is done before each of its runs and not timed.
    Alternating spreads what else the machine does over all engines alike. The notes hold each engine's median
    of processor seconds, which other work on the machine moves less.
    """
    seconds: dict[str, list[float]] = {engine: [] for engine in engines}
    cpu: dict[str, list[float]] = {engine: [] for engine in engines}
    ready = dict(prepare or {})
    for engine, run in engines.items():
        ready.get(engine, _nothing)()
        begin, used = time.perf_counter(), time.process_time()
        run()
        if time.perf_counter() - begin > slow_s:
            seconds[engine].append(time.perf_counter() - begin)
            cpu[engine].append(time.process_time() - used)
    for _ in range(repeats):
        for engine, run in engines.items():
            if seconds[engine] and seconds[engine][0] > slow_s and len(seconds[engine]) > 1:
                continue
            ready.get(engine, _nothing)()
            gc.collect()
            begin, used = time.perf_counter(), time.process_time()
            result = run()
            seconds[engine].append(time.perf_counter() - begin)
            cpu[engine].append(time.process_time() - used)
            del result
    notes = {"cpu_s": {engine: round(statistics.median(runs), 4) for engine, runs in cpu.items()}}
    return Workload(name, rows, seconds, dict(goals or {}), notes)


def _nothing() -> None:
    """Prepare nothing."""
