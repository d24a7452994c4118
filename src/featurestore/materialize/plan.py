"""The plan of a materialization: which tasks, from what, how large. Pure: no file is touched."""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final, NamedTuple

from featurestore.core.time import DAY_NS, INT64_MAX, INT64_MIN, day_text
from featurestore.materialize.job import Job, Rows
from featurestore.materialize.staging import BEGINNING, EVERY_BUCKET, Place, Wanted

# A look-back of at most this many days is read again by each task; a longer one is carried as state.
_LOOK_BACK_DAYS: Final = 2
_SHOWN: Final = 20
_TASK_ROWS: Final = 1 << 20

StateDays = Mapping[tuple[str, int], Sequence[int]]


class FileStat(NamedTuple):
    """A file of a source, by what is known of it before it is read.

    Attributes:
        rows: How many, `None` where nothing is known.
        min_ns: Smallest event timestamp, or a bound below it; `max_ns` the greatest, or one above it.
    """

    name: str
    bytes: int
    rows: int | None = None
    min_ns: int = INT64_MIN
    max_ns: int = INT64_MAX


@dataclass(frozen=True, slots=True)
class SourceStat:
    """A source as pinned.

    Attributes:
        version: The Delta version; `None` for plain files, which are pinned by their hashes.
        files: In the order of the source.
    """

    version: int | None = None
    files: tuple[FileStat, ...] = ()


class Extent(NamedTuple):
    """Which files of a source hold the rows of some dates, and about how much of them that is.

    Attributes:
        rows: Rows of these dates and one bucket, estimated by the share of each file's time span.
        bytes: The like share of the files' bytes.
    """

    files: tuple[str, ...]
    rows: int
    bytes: int


class Input(NamedTuple):
    """The rows of one source that a task reads.

    Attributes:
        source: As `Rows.name` has it.
        first_day: First event date, as a day number, `BEGINNING` for all there is; `last_day` the last, both
            included.
        carried: Whether what lies before the task's own dates is carried as state.
        state_day: The date at whose end a stored state is taken over; `None`: carried from the task before,
            or from the first row on.
    """

    source: str
    bucket: int
    first_day: int
    last_day: int
    carried: bool
    state_day: int | None
    extent: Extent


