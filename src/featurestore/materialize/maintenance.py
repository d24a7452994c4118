"""Looking after versions: verify what is stored, recreate it from its inputs, delete what nobody needs."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from featurestore.catalog.catalog import open_catalog
from featurestore.core.arguments import whole
from featurestore.core.fingerprint import partition_digest
from featurestore.errors import CorruptDataError, DefinitionError, NotFoundError
from featurestore.materialize.carried import Carryover
from featurestore.materialize.context import Context, Home, home_of
from featurestore.materialize.executors import Executor, executor_of
from featurestore.materialize.garbage import delete, unneeded
from featurestore.materialize.inputs import pin_sources
from featurestore.materialize.job import compile_job
from featurestore.materialize.lock import check_writing, writing
from featurestore.materialize.partition import Shape, canonical_order
from featurestore.materialize.progress import Silence
from featurestore.materialize.publish import heal, local_folder
from featurestore.materialize.run import Computed, compute_version, fingerprint_of, shape_of
from featurestore.materialize.tags import Version, resolve_version, tags_of
from featurestore.storage.delta_checkpoint import check_checkpoint, write_checkpoint
from featurestore.storage.delta_commit import DataFile
from featurestore.storage.delta_log import DeltaLog, read_log
from featurestore.storage.files import TEMPORARY, AnyPath, make_folders, remove_folder
from featurestore.storage.manifest import Manifest, Shard, current_version, published_versions
from featurestore.storage.parquet import check_parquet, read_parquet
from featurestore.storage.physical import from_stored
from featurestore.storage.shards import ShardView, open_dataset_folder
from featurestore.storage.snapshots import snapshot_from_spec
from featurestore.storage.state_files import check_states, read_index
from featurestore.storage.version_files import fetched

# Below this a file's fixed cost, an open and a footer, outweighs its rows.
_SMALL_FILE_ROWS: Final = 10_000
_HOUR_NS: Final = 3_600_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was compared, all of it equal."""

    name: str
    version: int
    rows: int
    partitions: int
    files: int
    bytes: int
    fingerprint: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RecreateReport:
    """A version, computed again from its pinned inputs.

    Attributes:
        fingerprint: Of both the stored and the new content.
    """

    name: str
    version: int
    rows: int
    fingerprint: str
    executor: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactReport:
    """How the files of a version lie, and that they are as few as its layout allows.

    Attributes:
        files: Parquet files; as many as `partitions`, in canonical order, from the start.
        rows_per_file: The median.
        checkpoint: The log's version up to which other readers need no commit files.
        created: Whether a new version was made: never, as there is nothing to rewrite.
        note: What this means, in words.
    """

    name: str
    version: int
    fingerprint: str
    rows: int
    partitions: int
    files: int
    rows_per_file: int
    checkpoint: int
    created: bool
    seconds: float
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def verify(context: Context, name: str, version: Version | None = None) -> VerifyReport:
    """Hash every file of a version again and compare rows, order, manifest, log and fingerprint.

    The same content must come out of the Parquet files and of the Arrow shards.

    Raises:
        CorruptDataError: something is not as it was written.
        NotFoundError: no such version, or a file is gone.

    Cost:
        Reads everything twice, one partition at a time.
    """
    begin = time.monotonic()
    home = home_of(context, name)
    number = None if version is None else resolve_version(home, version)
    opened = open_dataset_folder(home.ipc, number, verify="full")
    manifest = opened.manifest
    log = read_log(home.delta)
    if log is None:
        raise CorruptDataError(f"{home.title!r} has no Delta log", path=str(home.delta))
    check_checkpoint(log)
    active = _matching_files(log, manifest)
    states = read_index(opened.folder, manifest.states)
    state_bytes = check_states(opened.folder, states)
    shape = _shape(manifest)
    for index, shard in enumerate(manifest.shards):
        _verify_partition(home, shape, manifest, opened.shard(index), active[shard.date, shard.bucket])
    if fingerprint_of(manifest.schema, manifest.shards) != manifest.fingerprint:
        raise CorruptDataError(f"the fingerprint of {home.title!r} does not follow from its partitions")
    if sum(s.rows for s in manifest.shards) != manifest.rows:
        raise CorruptDataError(f"the manifest of {home.title!r} counts other rows than its shards")
    return VerifyReport(
        name=home.title,
        version=manifest.version,
        rows=manifest.rows,
        partitions=len(manifest.shards),
        files=3 * len(manifest.shards) + 1 + (len(states.files) + 1 if states.files else 0),
        bytes=sum(s.bytes for s in manifest.shards) + sum(f.size for f in active.values()) + state_bytes,
        fingerprint=manifest.fingerprint,
        seconds=time.monotonic() - begin,
    )


