"""One run, from pinned sources to a published version. Every step is numbered by the files it announces."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurestore.core.fingerprint import PartitionDigest, combine_partitions
from featurestore.core.time import DAY_NS, day_of_text
from featurestore.errors import FeatureStoreError
from featurestore.materialize.carried import Carryover, ChainStates, state_key
from featurestore.materialize.changes import FOREVER, Changes, Span
from featurestore.materialize.compute import Answer, Work, compute_chain
from featurestore.materialize.context import Context, Home
from featurestore.materialize.executors import Executor
from featurestore.materialize.inputs import (
    Pinned,
    merge_spans,
    plain_inputs,
    reach_of,
    recorded,
    slice_of,
    stage_source,
    statistics_of,
)
from featurestore.materialize.job import ENGINE, Job
from featurestore.materialize.partition import Shape, Written
from featurestore.materialize.plan import (
    BEGINNING,
    Chain,
    MaterializationPlan,
    plan_materialization,
    task_rows_of,
)
from featurestore.materialize.progress import Progress
from featurestore.materialize.publish import Opened, heal, local_folder, open_table, publish, staging_folder
from featurestore.materialize.result import MaterializeResult
from featurestore.materialize.staging import (
    EVERY_BUCKET,
    Budget,
    FileSpan,
    Place,
    Staged,
    Wanted,
    remove_spill,
)
from featurestore.storage.files import TEMPORARY, AnyPath, remove_folder
from featurestore.storage.manifest import Manifest, ManifestColumn, Pack, Shard, schema_text, version_folder
from featurestore.storage.objects import ObjectPath
from featurestore.storage.packing import plan_packs
from featurestore.storage.state_files import State, StateIndex, link_states, merged, write_index
from featurestore.storage.uploads import Upload
from featurestore.storage.version_files import share_files


@dataclass(frozen=True, slots=True)
class Computed:
    """What the tasks of a run wrote.

    Attributes:
        places: Every partition that the spine has in the days looked at.
        spans: Times of the files read, by source.
        states: What the tasks left behind for later runs.
    """

    written: tuple[Written, ...]
    places: frozenset[Place]
    spans: Mapping[str, list[FileSpan]]
    dropped: int
    states: StateIndex


def compute_version(
    job: Job,
    pinned: Mapping[str, Pinned],
    shape: Shape,
    *,
    executor: Executor,
    progress: Progress,
    changes: Changes | None,
    carryover: Carryover,
    memory_bytes: int,
    spill: Path,
) -> Computed:
    """Read the sources once and compute every partition that is wanted.

    Args:
        changes: Compute only what these can reach; `None`: everything.
        carryover: States of an earlier version to go on from, and what is known of unchanged files.

    Cost:
        Sources are held split in memory up to half of `memory_bytes`, beyond that in spill files.
    """
    try:
        staging = _Staging(job, pinned, executor, progress, carryover, memory_bytes=memory_bytes, spill=spill)
        wanted = None if changes is None else list(changes.spans)
        plan, spine, parts, carryover = (_stage_view if job.view is not None else _stage_set)(
            staging, carryover, wanted, task_rows=task_rows_of(job, memory_bytes)
        )
        answers = _execute(
            job, shape, plan, spine, parts, carryover, executor, progress, memory_bytes=memory_bytes
        )
        written = sorted((w for a in answers for w in a.written), key=lambda w: (w.data.date, w.data.bucket))
        states = merged([a.states for a in answers])
        return Computed(tuple(written), frozenset(spine.parts), staging.spans, spine.dropped, states)
    finally:
        remove_spill(spill)


def run(
    context: Context,
    home: Home,
    opened: Opened,
    job: Job,
    pinned: Mapping[str, Pinned],
    *,
    executor: Executor,
    progress: Progress,
    changes: Changes | None,
    carryover: Carryover,
) -> MaterializeResult:
    """Compute and publish a version on top of the newest; the writer's lock is held.

    Raises:
        SchemaError: columns that do not fit together.
        CommitConflictError: another writer committed first.
        StorageError: the disk refused; the previous version is intact.
    """
    begin = time.monotonic()
    log = open_table(context, home, job, opened.log)
    staged = staging_folder(home)
    shape = shape_of(job, home.delta, staged)
    spill = shape.ipc.with_name(f"{shape.ipc.name}.spill")
    try:
        computed = compute_version(
            job,
            pinned,
            shape,
            executor=executor,
            progress=progress,
            changes=changes,
            carryover=carryover,
            memory_bytes=context.config.memory_bytes,
            spill=spill,
        )
        kept = _kept_shards(opened.current, changes)
        _link_kept(home, opened.current, staged, kept)
        active = log.files_at(log.head)
        fresh = {(f.data.date, f.data.bucket) for f in computed.written}
        keep = {(s.date, s.bucket) for s in kept}
        removed = [f for f in active.values() if (f.date, f.bucket) not in keep]
        added = [w.data for w in computed.written if w.data.path not in active]
        again = {w.data.path for w in computed.written if w.data.path in active}
        spans = {
            name: merge_spans(carryover.known.get(name, ()), computed.spans.get(name, ())) for name in pinned
        }
        states = merged([carryover.index, computed.states])
        link_states(carryover.folder, staged, carryover.index)
        manifest = build_manifest(
            job,
            pinned,
            spans,
            shards=[*kept, *(w.shard for w in computed.written)],
            version=log.head + 1,
            created_ns=max(context.clock.now_ns(), log.commits[-1].time_ns + 1),
            states=write_index(staged, states),
        )
        folder = publish(
            home,
            log,
            staged,
            manifest,
            added=added,
            removed=[f for f in removed if f.path not in again],
            operation="WRITE",
            previous=opened.current,
            now_ns=manifest.created_ns,
        )
    except BaseException:
        _give_up(home)
        raise
    finally:
        if shape.upload is not None:
            remove_folder(shape.ipc)
    return MaterializeResult(
        name=job.name,
        kind=job.kind,
        version=manifest.version,
        rows=manifest.rows,
        fingerprint=manifest.fingerprint,
        partitions=len(manifest.shards),
        written=len(fresh),
        written_bytes=sum(w.data.size + w.shard.bytes for w in computed.written),
        seconds=time.monotonic() - begin,
        created=True,
        folder=folder,
        dropped_rows=computed.dropped,
    )


def unchanged(home: Home, job: Job, current: Manifest) -> MaterializeResult:
    """Return the newest version as the result of a run that found nothing to do."""
    return MaterializeResult(
        name=job.name,
        kind=job.kind,
        version=current.version,
        rows=current.rows,
        fingerprint=current.fingerprint,
        partitions=len(current.shards),
        written=0,
        written_bytes=0,
        seconds=0.0,
        created=False,
        folder=home.ipc / version_folder(current.version),
    )


def shape_of(job: Job, delta: AnyPath, ipc: AnyPath) -> Shape:
    """Return the layout of a job's partitions; under a remote root they are written here and sent there."""
    local = local_folder(ipc)
    upload = None
    if isinstance(delta, ObjectPath) and isinstance(ipc, ObjectPath):
        upload = Upload(delta, ipc.parent)
    return Shape(
        schema=job.schema,
        keys=job.keys,
        timestamp=job.spine.times.timestamp,
        created=job.spine.times.created,
        sequence=job.spine.times.sequence,
        packs=plan_packs(job.schema, job.features) if job.kind == "training_set" else (),
        delta=delta if isinstance(delta, Path) else local / "delta",
        ipc=local,
        upload=upload,
    )


