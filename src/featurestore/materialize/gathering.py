"""The inputs of a run, wave by wave: the tasks of some dates, and just the rows that these need.

Sources are read side by side. As soon as all of them are complete up to some date, as far as the footers of
their files tell, the tasks up to there are planned and handed out, and their rows are let go: what arrives in
the order of time is never all in memory, nor split on disk. A source that is in no order is read to its end
first, and in a run that goes on from an earlier version everything is planned before other sources than the
spine are read: all tasks are one wave then.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from featurestore.core.time import DAY_NS
from featurestore.materialize.carried import Carryover
from featurestore.materialize.changes import FOREVER, Changes, Span
from featurestore.materialize.executors import Executor
from featurestore.materialize.inputs import Pinned, merge_spans, reach_of, slice_of
from featurestore.materialize.job import Job, Rows
from featurestore.materialize.plan import (
    Chain,
    MaterializationPlan,
    first_day_read,
    is_carried,
    is_long,
    plan_materialization,
    rows_by_place,
    task_rows_of,
)
from featurestore.materialize.progress import Progress
from featurestore.materialize.source_reader import SourceReader
from featurestore.materialize.staging import (
    BEGINNING,
    EVERY_BUCKET,
    Budget,
    FileSpan,
    Held,
    Part,
    Place,
    Stager,
    Wanted,
    united,
)
from featurestore.storage.source_readers import GroupTimes

Parts = Mapping[Place, Part]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """What the tasks of some dates start from.

    Attributes:
        number: Which of the run's waves it is, from 0; `is_last` says that none follows.
        chains: The tasks, by bucket; where what earlier dates leave behind is carried through the waves, also
            buckets without any.
        whole: The tasks for all buckets at once, to be computed before those.
        until: What the dates before it leave behind is carried to the next wave, or kept for later runs;
            `None`: there is one wave, whose chains end with their last tasks.
        spine: The spine's rows, split; `parts` each source's, `schemas` their columns, by `Rows.name`.
    """

    number: int
    is_last: bool
    chains: tuple[tuple[int, Chain], ...]
    whole: Chain
    until: int | None
    spine: Parts
    spine_schema: pa.Schema
    parts: Mapping[str, Parts]
    schemas: Mapping[str, pa.Schema]


class Gathering:
    """Reads the sources of a run.

    Attributes:
        carryover: With the states that turned out to be sound.
        places: Partitions of the spine that have been handed out.
        relays: Whether what earlier dates leave behind is carried from wave to wave, bucket by bucket.
        budget: What waits may hold so much.
    """

    def __init__(
        self,
        job: Job,
        pinned: Mapping[str, Pinned],
        executor: Executor,
        progress: Progress,
        changes: Changes | None,
        carryover: Carryover,
        *,
        memory_bytes: int,
        spill: Path,
    ) -> None:
        self.carryover = carryover
        self.places: set[Place] = set()
        self._job = job
        self._pinned = pinned
        self._wanted = None if changes is None else list(changes.spans)
        self._in_memory = executor.shares_memory
        self._progress = progress
        self._task_rows = task_rows_of(job, memory_bytes)
        self.budget = Budget(memory_bytes // 2)
        self._spill = spill
        self._computing = False
        self._waves = 0
        self._buckets: set[int] = set()
        self._spine_rows = 0
        self._readers: list[SourceReader] = []
        self._spine: SourceReader | None = None
        carried = is_carried(rows_by_place(job)[0])
        cannot = carried and not executor.shares_memory
        self._planned = changes is not None or bool(carryover.index.states) or cannot
        self.relays = carried and not self._planned

    @property
    def dropped(self) -> int:
        """Rows of a view's source without an event timestamp."""
        return 0 if self._spine is None else self._spine.stagers[0].dropped

    def spans(self) -> dict[str, list[FileSpan]]:
        """Return the times of the files read, by source."""
        found: dict[str, list[FileSpan]] = {}
        for reader in self._all():
            name = reader.stagers[0].rows.source.name
            found[name] = merge_spans(found.get(name, ()), reader.spans())
        return found

    def close(self) -> None:
        """Stop reading."""
        for reader in self._all():
            reader.close()

    def waves(self) -> Iterator[Wave]:
        """Read on, and yield what is complete.

        Raises:
            CorruptDataError: a source is not what was pinned, or damaged.
            SchemaError: a missing column, or a spine row without a time.
            StorageError: the disk refused rows that are too many for memory.
        """
        self._progress.begin("read", len(self._job.sources()), 0)
        if self._job.view is None:
            self._open_set()
        else:
            self._open_view()
        done = BEGINNING
        while behind := [r for r in self._all() if not r.is_done]:
            last = min(behind, key=lambda r: r.reached)
            if last.reached > done and self._held(done, last.reached) >= self._task_rows:
                yield self._wave(done, last.reached)
                done = last.reached
            last.read_on()
        yield self._wave(done, None)

    def _held(self, first: int, end: int) -> int:
        return max(s.held.rows_of(first, end) for r in self._all() for s in r.stagers)

    @property
    def _spine_reader(self) -> SourceReader:
        assert self._spine is not None  # noqa: S101 -- opened first
        return self._spine

    def _all(self) -> list[SourceReader]:
        spine = [] if self._spine is None else [self._spine]
        return list(dict.fromkeys([*spine, *self._readers]))

    def _open_set(self) -> None:
        """Open the spine; the other sources once its times are known: by its footers, or by its rows."""
        job = self._job
        spans = self._wanted
        if spans is None and job.range_ns[0] is not None:
            spans = [(EVERY_BUCKET, _first_day(job), FOREVER)]
        reach = None if spans is None else reach_of(job.spine, spans, states={}, buckets=job.buckets)[0]
        times = None if self._planned else self._times(job.spine.source.name)
        self._spine = self._reader([(job.spine, reach)], times, spine=True)
        if times is None:
            while not self._spine.is_done:
                self._spine.read_on()
            plan = self._plan(self._places(BEGINNING, FOREVER + 1))
            while (sound := self.carryover.sound(plan.states())) is not self.carryover:
                self.carryover = sound
                plan = self._plan(self._places(BEGINNING, FOREVER + 1))
            wanted = [(rows, plan.reach(name)) for name, rows in job.rows.items()]
        else:
            self._spine_rows = _rows_of(times)
            days = _days_of(job, times)
            wanted = [(r, reach_of(r, days, states={}, buckets=job.buckets)[0]) for r in job.rows.values()]
        for name in dict.fromkeys(rows.source.name for rows in job.rows.values()):
            known = None if self._planned else self._times(name)
            own = [(rows, places) for rows, places in wanted if rows.source.name == name]
            self._readers.append(self._reader(own, known, spine=False))

    def _open_view(self) -> None:
        """A view's rows are both: read once, from where its own look-back begins."""
        job = self._job
        name = job.spine.source.name
        spans = self._wanted if self._wanted is not None else [(EVERY_BUCKET, _first_day(job), FOREVER)]
        while True:
            states = self.carryover.days()
            reach, chosen = reach_of(job.rows[name], spans, states=states, buckets=job.buckets)
            sound = self.carryover.sound(chosen)
            if sound is self.carryover:
                break
            self.carryover = sound
        times = None if self._planned else self._times(name)
        self._spine_rows = _rows_of(times or ())
        self._spine = self._reader([(job.rows[name], reach)], times, spine=False)
        self._readers.append(self._spine)

    def _times(self, name: str) -> list[tuple[str, list[GroupTimes]]] | None:
        """Return the times of a source's files, in its order; `None` where one does not tell."""
        pinned = self._pinned[name]
        names = pinned.table.file_names(pinned.snapshot)
        found = pinned.table.file_times(pinned.snapshot, names)
        return [(n, found[n]) for n in names] if len(found) == len(names) else None

    def _reader(
        self,
        wanted: Sequence[tuple[Rows, Wanted | None]],
        times: Sequence[tuple[str, Sequence[GroupTimes]]] | None,
        *,
        spine: bool,
    ) -> SourceReader:
        """Read a source once, for all ways in which its rows are split."""
        name = wanted[0][0].source.name
        pinned = self._pinned[name]
        range_ns = _range(self._job, spine=spine)
        folder = self._spill / ("spine" if spine else "rows")
        stagers = [
            Stager(
                rows,
                buckets=self._job.buckets,
                held=Held(self.budget, folder / rows.name, in_memory=self._in_memory),
                spine=spine and self._job.kind == "training_set",
                range_ns=range_ns,
                places=places,
            )
            for rows, places in wanted
        ]
        chosen = slice_of(united([p for _, p in wanted]), pinned, self.carryover.known.get(name, ()))
        return SourceReader(pinned, chosen, stagers, times=times, range_ns=range_ns, heard=self._heard)

    def _places(self, first: int, end: int) -> dict[Place, Part]:
        """Return the spine's parts of dates from `first` up to before `end`."""
        parts = self._spine_reader.stagers[0].held.parts()
        if self._job.view is None:
            return {p: part for p, part in parts.items() if first <= p[0] < end}
        own = self._wanted
        return {p: part for p, part in parts.items() if first <= p[0] < end and _in_view(self._job, p, own)}

    def _plan(self, spine: Parts) -> MaterializationPlan:
        places = {p: part.rows for p, part in spine.items()}
        return plan_materialization(
            self._job, places, task_rows=self._task_rows, states=self.carryover.days()
        )

    def _wave(self, first: int, ready: int | None) -> Wave:
        """Plan the dates from `first` up to before `ready`, and let go of what later ones do not need."""
        job = self._job
        end = FOREVER + 1 if ready is None else ready
        spine = self._places(first, end)
        plan = self._plan(spine)
        self.places |= spine.keys()
        stagers = {s.rows.name: (reader, s) for reader in self._readers for s in reader.stagers}
        parts = {name: self._needed(stager, plan) for name, (_, stager) in stagers.items()}
        if not self._computing:
            self._begin_computing(plan)
        chains = [(chain.tasks[0].bucket, chain) for chain in plan.chains]
        if self.relays:
            chains += self._idle({bucket for bucket, _ in chains}, parts)
        until = None
        if not self._planned:
            last = max((day for day, _ in self.places), default=first)
            until = last + 1 if ready is None else ready
        schemas = {name: reader.schema(stager) for name, (reader, stager) in stagers.items()}
        spine_schema = self._spine_reader.schema(self._spine_reader.stagers[0])
        for reader in self._readers:
            reader.release(end, lambda rows: self._first_needed(rows, end))
        if job.view is None:
            self._spine_reader.release(end, lambda _: end)
        self._waves += 1
        return Wave(
            number=self._waves - 1,
            is_last=ready is None,
            chains=tuple(chains),
            whole=plan.whole,
            until=until,
            spine=spine,
            spine_schema=spine_schema,
            parts=parts,
            schemas=schemas,
        )

    def _needed(self, stager: Stager, plan: MaterializationPlan) -> Parts:
        """Return the rows of a source that tasks need, or that those of later waves need carried."""
        parts = stager.held.parts()
        if not self._planned and is_long(stager.rows.look_back_ns):
            return parts
        reach = plan.reach(stager.rows.name)
        return {p: part for p, part in parts.items() if reach.has(*p)}

    def _first_needed(self, rows: Rows, end: int) -> int:
        """Return from which date on readers at `end` and behind need the rows of a source."""
        carried = not self._planned and is_long(rows.look_back_ns)
        return end if carried else first_day_read(rows, end, ())[0]

    def _idle(self, busy: set[int], parts: Mapping[str, Parts]) -> list[tuple[int, Chain]]:
        """Return the buckets that have no tasks in a wave, but rows that later waves need carried."""
        own, _ = rows_by_place(self._job)
        long = tuple(name for name, rows in own.items() if is_long(rows.look_back_ns))
        self._buckets |= busy | {bucket for name in long for _, bucket in parts[name]}
        return [(bucket, Chain((), long)) for bucket in sorted(self._buckets - busy)]

    def _begin_computing(self, first: MaterializationPlan) -> None:
        """Tell how much there is to do, from what comes first of it."""
        self._progress.end()
        self._computing = True
        rows = max(first.rows, self._spine_rows)
        self._progress.begin("compute", round(first.tasks * rows / max(1, first.rows)), rows)

    def _heard(self, rows: int) -> None:
        if not self._computing:
            self._progress.advance(rows)


def _rows_of(times: Sequence[tuple[str, Sequence[GroupTimes]]]) -> int:
    return sum(group.rows for _, groups in times for group in groups)


def _days_of(job: Job, times: Sequence[tuple[str, Sequence[GroupTimes]]]) -> list[Span]:
    """Return the dates that a spine's files say it has, as far as they are wanted."""
    first = _first_day(job)
    spans = {(g.min_ns // DAY_NS, g.max_ns // DAY_NS) for _, groups in times for g in groups}
    return [(EVERY_BUCKET, max(low, first), high) for low, high in sorted(spans) if high >= first]


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
