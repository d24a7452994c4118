"""The plan of a materialization: which tasks, from what, how large. Pure: no file is touched."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from featurestore.core.time import DAY_NS, day_text
from featurestore.materialize.job import Job
from featurestore.materialize.staging import EVERY_BUCKET, Place

# A look-back of at most this many days is read again by each task; a longer one is carried as state.
_LOOK_BACK_DAYS = 2


@dataclass(frozen=True, slots=True)
class Input:
    """The rows of one source that a task reads.

    Attributes:
        first_day: First event date, as a day number; `last_day` the last, both included.
        carried: Whether what lies before `first_day` comes as carried state.
    """

    source: str
    first_day: int
    last_day: int
    bucket: int
    carried: bool


@dataclass(frozen=True, slots=True)
class Task:
    """Some event dates of one bucket, computed together.

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
    """Tasks of one bucket that run one after the other, each handing its state to the next."""

    tasks: tuple[Task, ...]

    @property
    def rows(self) -> int:
        """Spine rows of all tasks."""
        return sum(t.rows for t in self.tasks)


@dataclass(frozen=True, slots=True)
class MaterializationPlan:
    """What a run will do.

    Attributes:
        chains: Independent of one another; largest first, so that none is left over at the end.
        partitions: Spine rows of each (day, bucket) that will be written.
    """

    name: str
    chains: tuple[Chain, ...]
    partitions: Mapping[Place, int]

    @property
    def rows(self) -> int:
        """Spine rows in all."""
        return sum(self.partitions.values())

    @property
    def tasks(self) -> int:
        """How many tasks there are."""
        return sum(len(c.tasks) for c in self.chains)

    def explain(self) -> str:
        """Return the plan as text: one line per task, up to twenty."""
        lines = [
            f"materialize {self.name}: {self.rows:,} rows into {len(self.partitions):,} partitions, "
            f"{self.tasks:,} tasks in {len(self.chains):,} independent chains"
        ]
        tasks = [t for c in self.chains for t in c.tasks]
        lines += [_task_line(t) for t in tasks[:20]]
        if len(tasks) > 20:
            lines.append(f"  … {len(tasks) - 20:,} more")
        return "\n".join(lines)


def plan_materialization(
    job: Job, partitions: Mapping[Place, int], *, task_rows: int, only: Iterable[Place] | None = None
) -> MaterializationPlan:
    """Plan tasks over the spine's partitions.

    Args:
        partitions: Spine rows of each (day, bucket).
        task_rows: Dates of a bucket are grouped up to about so many rows.
        only: Compute just these partitions; what is carried through the others is carried all the same.

    Cost:
        O(partitions log partitions), some hundred bytes per partition.
    """
    wanted = dict(partitions) if only is None else {p: partitions[p] for p in only if p in partitions}
    by_bucket: dict[int, list[tuple[int, int]]] = {}
    for (day, bucket), rows in sorted(wanted.items()):
        by_bucket.setdefault(bucket, []).append((day, rows))
    chains: list[Chain] = []
    carried = is_carried(job)
    for bucket, days in by_bucket.items():
        tasks = [_task(job, bucket, group) for group in _groups(days, task_rows)]
        chains += [Chain(tuple(tasks))] if carried else [Chain((t,)) for t in tasks]
    chains.sort(key=lambda c: (-c.rows, c.tasks[0].bucket, c.tasks[0].days))
    return MaterializationPlan(job.name, tuple(chains), wanted)


def is_carried(job: Job) -> bool:
    """Say whether state is carried from date to date rather than read again."""
    return any(_is_long(r.look_back_ns) for r in job.rows.values())


def _is_long(look_back_ns: int | None) -> bool:
    return look_back_ns is None or look_back_ns > _LOOK_BACK_DAYS * DAY_NS


def _groups(days: Sequence[tuple[int, int]], task_rows: int) -> list[list[tuple[int, int]]]:
    groups: list[list[tuple[int, int]]] = []
    held = 0
    for day, rows in days:
        if not groups or held + rows > task_rows:
            groups.append([])
            held = 0
        groups[-1].append((day, rows))
        held += rows
    return groups


def _task(job: Job, bucket: int, group: Sequence[tuple[int, int]]) -> Task:
    days = tuple(day for day, _ in group)
    inputs = []
    for name, rows in job.rows.items():
        carried = _is_long(rows.look_back_ns)
        behind = 0 if carried else -(-(rows.look_back_ns or 0) // DAY_NS)
        ahead = -(-rows.look_ahead_ns // DAY_NS)
        place = EVERY_BUCKET if rows.keys is None else bucket
        inputs.append(Input(name, days[0] - behind, days[-1] + ahead, place, carried))
    return Task(bucket, days, sum(rows for _, rows in group), tuple(inputs))


def _task_line(task: Task) -> str:
    span = day_text(task.days[0])
    if len(task.days) > 1:
        span += f" … {day_text(task.days[-1])}"
    reads = ", ".join(
        f"{i.source} {day_text(i.first_day)} … {day_text(i.last_day)}" + (" + carried" if i.carried else "")
        for i in task.inputs
    )
    return f"  bucket {task.bucket:04d} {span}: {task.rows:,} rows; reads {reads}"