def fingerprint_of(schema: object, shards: Sequence[Shard]) -> str:
    """Return the fingerprint of a version from its partitions."""
    return combine_partitions(
        schema, (PartitionDigest(day_of_text(s.date), s.bucket, s.rows, s.digest) for s in shards)
    )


def build_manifest(
    job: Job,
    pinned: Mapping[str, Pinned],
    spans: Mapping[str, Sequence[FileSpan]],
    *,
    shards: Sequence[Shard],
    version: int,
    created_ns: int,
    states: str,
) -> Manifest:
    """Describe a version."""
    ordered = tuple(sorted(shards, key=lambda s: (s.date, s.bucket)))
    ledger_at = min(p.table.ledger_at for p in pinned.values())
    packs = plan_packs(job.schema, job.features) if job.kind == "training_set" else ()
    return Manifest(
        name=job.name,
        kind=job.kind,
        version=version,
        fingerprint=fingerprint_of(job.schema, ordered),
        rows=sum(s.rows for s in ordered),
        catalog_version=job.catalog_version,
        definition=job.definition,
        definitions=dict(job.definitions),
        inputs=recorded(pinned, spans),
        engine=ENGINE,
        timestamp=job.spine.times.timestamp,
        entity_keys=job.keys,
        columns=tuple(
            ManifestColumn(
                name=f.name, type=str(f.type), role=job.roles[f.name][0], view=job.roles[f.name][1]
            )
            for f in job.schema
        ),
        packs=with_masks(packs, ordered),
        labels=job.labels,
        horizons_ns=dict(job.horizons_ns),
        windows_ns=dict(job.windows_ns),
        shards=ordered,
        created_ns=created_ns,
        arrow_schema=schema_text(job.schema),
        buckets=job.buckets,
        range_ns=job.range_ns,
        run=job.digest(plain_inputs(pinned)),
        erasure={"ledger": ledger_at} if ledger_at else {},
        states=states,
    )


