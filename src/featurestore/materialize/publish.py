"""Publishing: one Delta commit, then the Arrow version, each one atomic step; and healing after a crash."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from featurestore.core.canonical import digest_json
from featurestore.errors import CorruptDataError, FeatureStoreError, NotFoundError
from featurestore.materialize.context import Context, Home
from featurestore.materialize.job import Job
from featurestore.storage.delta_log import DataFile, DeltaLog, commit, create_table, read_log
from featurestore.storage.files import (
    TEMPORARY,
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
from featurestore.storage.physical import stored_schema

_APP: Final = "featurestore/materialize"


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

    A commit whose Arrow version was not made visible is made visible now; everything else that was left
    unfinished is removed.

    Raises:
        CorruptDataError: the log or the newest manifest is damaged.
    """
    make_folders(home.ipc)
    log = read_log(home.delta)
    staged = sorted(p for p in home.ipc.iterdir() if p.name.startswith(TEMPORARY))
    if log is not None and log.head > 0:
        _finish_publication(home, log, staged)
    leftovers = [p for p in staged if p.exists()]
    if leftovers:
        for folder in leftovers:
            if folder.is_dir():
                remove_folder(folder)
            else:
                remove_files([folder])
        if log is not None:
            remove_files(orphans(home, log))
    version = current_version(home.ipc)
    current = None if version is None else read_manifest(home.ipc / version_folder(version))
    return Opened(log, current)


def orphans(home: Home, log: DeltaLog) -> list[Path]:
    """Return data files that no commit ever named: what interrupted runs left behind."""
    named = {home.delta / f.path for c in log.commits for f in c.added}
    return [p for p in sorted(home.delta.rglob("*.parquet")) if p not in named]


def staging_folder(home: Home) -> Path:
    """Create the folder in which a version's Arrow files are collected.

    Its name exists before any other file of the run, so that a crash leaves a trace to heal from.
    """
    return make_folders(home.ipc / f"{TEMPORARY}{uuid.uuid4().hex}")


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
    staged: Path,
    manifest: Manifest,
    *,
    added: Sequence[DataFile],
    removed: Sequence[DataFile],
    operation: str,
    previous: Manifest | None,
    now_ns: int,
    about: Mapping[str, Any] | None = None,
) -> Path:
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
    return _make_visible(home, staged, version)


def _make_visible(home: Home, staged: Path, version: int) -> Path:
    target = home.ipc / version_folder(version)
    if not target.exists():
        publish_folder(staged, target)
    replace_file(home.ipc / CURRENT, current_text(version))
    return target


def _finish_publication(home: Home, log: DeltaLog, staged: Sequence[Path]) -> None:
    """The commit landed, its answer or its publication did not: finish it."""
    head = log.commits[-1]
    if current_version(home.ipc) == head.version:
        return
    target = home.ipc / version_folder(head.version)
    if target.is_dir():
        _make_visible(home, target, head.version)
        return
    for folder in staged:
        if folder.name == head.fs.get("staged") and _is_complete(
            folder, head.version, head.fs.get("manifest")
        ):
            _make_visible(home, folder, head.version)
            return


def _is_complete(folder: Path, version: int, digest: object) -> bool:
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
