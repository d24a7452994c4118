"""The inputs of a run: the plan of its tasks, and just the rows of the sources that these need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurestore.core.time import DAY_NS
from featurestore.materialize.carried import Carryover
from featurestore.materialize.changes import FOREVER, Changes, Span
from featurestore.materialize.executors import Executor
from featurestore.materialize.inputs import (
    Pinned,
    merge_spans,
    reach_of,
    slice_of,
    stage_source,
    statistics_of,
)
from featurestore.materialize.job import Job
from featurestore.materialize.plan import BEGINNING, MaterializationPlan, plan_materialization, task_rows_of
from featurestore.materialize.progress import Progress
from featurestore.materialize.staging import EVERY_BUCKET, Budget, FileSpan, Place, Staged, Wanted


@dataclass(frozen=True, slots=True)
class Gathered:
    """What the tasks of a run start from.

    Attributes:
        parts: Each source's rows, split.
        spans: Times of the files read, by source.
        carryover: With the states that turned out to be sound.
    """

    plan: MaterializationPlan
    spine: Staged
    parts: Mapping[str, Staged]
    spans: Mapping[str, list[FileSpan]]
    carryover: Carryover


def gather_inputs(
    job: Job,
    pinned: Mapping[str, Pinned],
    executor: Executor,
    progress: Progress,
    changes: Changes | None,
    carryover: Carryover,
    *,
    memory_bytes: int,
    spill: Path,
) -> Gathered:
    """Read the sources once, and plan.

    Raises:
        CorruptDataError: a source is not what was pinned, or damaged.
        SchemaError: a missing column, or a spine row without a time.
    """
    reading = _Reading(job, pinned, executor, progress, carryover, memory_bytes=memory_bytes, spill=spill)
    wanted = None if changes is None else list(changes.spans)
    gather = _of_set if job.view is None else _of_view
    return gather(reading, carryover, wanted, task_rows=task_rows_of(job, memory_bytes))


class _Reading:
    """Reads sources for a run, and remembers the times of the files that it read."""

    def __init__(
        self,
        job: Job,
        pinned: Mapping[str, Pinned],
        executor: Executor,
        progress: Progress,
        carryover: Carryover,
        *,
        memory_bytes: int,
        spill: Path,
    ) -> None:
        self.job = job
        self.pinned = pinned
        self.known = carryover.known
        self.spans: dict[str, list[FileSpan]] = {}
        self._in_memory = executor.shares_memory
        self._progress = progress
        self._budget = Budget(memory_bytes // 2)
        self._spill = spill
        progress.begin("read", len(job.sources()), 0)

    def stage(self, name: str, wanted: Wanted | None, *, spine: bool) -> Staged:
        """Read the wanted parts of one source."""
        known = self.known.get(name, ())
        staged, found = stage_source(
            self.job.spine if spine else self.job.rows[name],
            self.pinned[name],
            slice_of(wanted, self.pinned[name], known),
            buckets=self.job.buckets,
            budget=self._budget,
            spill=self._spill / ("spine" if spine else "rows") / name,
            in_memory=self._in_memory,
            spine=spine and self.job.kind == "training_set",
            range_ns=_range(self.job, spine=spine),
            heard=self._progress.advance,
        )
        self.spans[name] = merge_spans(self.spans.get(name, ()), found)
        return staged

    def plan(self, spine: Staged, carryover: Carryover, task_rows: int) -> MaterializationPlan:
        """Plan the tasks over the spine's partitions."""
        places = {p: part.rows for p, part in spine.parts.items()}
        stats = {n: statistics_of(p, self.known.get(n, ())) for n, p in self.pinned.items()}
        return plan_materialization(
            self.job, places, task_rows=task_rows, sources=stats, states=carryover.days()
        )

    def end(self) -> None:
        """Say that everything is read."""
        self._progress.end()


def _of_set(
    reading: _Reading, carryover: Carryover, wanted: Sequence[Span] | None, *, task_rows: int
) -> Gathered:
    """Read the spine, plan, then read of every source just what the tasks need."""
    job = reading.job
    spans = wanted
    if spans is None and job.range_ns[0] is not None:
        spans = [(EVERY_BUCKET, _first_day(job), FOREVER)]
    reach = None if spans is None else reach_of(job.spine, spans, states={}, buckets=job.buckets)[0]
    spine = reading.stage(job.spine.source.name, reach, spine=True)
    plan = reading.plan(spine, carryover, task_rows)
    while (sound := carryover.sound(plan.states())) is not carryover:
        carryover = sound
        plan = reading.plan(spine, carryover, task_rows)
    parts = {name: reading.stage(name, plan.reach(name), spine=False) for name in job.rows}
    reading.end()
    return Gathered(plan, spine, parts, reading.spans, carryover)


def _of_view(
    reading: _Reading, carryover: Carryover, wanted: Sequence[Span] | None, *, task_rows: int
) -> Gathered:
    """A view's rows are both: read once, from where its own look-back begins."""
    job = reading.job
    name = job.spine.source.name
    spans = list(wanted) if wanted is not None else [(EVERY_BUCKET, _first_day(job), FOREVER)]
    while True:
        reach, chosen = reach_of(job.rows[name], spans, states=carryover.days(), buckets=job.buckets)
        sound = carryover.sound(chosen)
        if sound is carryover:
            break
        carryover = sound
    everything = reading.stage(name, reach, spine=False)
    own = {p: part for p, part in everything.parts.items() if _in_view(job, p, wanted)}
    spine = Staged(everything.schema, own, everything.dropped, everything.max_ns)
    plan = reading.plan(spine, carryover, task_rows)
    reading.end()
    return Gathered(plan, spine, {name: everything}, reading.spans, carryover)


def _first_day(job: Job) -> int:
    return BEGINNING if job.range_ns[0] is None else job.range_ns[0] // DAY_NS


def _range(job: Job, *, spine: bool) -> tuple[int | None, int | None]:
    """Return which rows of a source are of use; what precedes a view's range is still looked back at."""
    if job.kind == "view":
        return None, job.range_ns[1]
    return job.range_ns if spine else (None, None)


def _in_view(job: Job, place: Place, wanted: Sequence[tuple[int, int, int]] | None) -> bool:
    first = job.range_ns[0]
    if first is not None and place[0] < first // DAY_NS:
        return False
    if wanted is None:
        return True
    return any(b in {place[1], EVERY_BUCKET} and first <= place[0] <= last for b, first, last in wanted)