def with_masks(packs: Sequence[Pack], shards: Sequence[Shard]) -> tuple[Pack, ...]:
    """Return a version's packs; one without a null in any shard has no mask."""
    return tuple(_with_mask(p, shards) for p in packs)


def _with_mask(pack: Pack, shards: Sequence[Shard]) -> Pack:
    missing = any(pack.column in s.nulls for s in shards)
    return Pack(
        column=pack.column, mask=pack.mask if missing else None, dtype=pack.dtype, features=pack.features
    )


class _Staging:
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


_Prepared = tuple[MaterializationPlan, Staged, dict[str, Staged], Carryover]


def _stage_set(
    staging: _Staging, carryover: Carryover, wanted: Sequence[Span] | None, *, task_rows: int
) -> _Prepared:
    """Read the spine, plan, then read of every source just what the tasks need."""
    job = staging.job
    spans = wanted
    if spans is None and job.range_ns[0] is not None:
        spans = [(EVERY_BUCKET, _first_day(job), FOREVER)]
    reach = None if spans is None else reach_of(job.spine, spans, states={}, buckets=job.buckets)[0]
    spine = staging.stage(job.spine.source.name, reach, spine=True)
    plan = staging.plan(spine, carryover, task_rows)
    while (sound := carryover.sound(plan.states())) is not carryover:
        carryover = sound
        plan = staging.plan(spine, carryover, task_rows)
    parts = {name: staging.stage(name, plan.reach(name), spine=False) for name in job.rows}
    staging.end()
    return plan, spine, parts, carryover


def _stage_view(
    staging: _Staging, carryover: Carryover, wanted: Sequence[Span] | None, *, task_rows: int
) -> _Prepared:
    """A view's rows are both: read once, from where its own look-back begins."""
    job = staging.job
    name = job.spine.source.name
    spans = list(wanted) if wanted is not None else [(EVERY_BUCKET, _first_day(job), FOREVER)]
    while True:
        reach, chosen = reach_of(job.rows[name], spans, states=carryover.days(), buckets=job.buckets)
        sound = carryover.sound(chosen)
        if sound is carryover:
            break
        carryover = sound
    everything = staging.stage(name, reach, spine=False)
    own = {p: part for p, part in everything.parts.items() if _in_view(job, p, wanted)}
    spine = Staged(everything.schema, own, everything.dropped, everything.max_ns)
    plan = staging.plan(spine, carryover, task_rows)
    staging.end()
    return plan, spine, {name: everything}, carryover


