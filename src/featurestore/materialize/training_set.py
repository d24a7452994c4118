"""`materialize`: a new version of a training set or a view, or the newest where nothing has changed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from featurestore.core.time import format_instant
from featurestore.errors import CorruptDataError, DefinitionError
from featurestore.materialize.carried import Carryover, usable_states
from featurestore.materialize.changes import Changes, Comparison, compare_sources, find_changes
from featurestore.materialize.context import Context, Home, home_of, lacks_lifted
from featurestore.materialize.executors import Executor, executor_of
from featurestore.materialize.expected import expected_plan
from featurestore.materialize.inputs import Pinned, pin_sources, plain_inputs
from featurestore.materialize.job import Job, compile_job
from featurestore.materialize.lock import writing
from featurestore.materialize.plan import MaterializationPlan, is_carried
from featurestore.materialize.progress import Progress, Silence
from featurestore.materialize.publish import heal
from featurestore.materialize.result import MaterializeResult
from featurestore.materialize.run import run, unchanged
from featurestore.storage.files import AnyPath
from featurestore.storage.manifest import Manifest, current_version, read_manifest, version_folder
from featurestore.storage.state_files import StateIndex, read_index


def materialize(
    context: Context,
    name: str,
    *,
    start_ns: int | None = None,
    end_ns: int | None = None,
    executor: Executor | str | None = None,
    progress: Progress | None = None,
) -> MaterializeResult:
    """Write a new version from all rows of the sources; equal inputs and definitions write nothing.

    Args:
        name: A training set, or a view (`view@2` for one of its versions).
        start_ns: First event timestamp of the rows, included; `end_ns` the end, excluded.

    Raises:
        NotFoundError: no such training set or view, or a source is not there.
        DefinitionError: the start is not before the end.
        SchemaError: columns that do not fit together.
        CommitConflictError: another process is writing it.
        StorageError: the disk refused; the previous version is intact.
    """
    if start_ns is not None and end_ns is not None and start_ns >= end_ns:
        raise DefinitionError(
            f"start {format_instant(start_ns)} is not before end {format_instant(end_ns)}",
            hint="the start is included, the end is not",
        )
    return _materialize(
        context, name, (start_ns, end_ns), incremental=False, executor=executor, progress=progress
    )


def materialize_incremental(
    context: Context,
    name: str,
    *,
    executor: Executor | str | None = None,
    progress: Progress | None = None,
) -> MaterializeResult:
    """Write a new version from what changed in the sources since the newest; equal to a full one.

    Appended, late, replaced and deleted rows are found by comparing the sources' content with the pins of
    the newest version, never by a clock. Only partitions that a change can reach, through windows, ttl and
    label horizons, are computed again; the files of all others are shared with the previous version.

    Raises:
        NotFoundError: no such training set or view, or a source is not there.
        CommitConflictError: another process is writing it.
        StorageError: the disk refused; the previous version is intact.
    """
    return _materialize(context, name, (None, None), incremental=True, executor=executor, progress=progress)


def plan_run(
    context: Context,
    name: str,
    *,
    start_ns: int | None = None,
    end_ns: int | None = None,
    incremental: bool = False,
) -> MaterializationPlan:
    """Say what `materialize`, or `materialize_incremental`, would do now; `explain()` of the plan prints it.

    Nothing is computed or written, except that content hashes of source files are remembered.

    Raises:
        NotFoundError: no such training set or view, or a source is not there.
        SchemaError: columns that do not fit together.

    Cost:
        Reads the spine's keys and times, of other sources the statistics of their files.
    """
    home = home_of(context, name)
    version = current_version(home.ipc)
    current = None if version is None else read_manifest(home.ipc / version_folder(version))
    ready = _prepared(context, home, current, name, (start_ns, end_ns), incremental=incremental)
    return expected_plan(
        ready.job,
        ready.pinned,
        changes=Changes(()) if ready.same else ready.changes,
        carryover=ready.carryover,
        memory_bytes=context.config.memory_bytes,
    )


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What a run starts from.

    Attributes:
        same: Whether the newest version is what it would write.
    """

    job: Job
    pinned: Mapping[str, Pinned]
    same: bool
    changes: Changes | None = None
    carryover: Carryover = field(default_factory=Carryover)


def _materialize(
    context: Context,
    name: str,
    range_ns: tuple[int | None, int | None],
    *,
    incremental: bool,
    executor: Executor | str | None,
    progress: Progress | None,
) -> MaterializeResult:
    home = home_of(context, name)
    workers = executor_of(executor, default=context.config.executor, workers=context.config.threads)
    with writing(home):
        opened = heal(home)
        ready = _prepared(context, home, opened.current, name, range_ns, incremental=incremental)
        if ready.same and opened.current is not None:
            return unchanged(home, ready.job, opened.current)
        return run(
            context,
            home,
            opened,
            ready.job,
            ready.pinned,
            executor=workers,
            progress=progress or Silence(),
            changes=ready.changes,
            carryover=ready.carryover,
        )


def _prepared(
    context: Context,
    home: Home,
    current: Manifest | None,
    name: str,
    range_ns: tuple[int | None, int | None],
    *,
    incremental: bool,
) -> _Prepared:
    """Compile the job, pin its sources and compare them with those of the newest version."""
    if incremental:
        range_ns = (current.range_ns[0] if current else None, None)
    buckets = current.buckets if current else context.config.buckets
    job = compile_job(context, name, buckets=buckets, range_ns=range_ns)
    pinned = pin_sources(context, job)
    if current is None:
        return _Prepared(job, pinned, same=False)
    lacking = lacks_lifted(context, current)
    if not lacking and current.run == job.digest(plain_inputs(pinned)):
        return _Prepared(job, pinned, same=True)
    # A run over everything takes nothing over: it depends on the sources alone. One from a start on needs
    # what came before, which the newest version may have kept.
    ranged = range_ns[0] is not None and is_carried(job.rows) and bool(current.states)
    if lacking or not (incremental or ranged):
        return _Prepared(job, pinned, same=False)
    compared = compare_sources(job, current, pinned)
    changes = find_changes(job, current, compared) if incremental else None
    if incremental and changes is None:
        return _Prepared(job, pinned, same=False)
    return _Prepared(job, pinned, False, changes, _carryover(home, job, current, pinned, compared))


def _carryover(
    home: Home,
    job: Job,
    current: Manifest,
    pinned: Mapping[str, Pinned],
    compared: Mapping[str, Comparison | None],
) -> Carryover:
    folder = home.ipc / version_folder(current.version)
    known = {name: found.kept for name, found in compared.items() if found is not None}
    # Rows of an entity erased since would live on in a state.
    same = current.erasure.get("ledger", 0) == min(p.table.ledger_at for p in pinned.values())
    index = _index(folder, current) if same else StateIndex()
    return Carryover(folder, usable_states(job, index, compared), known)


def _index(folder: AnyPath, current: Manifest) -> StateIndex:
    """Return the states of a version; a damaged list is none: what it held is read again."""
    try:
        return read_index(folder, current.states)
    except CorruptDataError:
        return StateIndex()
