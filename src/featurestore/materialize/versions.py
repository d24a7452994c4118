"""Versions for people: history, opening by number, tag or time, differences, tags, rollback."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.training_set import TrainingSet
from featurestore.core.names import check_name, near
from featurestore.errors import AlreadyExistsError, DefinitionError, NotFoundError
from featurestore.materialize.context import Context, home_of
from featurestore.materialize.lock import writing
from featurestore.materialize.maintenance import (
    CompactReport,
    RecreateReport,
    VerifyReport,
    compact,
    recreate,
    vacuum,
    verify,
)
from featurestore.materialize.publish import heal, publish, staging_folder
from featurestore.materialize.result import MaterializeResult
from featurestore.materialize.tags import Version, resolve_version, tag_record, tags_of
from featurestore.storage.delta_log import DeltaLog, read_log
from featurestore.storage.files import AnyPath, make_folders, put_if_absent, remove_files
from featurestore.storage.manifest import Manifest, current_version, published_versions
from featurestore.storage.shards import ShardSet, open_dataset_folder
from featurestore.storage.state_files import link_states, read_index, write_index
from featurestore.storage.version_files import share_files

__all__ = [
    "CompactReport",
    "DatasetVersion",
    "RecreateReport",
    "VerifyReport",
    "VersionDiff",
    "VersionInfo",
    "compact",
    "diff",
    "history",
    "open_version",
    "pin",
    "recreate",
    "resolve_version",
    "rollback",
    "tags_of",
    "unpin",
    "vacuum",
    "verify",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionInfo:
    """One line of a dataset's history.

    Attributes:
        committed_ns: Our own commit clock, which never goes back.
        readable: Whether its files are still there; a vacuum takes them away.
    """

    version: int
    committed_ns: int
    operation: str
    rows: int
    files: int
    fingerprint: str
    tags: tuple[str, ...]
    readable: bool


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """One immutable version, open for reading.

    Attributes:
        folder: Where its Arrow files and manifest lie.
    """

    name: str
    version: int
    folder: AnyPath
    manifest: Manifest
    opened: ShardSet = field(repr=False)

    @property
    def schema(self) -> pa.Schema:
        """The logical columns: the spine's, features, labels."""
        return self.manifest.schema

    def shards(self) -> ShardSet:
        """Return the memory-mapped shards, for loaders."""
        return self.opened

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the version, or some of its columns, in canonical order; checksums are verified.

        Raises:
            NotFoundError: no such column.
            CorruptDataError: damaged files.
        """
        schema = self.selected(columns)
        tables = [view.to_table(schema.names) for view in self.opened]
        return pa.concat_tables(tables).cast(schema) if tables else schema.empty_table()

    def scan(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Read the version batch by batch, in canonical order.

        Raises:
            NotFoundError: no such column.
            CorruptDataError: damaged files.
        """
        schema = self.selected(columns)
        for view in self.opened:
            yield from view.to_table(schema.names).cast(schema).to_batches(max_chunksize=1 << 17)

    def selected(self, columns: Sequence[str] | None) -> pa.Schema:
        """Return the columns asked for; `None`: all.

        Raises:
            NotFoundError: no such column.
        """
        schema = self.schema
        if columns is None:
            return schema
        for name in columns:
            if name not in schema.names:
                raise NotFoundError(f"{self.name!r} has no column {name!r}", hint=near(name, schema.names))
        return pa.schema([schema.field(name) for name in columns])


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionDiff:
    """How one (event date, bucket) differs; `changed` rows keep keys and times and differ elsewhere."""

    date: str
    bucket: int
    added: int
    removed: int
    changed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionDiff:
    """What tells two versions apart.

    Attributes:
        same: How many partitions are equal.
        columns_added: Columns that only the newer has; `columns_removed` only the older.
    """

    name: str
    older: int
    newer: int
    same: int
    partitions: tuple[PartitionDiff, ...]
    columns_added: tuple[str, ...]
    columns_removed: tuple[str, ...]

    @property
    def added(self) -> int:
        """Rows that only the newer has."""
        return sum(p.added for p in self.partitions)

    @property
    def removed(self) -> int:
        """Rows that only the older has."""
        return sum(p.removed for p in self.partitions)

    @property
    def changed(self) -> int:
        """Rows in both that differ outside keys and times."""
        return sum(p.changed for p in self.partitions)


