"""Versions without a subject: affected partitions are written again, all others are shared."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from featurestore.core.time import day_of_text
from featurestore.errors import CorruptDataError, NotFoundError
from featurestore.materialize.context import Context, Home
from featurestore.materialize.durability import Durability
from featurestore.materialize.erasure.contributions import mixing_sources
from featurestore.materialize.erasure.places import rows_by_shard
from featurestore.materialize.erasure.subject import Subject, names_of_version
from featurestore.materialize.maintenance import compute_again, context_then
from featurestore.materialize.partition import Shape, Written, write_partition
from featurestore.materialize.publish import local_folder, publish
from featurestore.materialize.run import fingerprint_of, with_masks, work_folders
from featurestore.storage.delta_commit import DataFile
from featurestore.storage.delta_log import DeltaLog
from featurestore.storage.files import AnyPath, remove_files
from featurestore.storage.manifest import Manifest
from featurestore.storage.shards import ShardSet
from featurestore.storage.version_files import share_files

Place = tuple[str, int]  # date, bucket


@dataclass(frozen=True, slots=True)
class Affected:
    """What a version holds of a subject.

    Attributes:
        rows: Its own rows, by shard number.
        mixing: Sources whose rows of the subject may have reached values of others.
    """

    opened: ShardSet
    rows: Mapping[int, int]
    mixing: tuple[str, ...]

    @property
    def version(self) -> int:
        """The version."""
        return self.opened.manifest.version


@dataclass(frozen=True, slots=True)
class Cleaned:
    """The partitions of a version that differ without a subject.

    Attributes:
        gone: Partitions of the version that the cleaned one does not share.
        written: What takes their place.
        rows: Rows taken out.
        unresolved: Why values of others may still be made from the subject's rows; empty where they are not.
    """

    gone: frozenset[Place]
    written: tuple[Written, ...]
    rows: int
    unresolved: str = ""


def affected_version(
    context: Context,
    opened: ShardSet,
    subject: Subject,
    *,
    held: Mapping[str, int],
    known: dict[str, int],
) -> Affected | None:
    """Find out whether a version holds anything of a subject; `None` where it cannot.

    Args:
        held: Rows of the subject in each source, as it lies; sources that are not there are missing.
        known: Counts by content, shared between versions.
    """
    manifest = opened.manifest
    rows = rows_by_shard(opened, subject, known)
    read = {str(spec["source"]) for spec in manifest.inputs}
    mixing: tuple[str, ...] = ()
    if any(held.get(name, 1) for name in read):
        found = mixing_sources(context_then(context, manifest), manifest, subject)
        mixing = tuple(name for name in found if held.get(name, 1))
    return Affected(opened, rows, mixing) if rows or mixing else None


def cleaned(
    context: Context, home: Home, log: DeltaLog, affected: Affected, subject: Subject, staged: AnyPath
) -> Cleaned:
    """Write what a version's partitions are without a subject.

    Where only the subject's own rows go, each affected partition is filtered. Where they reached others, the
    version is computed again from its pinned inputs, and the partitions that come out otherwise are taken.

    Cost:
        Reads and writes the affected partitions; or what materializing the version cost.
    """
    if not affected.mixing:
        return _filtered(home, log, affected, subject, staged)
    try:
        return _computed(context, home, affected, staged)
    except (NotFoundError, CorruptDataError) as error:
        own = _filtered(home, log, affected, subject, staged)
        where = ", ".join(affected.mixing)
        return replace(own, unresolved=f"values of others made from rows of {where}: {error.message}")


def republish(
    context: Context,
    home: Home,
    log: DeltaLog,
    affected: Affected,
    clean: Cleaned,
    staged: AnyPath,
    *,
    ledger: int,
    about: Mapping[str, object],
) -> Manifest:
    """Commit a version without a subject on top of the log, and make it visible.

    Raises:
        CommitConflictError: another writer committed first.
        StorageError: the disk refused; run again.
    """
    old = affected.opened.manifest
    folder = affected.opened.folder
    kept = [s for s in old.shards if (s.date, s.bucket) not in clean.gone]
    share_files(folder, staged, (name for s in kept for name in (s.file, s.offsets)))
    files = [f for f in log.files_at(old.version).values() if (f.date, f.bucket) not in clean.gone]
    files += [w.data for w in clean.written]
    now = log.files_at(log.head)
    paths = {f.path for f in files}
    shards = tuple(sorted([*kept, *(w.shard for w in clean.written)], key=lambda s: (s.date, s.bucket)))
    manifest = replace(
        old,
        version=log.head + 1,
        created_ns=max(context.clock.now_ns(), log.commits[-1].time_ns + 1),
        fingerprint=fingerprint_of(old.schema, shards),
        rows=sum(s.rows for s in shards),
        shards=shards,
        packs=with_masks(old.packs, shards),
        vocabularies={},
        states="",
        erasure={"ledger": ledger, "rows": clean.rows, "of": old.version},
    )
    publish(
        home,
        log,
        staged,
        manifest,
        added=[f for f in files if f.path not in now],
        removed=[f for p, f in now.items() if p not in paths],
        operation="ERASE",
        previous=None,
        now_ns=manifest.created_ns,
        about={"erasure": ledger, "of": old.version, **about},
    )
    return manifest


def _filtered(home: Home, log: DeltaLog, affected: Affected, subject: Subject, staged: AnyPath) -> Cleaned:
    manifest = affected.opened.manifest
    renamed = names_of_version(manifest)
    schema = manifest.schema
    files = {(f.date, f.bucket): f for f in log.files_at(manifest.version).values()}
    gone, written = [], []
    with Durability() as durability:
        for index, rows in affected.rows.items():
            shard = manifest.shards[index]
            place = (shard.date, shard.bucket)
            gone.append(place)
            if rows == shard.rows:
                continue
            table = affected.opened.shard(index).to_table(schema.names).cast(schema)
            found = write_partition(
                table.filter(pa.array(~subject.mask(table, renamed))),
                day=day_of_text(shard.date),
                bucket=shard.bucket,
                shape=_shape(home, manifest, files[place], staged),
                durability=durability,
            )
            written.append(found)
    return Cleaned(frozenset(gone), tuple(written), sum(affected.rows.values()))


def _shape(home: Home, manifest: Manifest, file: DataFile, staged: AnyPath) -> Shape:
    """Lay a partition out as it was; rows stay in the order that they have, which holds the clocks."""
    created = next((name for name in file.minimum if name != manifest.timestamp), None)
    delta, ipc, upload = work_folders(home.delta, staged)
    return Shape(
        schema=manifest.schema,
        keys=manifest.entity_keys,
        timestamp=manifest.timestamp,
        created=created,
        sequence=None,
        packs=manifest.packs,
        delta=delta,
        ipc=ipc,
        upload=upload,
    )


def _computed(context: Context, home: Home, affected: Affected, staged: AnyPath) -> Cleaned:
    """Compute a version again, sources without the subject, and keep what comes out otherwise."""
    manifest = affected.opened.manifest
    local = local_folder(staged)
    computed = compute_again(
        context_then(context, manifest),
        manifest,
        delta=home.delta,
        ipc=staged,
        spill=local.with_name(f"{local.name}.spill"),
        executor=None,
    )
    before = {(s.date, s.bucket): s.digest for s in manifest.shards}
    after = {(w.shard.date, w.shard.bucket): w for w in computed.written}
    gone = {
        p for p in before.keys() | after.keys() if p not in after or before.get(p) != after[p].shard.digest
    }
    same = [w.shard for place, w in after.items() if place not in gone]
    # In a store of objects equal shards are one object, and here nothing is left of what was sent there.
    if isinstance(staged, Path):
        remove_files([staged / name for shard in same for name in (shard.file, shard.offsets)])
    rows = manifest.rows - sum(w.shard.rows for w in computed.written)
    return Cleaned(frozenset(gone), tuple(after[p] for p in sorted(gone) if p in after), rows)
