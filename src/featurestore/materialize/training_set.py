"""`materialize`: a new version of a training set or a view, or the newest where nothing has changed."""

from collections.abc import Mapping

from featurestore.core.time import format_instant
from featurestore.errors import CorruptDataError, DefinitionError
from featurestore.materialize.carried import Carryover, usable_states
from featurestore.materialize.changes import Comparison, compare_sources, find_changes
from featurestore.materialize.context import Context, Home, home_of, lacks_lifted
from featurestore.materialize.executors import Executor, executor_of
from featurestore.materialize.inputs import Pinned, pin_sources, plain_inputs
from featurestore.materialize.job import Job, compile_job
from featurestore.materialize.lock import writing
from featurestore.materialize.plan import is_carried
from featurestore.materialize.progress import Progress, Silence
from featurestore.materialize.publish import heal
from featurestore.materialize.result import MaterializeResult
from featurestore.materialize.run import run, unchanged
from featurestore.storage.files import AnyPath
from featurestore.storage.manifest import Manifest, version_folder
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
    home = home_of(context, name)
    workers = executor_of(executor, default=context.config.executor, workers=context.config.threads)
    with writing(home):
        opened = heal(home)
        buckets = opened.current.buckets if opened.current else context.config.buckets
        job = compile_job(context, name, buckets=buckets, range_ns=(start_ns, end_ns))
        pinned = pin_sources(context, job)
        same = opened.current is not None and opened.current.run == job.digest(plain_inputs(pinned))
        if opened.current is not None and same and not lacks_lifted(context, opened.current):
            return unchanged(home, job, opened.current)
        return run(
            context,
            home,
            opened,
            job,
            pinned,
            executor=workers,
            progress=progress or Silence(),
            changes=None,
            carryover=_before_start(home, job, opened.current, pinned),
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
    home = home_of(context, name)
    workers = executor_of(executor, default=context.config.executor, workers=context.config.threads)
    with writing(home):
        opened = heal(home)
        current = opened.current
        buckets = current.buckets if current else context.config.buckets
        start_ns = current.range_ns[0] if current else None
        job = compile_job(context, name, buckets=buckets, range_ns=(start_ns, None))
        pinned = pin_sources(context, job)
        lacking = current is not None and lacks_lifted(context, current)
        if current is not None and not lacking and current.run == job.digest(plain_inputs(pinned)):
            return unchanged(home, job, current)
        compared = {} if current is None else compare_sources(job, current, pinned)
        changes = None if current is None or lacking else find_changes(job, current, compared)
        return run(
            context,
            home,
            opened,
            job,
            pinned,
            executor=workers,
            progress=progress or Silence(),
            changes=changes,
            carryover=Carryover() if changes is None else _carryover(home, job, current, pinned, compared),
        )


def _before_start(home: Home, job: Job, current: Manifest | None, pinned: Mapping[str, Pinned]) -> Carryover:
    """A run from a start on needs what came before: the newest version may have kept it.

    A run over everything takes nothing over: it depends on the sources alone.
    """
    if job.range_ns[0] is None or current is None or not current.states or not is_carried(job):
        return Carryover()
    return _carryover(home, job, current, pinned, compare_sources(job, current, pinned))


def _carryover(
    home: Home,
    job: Job,
    current: Manifest | None,
    pinned: Mapping[str, Pinned],
    compared: Mapping[str, Comparison | None],
) -> Carryover:
    if current is None:
        return Carryover()
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