def recreate(
    context: Context,
    name: str,
    version: Version | None = None,
    *,
    executor: Executor | str | None = None,
) -> RecreateReport:
    """Compute a version again from its pinned inputs and definitions, and compare fingerprints.

    Raises:
        NotFoundError: an input is gone.
        CorruptDataError: an input that is a plain file has changed, or the fingerprint differs.
    """
    begin = time.monotonic()
    home = home_of(context, name)
    number = None if version is None else resolve_version(home, version)
    manifest = open_dataset_folder(home.ipc, number, verify="off").manifest
    then = context_then(context, manifest)
    workers = executor_of(executor, default=context.config.executor, workers=context.config.threads)
    scratch = local_folder(make_folders(home.lock.parent / f"{TEMPORARY}recreate-{time.monotonic_ns():x}"))
    try:
        computed = compute_again(
            then,
            manifest,
            delta=scratch / "delta",
            ipc=make_folders(scratch / "ipc"),
            spill=scratch / "spill",
            executor=workers,
        )
        found = fingerprint_of(manifest.schema, [w.shard for w in computed.written])
    finally:
        remove_folder(scratch)
    if found != manifest.fingerprint:
        raise CorruptDataError(
            f"version {manifest.version} of {home.title!r} came out with fingerprint {found}, "
            f"it was {manifest.fingerprint}",
            hint="the engine changed since, or the stored version is not what its inputs give",
            expected=manifest.fingerprint,
            found=found,
        )
    return RecreateReport(
        name=home.title,
        version=manifest.version,
        rows=manifest.rows,
        fingerprint=found,
        executor=type(workers).__name__.lower(),
        seconds=time.monotonic() - begin,
    )


def compute_again(
    then: Context,
    manifest: Manifest,
    *,
    delta: AnyPath,
    ipc: AnyPath,
    spill: Path,
    executor: Executor | str | None,
) -> Computed:
    """Compute a version from its pinned inputs; files are written to `delta` and `ipc`, none is published.

    Args:
        then: The context as of the version, see `context_then`.

    Raises:
        NotFoundError: an input is gone.
        CorruptDataError: an input that is a plain file has changed.
    """
    job = compile_job(then, manifest.name, buckets=manifest.buckets, range_ns=manifest.range_ns)
    pins = {spec["source"]: snapshot_from_spec(spec) for spec in manifest.inputs}
    return compute_version(
        job,
        pin_sources(then, job, pins),
        shape_of(job, delta, ipc),
        executor=executor_of(executor, default=then.config.executor, workers=then.config.threads),
        progress=Silence(),
        changes=None,
        carryover=Carryover(saves=False),
        memory_bytes=then.config.memory_bytes,
        spill=spill,
    )


def compact(context: Context, name: str) -> CompactReport:
    """Gather the log's commits in a checkpoint for other readers, and say how the data files lie.

    Data files are never rewritten: every (event date, bucket) of a version is one file in canonical order
    from the start, whatever runs it came from, and nothing else can be appended. Fewer and larger files are
    a matter of fewer buckets, which belong to a table's layout and to its fingerprint.

    Raises:
        NotFoundError: nothing has been materialized.
        CommitConflictError: another process is writing it.
        CorruptDataError: log and manifest name other files.
    """
    begin = time.monotonic()
    home = home_of(context, name)
    with writing(home):
        opened = heal(home)
        if opened.log is None or opened.current is None:
            raise NotFoundError(f"{home.title!r} has no versions", hint="materialize it first")
        manifest = opened.current
        files = _matching_files(opened.log, manifest)
        write_checkpoint(opened.log)
    median = int(np.median([s.rows for s in manifest.shards])) if manifest.shards else 0
    small = median < _SMALL_FILE_ROWS and manifest.buckets > 1
    return CompactReport(
        name=home.title,
        version=manifest.version,
        fingerprint=manifest.fingerprint,
        rows=manifest.rows,
        partitions=len(manifest.shards),
        files=len(files),
        rows_per_file=median,
        checkpoint=opened.log.head,
        created=False,
        seconds=time.monotonic() - begin,
        note="nothing to rewrite: each partition is one sorted file already"
        + (f"; {manifest.buckets} buckets are many for so few rows, fewer need a new table" if small else ""),
    )