def published_names(context: Context) -> list[str]:
    """Return the names of the training sets and views that have a version to read, sorted."""
    kept = [
        d.name
        for d in context.snapshot.definitions()
        if isinstance(d, (TrainingSet, FeatureView))
        and current_version(home_of(context, d.name).ipc) is not None
    ]
    return sorted(kept)


def history(context: Context, name: str) -> list[VersionInfo]:
    """Return the versions, oldest first.

    Raises:
        NotFoundError: no such training set or view.
        CorruptDataError: the log is damaged.
    """
    home = home_of(context, name)
    log = read_log(home.delta)
    if log is None:
        return []
    readable = set(published_versions(home.ipc))
    tags = tags_of(home)
    return [
        VersionInfo(
            version=c.version,
            committed_ns=c.time_ns,
            operation=c.operation,
            rows=c.fs["table_rows"],
            files=c.fs["table_files"],
            fingerprint=str(c.fs.get("fingerprint", "")),
            tags=tuple(sorted(t for t, v in tags.items() if v == c.version)),
            readable=c.version in readable,
        )
        for c in log.commits[1:]
    ]


def open_version(
    context: Context, name: str, version: Version | None = None, *, verify: str = "lazy"
) -> DatasetVersion:
    """Open a version by number, tag or time; `None` is the newest.

    Args:
        verify: When checksums are compared: `lazy` on first touch, `full` now, `off` never.

    Raises:
        NotFoundError: no such dataset or version, a time before the first, or one that was vacuumed.
        CorruptDataError: damaged files.
    """
    home = home_of(context, name)
    number = None if version is None else resolve_version(home, version)
    opened = open_dataset_folder(home.ipc, number, verify=verify)
    return DatasetVersion(home.title, opened.manifest.version, opened.folder, opened.manifest, opened)


def pin(context: Context, name: str, version: Version, tag: str) -> None:
    """Give a version a name and keep it from being vacuumed.

    Raises:
        NotFoundError: no such version.
        AlreadyExistsError: the tag names another version.
        DefinitionError: the tag is not a name.
    """
    home = home_of(context, name)
    check_name(tag, "tag")
    opened = open_version(context, name, version, verify="off")
    make_folders(home.pins)
    with writing(home):
        try:
            put_if_absent(home.pins / f"{tag}.json", tag_record(tag, opened.version))
        except AlreadyExistsError as error:
            if tags_of(home)[tag] == opened.version:
                return
            raise AlreadyExistsError(
                f"tag {tag!r} of {home.title!r} names version {tags_of(home)[tag]}",
                hint="unpin it first, or choose another tag",
                tag=tag,
            ) from error


def unpin(context: Context, name: str, version: Version | None = None, tag: str | None = None) -> None:
    """Take a tag away, or every tag of a version; the version stays until a vacuum.

    Raises:
        DefinitionError: neither a version nor a tag was named.
        NotFoundError: no such tag, or it names another version.
    """
    home = home_of(context, name)
    if version is None and tag is None:
        raise DefinitionError(f"unpin what of {home.title!r}?", hint="name a version, a tag, or both")
    number = None if version is None else resolve_version(home, version)
    tags = tags_of(home)
    gone = [t for t, v in tags.items() if tag in {None, t} and number in {None, v}]
    if not gone:
        named = "" if tag is None else f" {tag!r}"
        of = "" if number is None else f" of version {number}"
        held = ", ".join(f"{t} of version {v}" for t, v in tags.items()) or "none yet"
        raise NotFoundError(f"{home.title!r} has no tag{named}{of}", hint=f"there is: {held}", tag=tag)
    remove_files([home.pins / f"{t}.json" for t in gone])


