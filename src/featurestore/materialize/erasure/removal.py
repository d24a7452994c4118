"""What an erasure takes away: versions, data files and shards that held a subject, and what runs left behind.

On a disk a version's shards go with its folder. In a store of objects versions share them: what is to go is
written down first, so that a killed removal is brought to its end.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.core.canonical import canonical_json
from featurestore.errors import NotFoundError
from featurestore.materialize.context import Home
from featurestore.materialize.erasure.rewrite import Affected
from featurestore.materialize.erasure.subject import Subject, names_of_version
from featurestore.materialize.garbage import object_names, unnamed_objects
from featurestore.materialize.publish import put_back, scratch_folder
from featurestore.storage.delta_log import DeltaLog, read_log
from featurestore.storage.files import (
    TEMPORARY,
    AnyPath,
    read_file,
    remove_files,
    remove_folder,
    replace_file,
)
from featurestore.storage.manifest import (
    MANIFEST,
    Manifest,
    current_version,
    published_versions,
    read_manifest,
    version_folder,
)
from featurestore.storage.objects import ObjectPath
from featurestore.storage.physical import from_stored
from featurestore.storage.state_files import STATES
from featurestore.storage.version_files import FILES, object_of

# Names what of a version in a store of objects is going; its own name holds the version.
_GOING: Final = ".going-"


def remove_versions(home: Home, gone: Sequence[Affected]) -> int:
    """Remove versions with the files that held the subject; returns how many files.

    Raises:
        StorageError: the disk or the store refused; run again.
    """
    if not gone:
        return 0
    log = log_of(home)
    if isinstance(home.ipc, ObjectPath):
        _note_going(home.ipc, home, log, gone)
        return finish_removals(home)
    removed = 0
    for one in gone:
        removed += remove_files([home.delta / path for path in _held(home, log, one, gone)])
        folder = home.ipc / version_folder(one.version)
        removed += sum(1 for _ in folder.iterdir())
        # The manifest goes first: a version without one is not there.
        remove_files([folder / MANIFEST])
        remove_folder(folder)
    return removed


def finish_removals(home: Home) -> int:
    """Bring removals of versions in a store of objects to their end; returns how many files went.

    What a version that is still published needs stays.
    """
    if not isinstance(home.ipc, ObjectPath):
        return 0
    notes = [path for path in home.ipc.iterdir() if path.name.startswith(_GOING)]
    removed = 0
    for note in notes:
        going = json.loads(read_file(note))
        folder = home.ipc / version_folder(int(note.stem.removeprefix(_GOING)))
        manifests = list(folder.objects())
        removed += remove_files([path for path in manifests if path.name == MANIFEST])
        removed += remove_files([path for path in manifests if path.name != MANIFEST])
        data, names = _needed(home, log_of(home)), _shared(home.ipc, without=())
        files: list[AnyPath] = [home.delta / path for path in going["data"] if path not in data]
        files += [object_of(home.ipc, name) for name in going["files"] if name not in names]
        removed += remove_files(files)
        remove_files([note])
    return removed


def remove_unnamed(home: Home, subject: Subject, *, since: int | None, now_ns: int) -> int:
    """Remove what no version names: what runs left behind, and removals of before.

    Of files on a disk only those that the subject is in; what runs left there is removed whenever one begins.
    Objects go all: values that were made from the subject's rows are not to be told from others.

    Args:
        since: The newest version when the right to write was taken; `None`: there was no table yet.

    Raises:
        CommitConflictError: another writer committed meanwhile.
    """
    head = current_version(home.ipc)
    if isinstance(home.ipc, Path):
        return 0 if since is None else _remove_unnamed_files(home, home.ipc, subject, head)
    if not isinstance(home.delta, ObjectPath):
        return 0
    log = read_log(home.delta)
    left = unnamed_objects(home.ipc, home.delta, log)
    if left and head is not None and log is not None and log.head == since:
        # A writer whose lease ran out unaware may be about to commit these: now its commit is refused.
        put_back(home, log, head, now_ns=now_ns)
    return remove_files(left)


def remove_states(home: Home) -> int:
    """Remove carried rows of sources: a later run reads what they held again."""
    if isinstance(home.ipc, ObjectPath):
        return remove_files([p for p in home.ipc.objects() if _is_state(p)])
    return remove_files([p for v in home.ipc.glob("v*") for p in (v / STATES, *v.glob("state-*"))])


def remove_scratch(home: Home) -> None:
    """Remove what recreating and spilling left behind; a run that is under way fails and can be repeated."""
    for folder in (home.lock.parent, home.ipc):
        if isinstance(folder, ObjectPath):
            remove_folder(scratch_folder(folder))
            continue
        with suppress(NotFoundError):
            for left in [p for p in folder.iterdir() if p.name.startswith(TEMPORARY) and p.is_dir()]:
                remove_folder(left)


def _note_going(ipc: ObjectPath, home: Home, log: DeltaLog, gone: Sequence[Affected]) -> None:
    kept = _shared(ipc, without=[one.version for one in gone])
    for one in gone:
        own = set(object_names(ipc / version_folder(one.version))) - kept
        note = {"data": sorted(_held(home, log, one, gone)), "files": sorted(own)}
        replace_file(ipc / f"{_GOING}{one.version}.json", canonical_json(note).encode())


def _held(home: Home, log: DeltaLog, one: Affected, gone: Sequence[Affected]) -> list[str]:
    """Return the data files of a version that hold the subject, or values made from its rows.

    Args:
        gone: All versions that go with it.
    """
    manifest = one.opened.manifest
    places = {(manifest.shards[i].date, manifest.shards[i].bucket) for i in one.rows}
    files = log.files_at(one.version).values()
    shared = _needed(home, log, without=[g.version for g in gone]) if one.mixing else set()
    return [f.path for f in files if (f.date, f.bucket) in places or (one.mixing and f.path not in shared)]


def _shared(ipc: ObjectPath, *, without: Iterable[int]) -> set[str]:
    """Return the names of the objects that published versions need."""
    left = set(published_versions(ipc)) - set(without)
    return {name for version in left for name in object_names(ipc / version_folder(version))}


def _is_state(path: ObjectPath) -> bool:
    return path.name == STATES or (path.parent.name == FILES and path.name.startswith("state-"))


def _remove_unnamed_files(home: Home, ipc: Path, subject: Subject, head: int | None) -> int:
    published = {version_folder(v) for v in published_versions(ipc)}
    for folder in ipc.iterdir():
        if folder.is_dir() and folder.name not in published:
            remove_folder(folder)
    log = log_of(home)
    named = {f.path for commit in log.commits for f in commit.added}
    left = [p for path in sorted(named - _needed(home, log)) if (p := Path(str(home.delta)) / path).exists()]
    if not left or head is None:
        return 0
    manifest = read_manifest(ipc / version_folder(head))
    return remove_files([file for file in left if _file_holds(file, subject, manifest)])


def _needed(home: Home, log: DeltaLog, *, without: Iterable[int] = ()) -> set[str]:
    versions = [v for v in set(published_versions(home.ipc)) - set(without) if v <= log.head]
    return {path for version in versions for path in log.files_at(version)}


def _file_holds(file: Path, subject: Subject, manifest: Manifest) -> bool:
    renamed = names_of_version(manifest)
    reader = pq.ParquetFile(file)
    names = {c for columns in subject.names_in(manifest.schema, renamed) for c in columns}
    held = pa.schema([f for f in manifest.schema if f.name in names and f.name in reader.schema_arrow.names])
    return bool(subject.mask(from_stored(reader.read(held.names), held), renamed).any())


def log_of(home: Home) -> DeltaLog:
    """Return the log of a training set or view that has versions.

    Raises:
        NotFoundError: it has none.
    """
    log = read_log(home.delta)
    if log is None:
        raise NotFoundError(f"{home.title!r} has no Delta log", path=str(home.delta))
    return log
