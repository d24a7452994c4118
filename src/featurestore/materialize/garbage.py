"""What a vacuum may delete: files that no kept version needs, and what interrupted runs left behind."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from featurestore.materialize.context import Home
from featurestore.storage.delta_log import LOG, DeltaLog
from featurestore.storage.files import TEMPORARY, AnyPath, remove_files, remove_folder
from featurestore.storage.manifest import MANIFEST, published_versions, read_manifest, version_folder
from featurestore.storage.objects import ObjectInfo, ObjectPath
from featurestore.storage.state_files import read_index
from featurestore.storage.version_files import FILES, shard_name

_HOUR_NS: Final = 3_600_000_000_000


def orphans(home: Home, log: DeltaLog) -> list[AnyPath]:
    """Return data files that no commit ever named: what interrupted runs left behind."""
    named = {home.delta / f.path for c in log.commits for f in c.added}
    there: Iterable[AnyPath] = home.delta.rglob("*.parquet")
    # The log's own checkpoints are Parquet files, too.
    return sorted((p for p in there if p not in named and p.parent.name != LOG), key=str)


def unneeded(home: Home, log: DeltaLog, kept: set[int], *, recent_hours: float) -> list[AnyPath]:
    """Return the version folders, then the data files, that none of some versions needs.

    In a store of objects nothing younger than `recent_hours`, by the store's clock, is among them: a writer
    whose lease ran out may have put it and be about to commit it.

    Raises:
        CorruptDataError: the manifest of a kept version is damaged.
    """
    needed = {path for version in kept if version <= log.head for path in log.files_at(version)}
    if isinstance(home.ipc, ObjectPath) and isinstance(home.delta, ObjectPath):
        return _unneeded_objects(home.ipc, home.delta, kept, needed, recent_hours)
    known = {f.path for c in log.commits for f in c.added}
    files: list[AnyPath] = [home.delta / p for p in sorted(known - needed) if (home.delta / p).exists()]
    folders = [home.ipc / version_folder(v) for v in published_versions(home.ipc) if v not in kept]
    return [*folders, *files, *orphans(home, log)]


def delete(paths: Iterable[AnyPath]) -> None:
    """Delete what `unneeded` returned.

    Raises:
        StorageError: the disk or the store refused.
    """
    files = []
    for path in paths:
        if isinstance(path, Path) and path.is_dir():
            # The manifest goes first: a version without one is not there.
            remove_files([path / MANIFEST])
            remove_folder(path)
        else:
            files.append(path)
    manifests = [path for path in files if path.name == MANIFEST]
    remove_files(manifests)
    remove_files(path for path in files if path.name != MANIFEST)


def _unneeded_objects(
    ipc: ObjectPath, delta: ObjectPath, kept: set[int], needed: set[str], recent_hours: float
) -> list[AnyPath]:
    until_ns = ipc.store.now_ns() - int(recent_hours * _HOUR_NS)
    names = {name for version in kept for name in object_names(ipc / version_folder(version))}
    folders = {version_folder(version) for version in kept}
    old = [p for p, info in ipc.objects().items() if _is_old(info, until_ns)]
    in_versions = [
        p
        for p in old
        if p.parent.parent == ipc
        and (p.name not in names if p.parent.name == FILES else p.parent.name not in folders)
        and p.parent.name.startswith((FILES, "v", TEMPORARY))
    ]
    data = [
        p
        for p, info in delta.objects().items()
        if _is_data(p) and _is_old(info, until_ns) and p.relative_to(delta).as_posix() not in needed
    ]
    return [*in_versions, *data]


def unnamed_objects(ipc: ObjectPath, delta: ObjectPath, log: DeltaLog | None) -> list[ObjectPath]:
    """Return the data files and shards that no published version names, of any age."""
    versions = [] if log is None else [v for v in published_versions(ipc) if v <= log.head]
    data = {path for version in versions if log is not None for path in log.files_at(version)}
    names = {name for version in versions for name in object_names(ipc / version_folder(version))}
    shards = [p for p in (ipc / FILES).objects() if p.name not in names]
    files = [p for p in delta.objects() if _is_data(p) and p.relative_to(delta).as_posix() not in data]
    return shards + files


def object_names(folder: ObjectPath) -> Iterator[str]:
    """Give the names of the objects that a version needs among those of all versions."""
    if not (folder / MANIFEST).is_file():
        return
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        yield shard_name(shard.xxh3)
        yield shard_name(shard.offsets_xxh3)
    for whole in read_index(folder, manifest.states).files:
        yield whole.file


def _is_data(path: ObjectPath) -> bool:
    # The log's own checkpoints are Parquet files, too.
    return path.name.endswith(".parquet") and path.parent.name != LOG


def _is_old(info: ObjectInfo, until_ns: int) -> bool:
    return info.modified_ns <= until_ns