class Task(NamedTuple):
    """Some event dates of one bucket, or of all (`EVERY_BUCKET`), computed together.

    Attributes:
        days: The dates, as day numbers, ascending.
        rows: Spine rows.
    """

    bucket: int
    days: tuple[int, ...]
    rows: int
    inputs: tuple[Input, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """Tasks of one bucket that run one after the other, each handing its state to the next.

    Attributes:
        saves: Sources whose states this chain leaves behind.
    """

    tasks: tuple[Task, ...]
    saves: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Spine rows of all tasks."""
        return sum(t.rows for t in self.tasks)


@dataclass(frozen=True, slots=True)
class MaterializationPlan:
    """What a run will do.

    Attributes:
        chains: By bucket, independent of one another; largest first, so that none is left over at the end.
        whole: Computed before them: what readers of all buckets ask of rows of any.
        partitions: Spine rows of each (day, bucket) that will be written.
        sources: Each source as pinned, and `columns` those that are read of it.
    """

    name: str
    chains: tuple[Chain, ...]
    whole: Chain
    partitions: Mapping[Place, int]
    sources: Mapping[str, SourceStat] = field(default_factory=dict)
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __repr__(self) -> str:
        # A plan may hold 100,000 tasks; `explain()` prints them.
        return f"MaterializationPlan({self.name!r}, {self.rows:,} rows, {self.tasks:,} tasks)"

    @property
    def rows(self) -> int:
        """Spine rows in all."""
        return sum(self.partitions.values())

    @property
    def tasks(self) -> int:
        """How many tasks there are, apart from those for all buckets."""
        return sum(len(c.tasks) for c in self.chains)

    def reach(self, source: str) -> Wanted:
        """Return the parts of a source that the tasks read."""
        spans: dict[int, list[tuple[int, int]]] = {}
        for need in self._inputs():
            if need.source == source:
                spans.setdefault(need.bucket, []).append((need.first_day, need.last_day))
        return Wanted({bucket: _united(found) for bucket, found in spans.items()})

    def states(self) -> set[tuple[str, int, int]]:
        """Return the stored states that tasks go on from: source, bucket and date."""
        return {
            (need.source, need.bucket, need.state_day)
            for need in self._inputs()
            if need.state_day is not None
        }

    def _inputs(self) -> Iterator[Input]:
        for chain in (self.whole, *self.chains):
            for task in chain.tasks:
                yield from task.inputs

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON values: sources, then every task with what it reads."""
        return {
            "name": self.name,
            "rows": self.rows,
            "partitions": len(self.partitions),
            "chains": len(self.chains),
            "sources": {
                name: {
                    "version": stat.version,
                    "files": len(stat.files),
                    "bytes": sum(f.bytes for f in stat.files),
                    "columns": list(self.columns.get(name, ())),
                }
                for name, stat in sorted(self.sources.items())
            },
            "tasks": [_task_dict(t) for c in (self.whole, *self.chains) for t in c.tasks],
        }

    def explain(self) -> str:
        """Return the plan as text: sources, then one line per task and input, up to twenty tasks."""
        lines = [
            f"materialize {self.name}: {self.rows:,} rows into {len(self.partitions):,} partitions, "
            f"{self.tasks:,} tasks in {len(self.chains):,} independent chains"
        ]
        for name, stat in sorted(self.sources.items()):
            pin = "" if stat.version is None else f" of Delta version {stat.version}"
            size = _size(sum(f.bytes for f in stat.files))
            columns = ", ".join(self.columns.get(name, ()))
            lines.append(f"  source {name}: {len(stat.files):,} files{pin}, {size}; columns {columns}")
        tasks = [t for c in (self.whole, *self.chains) for t in c.tasks]
        lines += [line for t in tasks[:_SHOWN] for line in _task_lines(t)]
        if len(tasks) > _SHOWN:
            lines.append(f"  … {len(tasks) - _SHOWN:,} more")
        return "\n".join(lines)


def plan_materialization(
    job: Job,
    partitions: Mapping[Place, int],
    *,
    task_rows: int,
    only: Iterable[Place] | None = None,
    sources: Mapping[str, SourceStat] | None = None,
    states: StateDays | None = None,
) -> MaterializationPlan:
    """Plan tasks over the spine's partitions.

    Args:
        partitions: Spine rows of each (day, bucket).
        task_rows: Dates of a bucket are grouped up to about so many rows.
        only: Compute just these partitions; what is carried through the others is carried all the same.
        sources: What is known of the sources' files.
        states: Dates at whose end there is a stored state, ascending, by source and bucket.

    Cost:
        O(partitions log partitions), some hundred bytes per partition.
    """
    wanted = dict(partitions) if only is None else {p: partitions[p] for p in only if p in partitions}
    by_bucket: dict[int, list[tuple[int, int]]] = {}
    for (day, bucket), rows in sorted(wanted.items()):
        by_bucket.setdefault(bucket, []).append((day, rows))
    planner = _Planner(job, sources or {}, states or {})
    chains: list[Chain] = []
    own, whole = rows_by_place(job)
    carried = is_carried(own)
    for bucket, days in by_bucket.items():
        tasks = planner.tasks(bucket, days, task_rows)
        chains += [Chain(tasks)] if carried else [Chain((t,)) for t in tasks]
    chains.sort(key=lambda c: (-c.rows, c.tasks[0].bucket, c.tasks[0].days))
    columns: dict[str, tuple[str, ...]] = {}
    if sources:
        for read in (job.spine, *job.rows.values()):
            known = columns.get(read.source.name, ())
            columns[read.source.name] = tuple(dict.fromkeys([*known, *read.columns]))
    saves = _long(own)
    together = planner.tasks(EVERY_BUCKET, _days_of(wanted), task_rows) if whole else ()
    return MaterializationPlan(
        job.name,
        tuple(Chain(c.tasks, saves) for c in chains),
        Chain(together, _long(whole)),
        wanted,
        dict(sources or {}),
        columns,
    )


def rows_by_place(job: Job) -> tuple[dict[str, Rows], dict[str, Rows]]:
    """Return the rows that are read by bucket, and those that are read for all of them."""
    own = {name: rows for name, rows in job.rows.items() if rows.keys is not None}
    return own, {name: rows for name, rows in job.rows.items() if rows.keys is None}


def task_rows_of(job: Job, memory_bytes: int) -> int:
    """Return how many spine rows a task may hold: an eighth of the budget, at 16 bytes a column."""
    return max(1 << 14, min(_TASK_ROWS, memory_bytes // (8 * 16 * max(1, len(job.schema)))))


def is_carried(rows: Mapping[str, Rows]) -> bool:
    """Say whether state is carried from date to date rather than read again."""
    return bool(_long(rows))


def is_long(look_back_ns: int | None) -> bool:
    """Say whether a look-back is carried as state."""
    return look_back_ns is None or look_back_ns > _LOOK_BACK_DAYS * DAY_NS


def first_day_read(rows: Rows, day: int, stored: Sequence[int]) -> tuple[int, int | None]:
    """Return from which date on a reader needs the rows of a source, and the stored state before it.

    Args:
        day: The reader's date.
        stored: Dates at whose end there is a state, ascending.
    """
    if is_long(rows.look_back_ns):
        at = bisect_left(stored, day) - 1
        if at >= 0:
            return stored[at] + 1, stored[at]
    if rows.look_back_ns is None:
        return BEGINNING, None
    return day - _days(rows.look_back_ns), None


class _Planner:
    """Makes the tasks of one bucket after the other, or of all; looks up each range of dates once."""

    def __init__(self, job: Job, sources: Mapping[str, SourceStat], states: StateDays) -> None:
        self._own, self._whole = rows_by_place(job)
        self._states = states
        self._files = {name: _Files(stat, job.buckets) for name, stat in sources.items()}
        self._none = Extent((), 0, 0)

    def tasks(self, bucket: int, days: Sequence[tuple[int, int]], task_rows: int) -> tuple[Task, ...]:
        read = self._whole if bucket == EVERY_BUCKET else self._own
        stored = {n: self._states.get((n, bucket), ()) for n in read}
        tasks: list[Task] = []
        before: int | None = None
        for group in self._groups(read, days, task_rows, stored):
            own = tuple(day for day, _ in group)
            inputs = tuple(
                self._input(name, rows, bucket, own, before, stored[name]) for name, rows in read.items()
            )
            tasks.append(Task(bucket, own, sum(rows for _, rows in group), inputs))
            before = own[-1]
        return tuple(tasks)

    def _input(
        self,
        name: str,
        rows: Rows,
        place: int,
        days: tuple[int, ...],
        before: int | None,
        stored: Sequence[int],
    ) -> Input:
        carried = is_long(rows.look_back_ns)
        first, state = first_day_read(rows, days[0], stored)
        if carried and before is not None and first <= before:
            # The task before hands its state on; what lies between is carried through.
            first, state = before + 1, None
        last = days[-1] + _days(rows.look_ahead_ns)
        files = self._files.get(rows.source.name)
        extent = self._none if files is None else files.extent(first, last, every=place == EVERY_BUCKET)
        return Input(name, place, first, last, carried, state, extent)

    def _groups(
        self,
        read: Mapping[str, Rows],
        days: Sequence[tuple[int, int]],
        task_rows: int,
        stored: Mapping[str, Sequence[int]],
    ) -> list[list[tuple[int, int]]]:
        groups: list[list[tuple[int, int]]] = []
        held = 0
        for day, rows in days:
            gap = bool(groups) and _skips(read, groups[-1][-1][0], day, stored)
            if not groups or gap or held + rows > task_rows:
                groups.append([])
                held = 0
            groups[-1].append((day, rows))
            held += rows
        return groups


def _skips(read: Mapping[str, Rows], before: int, day: int, stored: Mapping[str, Sequence[int]]) -> bool:
    """Say whether there are dates between two that some source need not be read for."""
    return day > before + 1 and any(
        first_day_read(rows, day, stored[name])[0] > before + _days(rows.look_ahead_ns) + 1
        for name, rows in read.items()
    )


class _Files:
    """A source's files by time."""

    def __init__(self, stat: SourceStat, buckets: int) -> None:
        self._files = sorted(stat.files, key=lambda f: f.min_ns)
        self._min = [f.min_ns for f in self._files]
        # The greatest time of all files up to each: files before the first that reaches a date cannot.
        self._reached = list(accumulate((f.max_ns for f in self._files), max))
        self._order = {f.name: i for i, f in enumerate(stat.files)}
        self._buckets = buckets
        self._known: dict[tuple[int, int, bool], Extent] = {}

    def extent(self, first: int, last: int, *, every: bool) -> Extent:
        found = self._known.get((first, last, every))
        if found is None:
            found = self._known[first, last, every] = self._extent(first, last, every=every)
        return found

    def _extent(self, first: int, last: int, *, every: bool) -> Extent:
        low, high = first * DAY_NS, (last + 1) * DAY_NS - 1
        start, end = bisect_left(self._reached, low), bisect_right(self._min, high)
        chosen = [f for f in self._files[start:end] if f.max_ns >= low]
        chosen.sort(key=lambda f: self._order[f.name])
        shares = [_share(f, low, high) / (1 if every else self._buckets) for f in chosen]
        return Extent(
            tuple(f.name for f in chosen),
            round(sum((f.rows or 0) * s for f, s in zip(chosen, shares, strict=True))),
            round(sum(f.bytes * s for f, s in zip(chosen, shares, strict=True))),
        )


def _share(file: FileStat, low: int, high: int) -> float:
    whole = file.max_ns - file.min_ns + 1
    return max(0.0, (min(high, file.max_ns) - max(low, file.min_ns) + 1) / whole)


def _days(span_ns: int) -> int:
    return -(-span_ns // DAY_NS)


def _long(rows: Mapping[str, Rows]) -> tuple[str, ...]:
    """Name the rows whose state is carried, and left behind."""
    return tuple(name for name, read in rows.items() if is_long(read.look_back_ns))


def _days_of(partitions: Mapping[Place, int]) -> list[tuple[int, int]]:
    """Return the rows of each date, all buckets together."""
    days: Counter[int] = Counter()
    for (day, _), rows in partitions.items():
        days[day] += rows
    return sorted(days.items())


def _united(spans: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Join spans of days that touch or overlap."""
    ordered = sorted(set(spans))
    out = [ordered[0]]
    for first, last in ordered[1:]:
        if first <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], last))
        else:
            out.append((first, last))
    return tuple(out)


def _task_dict(task: Task) -> dict[str, Any]:
    return {
        "bucket": None if task.bucket == EVERY_BUCKET else task.bucket,
        "first_date": day_text(task.days[0]),
        "last_date": day_text(task.days[-1]),
        "rows": task.rows,
        "reads": [
            {
                "source": need.source,
                "first_date": None if need.first_day <= BEGINNING else day_text(need.first_day),
                "last_date": day_text(need.last_day),
                "files": list(need.extent.files),
                "rows": need.extent.rows,
                "bytes": need.extent.bytes,
                "state_date": None if need.state_day is None else day_text(need.state_day),
            }
            for need in task.inputs
        ],
    }


def _task_lines(task: Task) -> list[str]:
    whose = "every bucket" if task.bucket == EVERY_BUCKET else f"bucket {task.bucket:04d}"
    lines = [f"  {whose} {_span(task.days[0], task.days[-1])}: {task.rows:,} rows"]
    for need in task.inputs:
        line = f"    reads {need.source} {_span(need.first_day, need.last_day)}"
        if need.extent.files:
            names = ", ".join(need.extent.files[:3]) + (", …" if len(need.extent.files) > 3 else "")
            line += (
                f": about {need.extent.rows:,} rows, {_size(need.extent.bytes)} "
                f"of {len(need.extent.files):,} files ({names})"
            )
        if need.state_day is not None:
            line += f", on the state stored at the end of {day_text(need.state_day)}"
        elif need.carried and need.first_day > BEGINNING:
            line += ", on carried state"
        lines.append(line)
    return lines


def _span(first: int, last: int) -> str:
    begin = "…" if first <= BEGINNING else day_text(first)
    return begin if first == last else f"{begin} to {day_text(last)}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} PB"
