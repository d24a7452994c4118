"""Publishing: one Delta commit, then the Arrow version, each one atomic step; and healing after a crash."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from featurestore.core.canonical import digest_json
from featurestore.errors import CorruptDataError, FeatureStoreError, NotFoundError
from featurestore.materialize.context import Context, Home
from featurestore.materialize.garbage import orphans
from featurestore.materialize.job import Job
from featurestore.materialize.lock import check_writing
from featurestore.storage.delta_checkpoint import checkpoint_if_due
from featurestore.storage.delta_commit import DataFile
from featurestore.storage.delta_log import DeltaLog, commit, create_table, read_log
from featurestore.storage.files import (
    TEMPORARY,
    AnyPath,
    fsync_folder,
    make_folders,
    publish_folder,
    remove_files,
    remove_folder,
    replace_file,
    write_file,
)
from featurestore.storage.manifest import (
    CURRENT,
    MANIFEST,
    Manifest,
    current_text,
    current_version,
    read_manifest,
    version_folder,
)
from featurestore.storage.objects import ObjectPath
from featurestore.storage.physical import stored_schema
from featurestore.storage.version_files import share_files

_APP: Final = "featurestore/materialize"
# A commit that says so is never the newest: the version named is put back on top of it.
INTERIM: Final = "interim"


@dataclass(frozen=True, slots=True)
class Opened:
    """A dataset under its writer's lock, healed.

    Attributes:
        log: The Delta log; `None` before the first materialization.
        current: The newest published manifest.
    """

    log: DeltaLog | None
    current: Manifest | None


def heal(home: Home) -> Opened:
    """Bring a dataset to order after whatever happened to the last writer; its lock must be held.

    A commit whose Arrow version was not made visible is made visible now, and one that must not stay the
    newest is followed by the version that must; everything else that was left unfinished is removed.

    Raises:
        CorruptDataError: the log or the newest manifest is damaged.
    """
    make_folders(home.ipc)
    log = read_log(home.delta)
    staged = sorted(p for p in home.ipc.iterdir() if p.name.startswith(TEMPORARY))
    if log is not None and log.head > 0:
        _finish_publication(home, log, staged)
    # Objects are no files of this machine's processes: what is left of them is vacuumed when it is old.
    leftovers = [p for p in staged if isinstance(p, Path) and p.exists()]
    if leftovers:
        for folder in leftovers:
            if folder.is_dir():
                remove_folder(folder)
            else:
                remove_files([folder])
        if log is not None:
            remove_files(orphans(home, log))
    if log is not None and INTERIM in log.commits[-1].fs:
        put_back(home, log, int(log.commits[-1].fs[INTERIM]), now_ns=log.commits[-1].time_ns + 1)
        log = read_log(home.delta)
    version = current_version(home.ipc)
    current = None if version is None else read_manifest(home.ipc / version_folder(version))
    return Opened(log, current)


def staging_folder(home: Home) -> AnyPath:
    """Create the folder in which a version's Arrow files are collected.

    Its name exists before any other file of the run, so that a crash leaves a trace to heal from. (In a store
    of objects it is only a name: nothing lies below it before the manifest does.)
    """
    return make_folders(home.ipc / f"{TEMPORARY}{uuid.uuid4().hex}")


def local_folder(staged: AnyPath) -> Path:
    """Return the folder on this machine in which workers write: the staged one itself where it is here."""
    if isinstance(staged, Path):
        return staged
    return make_folders(scratch_folder(staged.parent) / staged.name)


def scratch_folder(base: ObjectPath) -> Path:
    """Return where on this machine the files lie that are made for what is staged below a name."""
    return Path(base.store.cache.folder) / "scratch" / digest_json([str(base)])


def open_table(context: Context, home: Home, job: Job, log: DeltaLog | None) -> DeltaLog:
    """Return the table's log, creating the empty version 0 where there is none.

    Raises:
        CorruptDataError: the log vanished under the lock.
    """
    if log is None:
        create_table(
            home.delta,
            stored_schema(job.schema),
            table_id=str(uuid.uuid4()),
            time_ns=context.clock.now_ns(),
            properties=_properties(job.name),
        )
        log = read_log(home.delta)
    if log is None:
        raise CorruptDataError(f"the log of {str(home.delta)!r} vanished", path=str(home.delta))
    return log


def publish(
    home: Home,
    log: DeltaLog,
    staged: AnyPath,
    manifest: Manifest,
    *,
    added: Sequence[DataFile],
    removed: Sequence[DataFile],
    operation: str,
    previous: Manifest | None,
    now_ns: int,
    about: Mapping[str, Any] | None = None,
) -> AnyPath:
    """Commit files and make the version visible; after the commit nothing can be lost any more.

    Returns:
        The version's folder.

    Raises:
        CommitConflictError: another writer committed first; nothing was changed.
        CorruptDataError: the commit got another number than the manifest.
        StorageError: the disk refused; run again.
    """
    write_file(staged / MANIFEST, manifest.to_json())
    fsync_folder(staged)
    check_writing(home)
    same = previous is not None and previous.schema.equals(manifest.schema)
    version = commit(
        log,
        added=added,
        removed=removed,
        operation=operation,
        app_id=f"{_APP}/{manifest.name}",
        now_ns=now_ns,
        schema=None if same or log.head == 0 else stored_schema(manifest.schema),
        properties=_properties(manifest.name),
        about={
            "staged": staged.name,
            "run": manifest.run,
            "fingerprint": manifest.fingerprint,
            "manifest": digest_json(manifest.spec()),
            **(about or {}),
        },
    )
    if version != manifest.version:
        raise CorruptDataError(f"committed version {version}, the manifest says {manifest.version}")
    folder = _make_visible(home, staged, version, newest=INTERIM not in (about or {}))
    checkpoint_if_due(home.delta, version)
    return folder


def put_back(
    home: Home, log: DeltaLog, version: int, *, now_ns: int, about: Mapping[str, Any] | None = None
) -> tuple[Manifest, AnyPath]:
    """Make an older version the newest again, as a new version that shares its files.

    Returns:
        The new version's manifest and folder.

    Raises:
        NotFoundError: no such version, or it was vacuumed.
        CommitConflictError: another writer committed first; nothing was changed.
    """
    folder = home.ipc / version_folder(version)
    found = read_manifest(folder)
    numbered = found.numbered(log.head + 1, max(now_ns, log.commits[-1].time_ns + 1))
    manifest = replace(numbered, states="")
    staged = staging_folder(home)
    share_files(folder, staged, (name for s in manifest.shards for name in (s.file, s.offsets)))
    old, now = log.files_at(version), log.files_at(log.head)
    target = publish(
        home,
        log,
        staged,
        manifest,
        added=[f for p, f in old.items() if p not in now],
        removed=[f for p, f in now.items() if p not in old],
        operation="RESTORE",
        previous=None,
        now_ns=manifest.created_ns,
        about={"restored": version, **(about or {})},
    )
    return manifest, target


def _make_visible(home: Home, staged: AnyPath, version: int, *, newest: bool = True) -> AnyPath:
    target = home.ipc / version_folder(version)
    if not target.exists():
        publish_folder(staged, target)
    if newest and isinstance(target, Path):  # in a store of objects the newest manifest is the current one
        replace_file(home.ipc / CURRENT, current_text(version))
    return target


def _finish_publication(home: Home, log: DeltaLog, staged: Sequence[AnyPath]) -> None:
    """The commit landed, its answer or its publication did not: finish it."""
    head = log.commits[-1]
    if current_version(home.ipc) == head.version:
        return
    newest = INTERIM not in head.fs
    target = home.ipc / version_folder(head.version)
    if target.is_dir():
        _make_visible(home, target, head.version, newest=newest)
        return
    for folder in staged:
        if folder.name == head.fs.get("staged") and _is_complete(
            folder, head.version, head.fs.get("manifest")
        ):
            _make_visible(home, folder, head.version, newest=newest)
            return


def _is_complete(folder: AnyPath, version: int, digest: object) -> bool:
    try:
        manifest = read_manifest(folder)
    except (CorruptDataError, NotFoundError):
        return False
    try:
        return manifest.version == version and digest_json(manifest.spec()) == digest
    except FeatureStoreError:
        return False


def _properties(name: str) -> dict[str, str]:
    return {"featurestore.name": name}