def vacuum(
    context: Context, name: str, *, keep: int = 1, recent_hours: float = 24, dry_run: bool = True
) -> list[str]:
    """Delete what neither a tag, nor the newest `keep` versions, nor a recent reader needs.

    Args:
        recent_hours: A version replaced less than so long ago is kept: someone may be reading it.

    Returns:
        The files and folders that were deleted, or with `dry_run` would be.

    Raises:
        CommitConflictError: another process is writing the dataset.
        DefinitionError: `keep` below 1.
    """
    whole("vacuum", "keep", keep, least=1)  # the newest version is always kept
    if recent_hours < 0:
        raise DefinitionError(f"vacuum has recent_hours={recent_hours}", hint="give 0 or more")
    home = home_of(context, name)
    with writing(home):
        log = heal(home).log
        if log is None:
            return []
        kept = _kept_versions(home, keep)
        if recent_hours > 0:
            since_ns = context.clock.now_ns() - int(recent_hours * _HOUR_NS)
            kept |= {c.version - 1 for c in log.commits[1:] if c.time_ns >= since_ns}
        kept |= set(tags_of(home).values())
        found = unneeded(home, log, kept, recent_hours=recent_hours)
        if not dry_run:
            check_writing(home)
            delete(found)
    return [str(p) for p in found]


def _kept_versions(home: Home, keep: int) -> set[int]:
    kept = set(published_versions(home.ipc)[-max(1, keep) :])
    current = current_version(home.ipc)
    return kept if current is None else kept | {current}


def _matching_files(log: DeltaLog, manifest: Manifest) -> dict[tuple[str, int], DataFile]:
    active = {(f.date, f.bucket): f for f in log.files_at(manifest.version).values()}
    shards = {(s.date, s.bucket): s for s in manifest.shards}
    if active.keys() != shards.keys():
        raise CorruptDataError(
            f"version {manifest.version} of {manifest.name!r}: log and manifest name other partitions"
        )
    for place, file in active.items():
        shard = shards[place]
        if (file.digest, file.rows) != (shard.digest, shard.rows):
            raise CorruptDataError(
                f"version {manifest.version} of {manifest.name!r}: log and manifest differ about partition "
                f"{place[0]} bucket {place[1]}"
            )
    return active


def _shape(manifest: Manifest) -> Shape:
    return Shape(
        schema=manifest.schema,
        keys=manifest.entity_keys,
        timestamp=manifest.timestamp,
        created=None,
        sequence=None,
        packs=manifest.packs,
        delta=Path(),  # nothing is written
        ipc=Path(),
    )


def _verify_partition(home: Home, shape: Shape, manifest: Manifest, view: ShardView, file: DataFile) -> None:
    where = f"{manifest.name!r} version {manifest.version}, {file.date} bucket {file.bucket}"
    with fetched(home.delta / file.path, file.size) as path:
        check_parquet(path, xxh3=file.xxh3, rows=file.rows, size=file.size)
        stored = from_stored(read_parquet(path), manifest.schema)
    mapped = view.to_table(manifest.schema.names).cast(manifest.schema)
    for what, table in (("Parquet", stored), ("Arrow", mapped)):
        if partition_digest(table) != file.digest:
            raise CorruptDataError(f"{where}: the content of its {what} file is not what was written")
    ordered = canonical_order(mapped, shape)
    if not np.array_equal(ordered.codes, view.entity_codes) or not _same_rows(ordered.table, mapped, shape):
        raise CorruptDataError(f"{where}: rows are not in canonical order")
    _verify_offsets(where, view, view.shard)


def _same_rows(ordered: pa.Table, table: pa.Table, shape: Shape) -> bool:
    return bool(ordered.column(shape.timestamp).equals(table.column(shape.timestamp)))


def _verify_offsets(where: str, view: ShardView, shard: Shard) -> None:
    offsets, codes = view.offsets, view.entity_codes
    covered = int(np.count_nonzero(codes >= 0))
    counts = np.bincount(codes[codes >= 0], minlength=shard.entities)
    if (
        len(offsets) != shard.entities + 1
        or offsets[-1] != covered
        or not np.array_equal(np.diff(offsets), counts)
    ):
        raise CorruptDataError(f"{where}: the offsets do not match the rows")


def context_then(context: Context, manifest: Manifest) -> Context:
    """Return the context with the definitions, and the erasures, as they stood when the version was made."""
    then = replace(context, ledger_at=int(manifest.erasure.get("ledger", 0)))
    if manifest.catalog_version == context.snapshot.version:
        return then
    catalog = open_catalog(context.root, dict(context.config.storage_options) or None, context.clock)
    return replace(then, snapshot=catalog.at(manifest.catalog_version))
