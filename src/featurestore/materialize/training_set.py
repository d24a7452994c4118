"""`materialize`: a new version of a training set or a view, or the newest where nothing has changed."""

from featurestore.core.time import format_instant
from featurestore.errors import DefinitionError
from featurestore.materialize.changes import find_changes
from featurestore.materialize.context import Context, home_of, lacks_lifted
from featurestore.materialize.executors import Executor, executor_of
from featurestore.materialize.inputs import pin_sources, plain_inputs
from featurestore.materialize.job import compile_job
from featurestore.materialize.lock import writing
from featurestore.materialize.progress import Progress, Silence
from featurestore.materialize.publish import heal
from featurestore.materialize.result import MaterializeResult
from featurestore.materialize.run import run, unchanged


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
        return run(
            context,
            home,
            opened,
            job,
            pinned,
            executor=workers,
            progress=progress or Silence(),
            changes=None if current is None or lacking else find_changes(job, current, pinned),
        )