def rollback(context: Context, name: str, version: Version) -> MaterializeResult:
    """Make an older version the newest again, as a new version that shares its files.

    Raises:
        NotFoundError: no such version, or it was vacuumed.
        CommitConflictError: another process is writing it.
    """
    home = home_of(context, name)
    begin = time.monotonic()
    with writing(home):
        opened = heal(home)
        if opened.log is None or opened.current is None:
            raise NotFoundError(f"{home.title!r} has no versions", hint="materialize it first")
        source = open_dataset_folder(home.ipc, resolve_version(home, version), verify="off")
        manifest = _again(context, opened.log, source.manifest)
        staged = staging_folder(home)
        share_files(source.folder, staged, [n for s in manifest.shards for n in (s.file, s.offsets)])
        _take_states(source.folder, staged, manifest)
        old = opened.log.files_at(source.manifest.version)
        now = opened.log.files_at(opened.log.head)
        folder = publish(
            home,
            opened.log,
            staged,
            manifest,
            added=[f for p, f in old.items() if p not in now],
            removed=[f for p, f in now.items() if p not in old],
            operation="RESTORE",
            previous=opened.current,
            now_ns=manifest.created_ns,
            about={"restored": source.manifest.version},
        )
    return _result(manifest, folder, time.monotonic() - begin, created=True)


def diff(context: Context, name: str, older: Version, newer: Version) -> VersionDiff:
    """Say which rows two versions do not share, by partition.

    Cost:
        Reads only partitions whose content digests differ.

    Raises:
        NotFoundError: no such version.
    """
    from featurestore.materialize.row_diff import partition_diff  # noqa: PLC0415 -- DuckDB

    one, two = open_version(context, name, older), open_version(context, name, newer)
    before = {(s.date, s.bucket): i for i, s in enumerate(one.manifest.shards)}
    after = {(s.date, s.bucket): i for i, s in enumerate(two.manifest.shards)}
    shared = [n for n in two.schema.names if n in one.schema.names]
    found, same = [], 0
    for place in sorted(before.keys() | after.keys()):
        i, k = before.get(place), after.get(place)
        if (
            i is not None
            and k is not None
            and one.manifest.shards[i].digest == two.manifest.shards[k].digest
            and one.schema.equals(two.schema)
        ):
            same += 1
            continue
        old = one.schema.empty_table() if i is None else one.shards().shard(i).to_table(shared)
        new = two.schema.empty_table() if k is None else two.shards().shard(k).to_table(shared)
        identity = [n for n in _identity(two.manifest) if n in shared]
        added, removed, changed = partition_diff(old.select(shared), new.select(shared), identity)
        found.append(
            PartitionDiff(date=place[0], bucket=place[1], added=added, removed=removed, changed=changed)
        )
    return VersionDiff(
        name=one.name,
        older=one.version,
        newer=two.version,
        same=same,
        partitions=tuple(found),
        columns_added=tuple(n for n in two.schema.names if n not in one.schema.names),
        columns_removed=tuple(n for n in one.schema.names if n not in two.schema.names),
    )


def _identity(manifest: Manifest) -> list[str]:
    """Keys and times: what makes two rows the same row with other values."""
    clock = [
        c.name
        for c in manifest.columns
        if c.role == "spine" and c.name != manifest.timestamp and c.type == "timestamp[ns, tz=UTC]"
    ]
    return [*manifest.entity_keys, manifest.timestamp, *clock]


def _take_states(folder: AnyPath, staged: AnyPath, manifest: Manifest) -> None:
    """The states of a version belong to its pins: they come back with it."""
    index = read_index(folder, manifest.states)
    link_states(folder, staged, index)
    write_index(staged, index)


def _again(context: Context, log: DeltaLog, manifest: Manifest) -> Manifest:
    created = max(context.clock.now_ns(), log.commits[-1].time_ns + 1)
    return manifest.numbered(log.head + 1, created)


def _result(manifest: Manifest, folder: AnyPath, seconds: float, *, created: bool) -> MaterializeResult:
    return MaterializeResult(
        name=manifest.name,
        kind=manifest.kind,
        version=manifest.version,
        rows=manifest.rows,
        fingerprint=manifest.fingerprint,
        partitions=len(manifest.shards),
        written=0,
        written_bytes=0,
        seconds=seconds,
        created=created,
        folder=folder,
    )