def _first_day(job: Job) -> int:
    return BEGINNING if job.range_ns[0] is None else job.range_ns[0] // DAY_NS


def _range(job: Job, *, spine: bool) -> tuple[int | None, int | None]:
    """Return which rows of a source are of use; what precedes a view's range is still looked back at."""
    if not spine:
        return None, None
    return (None, job.range_ns[1]) if job.kind == "view" else job.range_ns


def _in_view(job: Job, place: Place, wanted: Sequence[tuple[int, int, int]] | None) -> bool:
    first = job.range_ns[0]
    if first is not None and place[0] < first // DAY_NS:
        return False
    if wanted is None:
        return True
    return any(b in {place[1], EVERY_BUCKET} and first <= place[0] <= last for b, first, last in wanted)


def _execute(
    job: Job,
    shape: Shape,
    plan: MaterializationPlan,
    spine: Staged,
    parts: Mapping[str, Staged],
    carryover: Carryover,
    executor: Executor,
    progress: Progress,
    *,
    memory_bytes: int,
) -> list[Answer]:
    progress.begin("compute", plan.tasks, plan.rows)
    threads = max(1, executor.workers // max(1, len(plan.chains)))
    works = [
        Work(
            job=job,
            shape=shape,
            chain=chain,
            spine=spine.of_bucket(chain.tasks[0].bucket),
            spine_schema=spine.schema,
            parts={name: staged.of_bucket(chain.tasks[0].bucket) for name, staged in parts.items()},
            schemas={name: staged.schema for name, staged in parts.items()},
            states=_chain_states(job, shape, chain, carryover),
            threads=threads,
            memory_bytes=memory_bytes,
        )
        for chain in plan.chains
    ]
    answers: list[Answer] = []
    for answer in executor.run(compute_chain, works):
        answers.append(answer)
        progress.advance(sum(w.data.rows for w in answer.written))
    progress.end()
    return answers


def _chain_states(job: Job, shape: Shape, chain: Chain, carryover: Carryover) -> ChainStates:
    bucket = chain.tasks[0].bucket
    own: dict[str, tuple[State, ...]] = {}
    for state in carryover.index.states:
        if state.bucket in {bucket, EVERY_BUCKET}:
            own[state.source] = (*own.get(state.source, ()), state)
    # A view's rows are cut at the end of the range: that date is not all there.
    cut = job.view is not None and job.range_ns[1] is not None
    return ChainStates(
        folder=carryover.folder,
        states=own,
        keys={name: state_key(job, name) for name in chain.saves} if carryover.saves else {},
        file=f"state-{bucket:04d}-{shape.ipc.name.removeprefix(TEMPORARY)[:12]}.arrows",
        last_day=(job.range_ns[1] or 0) // DAY_NS - 1 if cut else FOREVER,
    )


def _kept_shards(current: Manifest | None, changes: Changes | None) -> list[Shard]:
    if current is None or changes is None:
        return []
    return [s for s in current.shards if not changes.reaches(day_of_text(s.date), s.bucket)]


def _link_kept(home: Home, current: Manifest | None, staged: AnyPath, kept: Sequence[Shard]) -> None:
    if current is None:
        return
    folder = home.ipc / version_folder(current.version)
    share_files(folder, staged, [name for shard in kept for name in (shard.file, shard.offsets)])


def _give_up(home: Home) -> None:
    """Clear an unfinished run away at once where that is possible; otherwise the next one does.

    A commit that landed is left alone: the next writer makes it visible.
    """
    try:
        heal(home)
    except (FeatureStoreError, OSError):
        return
