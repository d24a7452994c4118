"""One run, from pinned sources to a published version. Every step is numbered by the files it announces."""

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from featurestore.core.fingerprint import PartitionDigest, combine_partitions
from featurestore.core.time import DAY_NS, day_of_text
from featurestore.errors import FeatureStoreError
from featurestore.materialize.carried import Carryover, ChainStates, state_key
from featurestore.materialize.changes import FOREVER, Changes
from featurestore.materialize.compute import Answer, Relay, Work, compute_chain
from featurestore.materialize.context import Context, Home
from featurestore.materialize.durability import Durability
from featurestore.materialize.executors import Executor
from featurestore.materialize.gathering import Gathering, Wave
from featurestore.materialize.inputs import Pinned, merge_spans, plain_inputs, recorded
from featurestore.materialize.job import ENGINE, Job
from featurestore.materialize.partition import Shape, Written
from featurestore.materialize.plan import Chain
from featurestore.materialize.progress import Progress
from featurestore.materialize.publish import Opened, heal, local_folder, open_table, publish, staging_folder
from featurestore.materialize.result import MaterializeResult
from featurestore.materialize.staging import (
    BEGINNING,
    EVERY_BUCKET,
    FileSpan,
    Held,
    Part,
    Place,
    remove_spill,
)
from featurestore.materialize.whole import Whole
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
    """Read the sources once and compute every partition wanted, early dates while later ones are read.

    Args:
        changes: Compute only what these can reach; `None`: everything.
        carryover: States of an earlier version to go on from, and what is known of unchanged files.

    Cost:
        Rows that wait for others are held split in memory up to half of `memory_bytes`, beyond that in spill
        files; sources in the order of time hardly wait.
    """
    try:
        gathering = Gathering(
            job, pinned, executor, progress, changes, carryover, memory_bytes=memory_bytes, spill=spill
        )
        with closing(gathering):
            answers, states = _execute(
                job, shape, gathering, executor, progress, memory_bytes=memory_bytes, spill=spill
            )
        written = sorted((w for a in answers for w in a.written), key=lambda w: (w.data.date, w.data.bucket))
        states = merged([states, *(a.states for a in answers)])
        places = frozenset(gathering.places)
        return Computed(tuple(written), places, gathering.spans(), gathering.dropped, states)
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
    there, local, upload = work_folders(delta, ipc)
    return Shape(
        schema=job.schema,
        keys=job.keys,
        timestamp=job.spine.times.timestamp,
        created=job.spine.times.created,
        sequence=job.spine.times.sequence,
        packs=plan_packs(job.schema, job.features) if job.kind == "training_set" else (),
        delta=there,
        ipc=local,
        upload=upload,
    )


def work_folders(delta: AnyPath, ipc: AnyPath) -> tuple[Path, Path, Upload | None]:
    """Return where workers write data files and shards, and how these get to a remote root from there."""
    local = local_folder(ipc)
    if isinstance(delta, ObjectPath) and isinstance(ipc, ObjectPath):
        return local / "delta", local, Upload(delta, ipc.parent)
    return delta if isinstance(delta, Path) else local / "delta", local, None


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


def _execute(
    job: Job,
    shape: Shape,
    gathering: Gathering,
    executor: Executor,
    progress: Progress,
    *,
    memory_bytes: int,
    spill: Path,
) -> tuple[list[Answer], StateIndex]:
    """Compute what is gathered as it comes: reading goes on while tasks run."""
    answers: list[Answer] = []
    whole = None
    if job.whole is not None:
        held = Held(gathering.budget, spill / "answers", in_memory=executor.shares_memory)
        whole = Whole(job.whole, held)
    # In this process no task waits for the disk: the next one runs meanwhile.
    with Durability() if executor.shares_memory else nullcontext() as durability:
        works = _works(job, shape, gathering, whole, executor.workers, memory_bytes, spill, durability)
        with closing(works):
            for answer in executor.run(compute_chain, works):
                answers.append(answer)
                progress.advance(sum(w.data.rows for w in answer.written))
    progress.end()
    return answers, StateIndex() if whole is None else whole.states


def _works(
    job: Job,
    shape: Shape,
    gathering: Gathering,
    whole: Whole | None,
    workers: int,
    memory_bytes: int,
    spill: Path,
    durability: Durability | None,
) -> Generator[Work, None, None]:
    """Give the work of wave after wave; a bucket's of the next when that of the one before is done."""
    relays: dict[int, Relay] = {}
    for wave in gathering.waves():
        together = Work(
            job=job,
            shape=shape,
            bucket=EVERY_BUCKET,
            chain=wave.whole,
            spine=wave.spine,
            spine_schema=wave.spine_schema,
            parts={name: parts for name, parts in wave.parts.items() if job.rows[name].keys is None},
            schemas=wave.schemas,
            answers={},
            answered=pa.schema([]),
            states=_chain_states(job, shape, EVERY_BUCKET, wave.whole, gathering.carryover, wave.number),
            until=_until(wave, wave.whole),
            is_last=wave.is_last,
            relay=None,
            spill=spill / "states",
            durability=durability,
            threads=workers,
            memory_bytes=memory_bytes,
        )
        answers = {} if whole is None else whole.answer(together)
        split = {name: parts for name, parts in wave.parts.items() if name not in together.parts}
        for bucket, chain in wave.chains:
            relay = relays.setdefault(bucket, Relay()) if gathering.relays else None
            if relay is not None and not relay.take():
                return  # its error is on its way
            yield replace(
                together,
                bucket=bucket,
                chain=chain,
                spine=_of_bucket(wave.spine, bucket),
                parts={name: _of_bucket(parts, bucket) for name, parts in split.items()},
                answers=_of_bucket(answers, bucket),
                answered=together.answered if whole is None else whole.schema,
                states=_chain_states(job, shape, bucket, chain, gathering.carryover, wave.number),
                until=_until(wave, chain),
                is_last=wave.is_last or relay is None,
                relay=relay,
                threads=max(1, workers // len(wave.chains)),
            )


def _until(wave: Wave, chain: Chain) -> int:
    """Return the date before which a chain takes everything in."""
    if wave.until is not None:
        return wave.until
    return chain.tasks[-1].days[-1] + 1 if chain.tasks else BEGINNING


def _of_bucket(parts: Mapping[Place, Part], bucket: int) -> dict[Place, Part]:
    return {p: part for p, part in parts.items() if p[1] == bucket}


def _chain_states(
    job: Job, shape: Shape, bucket: int, chain: Chain, carryover: Carryover, wave: int
) -> ChainStates:
    own: dict[str, tuple[State, ...]] = {}
    for state in carryover.index.states:
        if state.bucket == bucket:
            own[state.source] = (*own.get(state.source, ()), state)
    # A view's rows are cut at the end of the range: that date is not all there.
    cut = job.view is not None and job.range_ns[1] is not None
    whose = "every" if bucket == EVERY_BUCKET else f"{bucket:04d}"
    return ChainStates(
        folder=carryover.folder,
        states=own,
        keys={name: state_key(job, name) for name in chain.saves} if carryover.saves else {},
        file=f"state-{whose}-{wave:04d}-{shape.ipc.name.removeprefix(TEMPORARY)[:12]}.arrows",
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
