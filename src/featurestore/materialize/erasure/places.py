"""Where rows of a subject are: sources, and every version of every training set and view."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.source import Source
from featurestore.catalog.training_set import TrainingSet
from featurestore.core.keys import buckets_of
from featurestore.errors import NotFoundError, SchemaError
from featurestore.materialize.context import Context, Home
from featurestore.materialize.erasure.subject import Renamed, Subject, names_of_version
from featurestore.materialize.job import renamed_keys
from featurestore.storage.files import AnyPath
from featurestore.storage.manifest import Manifest, published_versions
from featurestore.storage.shards import ShardSet, open_dataset_folder
from featurestore.storage.sources import SourceTable

_VIEW = re.compile(r"(.+)_v(\d+)")


@dataclass(frozen=True, slots=True)
class SourcePlace:
    """A source that has the subject's key columns.

    Attributes:
        renamed: What training sets whose spine it is call the keys.
    """

    source: Source
    table: SourceTable
    renamed: tuple[Renamed, ...]


def source_places(context: Context, subject: Subject) -> Iterator[SourcePlace]:
    """Yield the sources that can hold rows of a subject; those that are not there are left out."""
    definitions = list(context.snapshot.definitions())
    spines: dict[str, list[Renamed]] = {}
    for found in definitions:
        if isinstance(found, TrainingSet):
            spines.setdefault(found.spine.name, []).extend(renamed_keys(found.key_map))
    for found in definitions:
        if isinstance(found, Source):
            try:
                table = context.open(found)
            except NotFoundError:
                continue
            renamed = tuple(spines.get(found.name, ()))
            if subject.names_in(table.schema, renamed):
                yield SourcePlace(found, table, renamed)


def stored_homes(context: Context) -> list[Home]:
    """Return every training set and view that has files, also those that the catalog no longer knows."""
    root, lease_s = context.path, context.config.lease_ns / 1e9
    homes = [
        Home("training_set", base.name, base / "delta", base / "ipc", base / "LOCK", lease_s)
        for base in _folders(root / "datasets")
    ]
    for table in _folders(root / "tables"):
        parts = _VIEW.fullmatch(table.name)
        if parts is not None:
            ipc = root / "ipc" / table.name
            lock = root / "ipc" / f"{table.name}.LOCK"
            homes.append(Home("view", f"{parts[1]}@{parts[2]}", table, ipc, lock, lease_s))
    return homes


def place_name(context: Context, home: Home, version: int) -> str:
    """Name a version as reports do: `dataset/name@version`; an older view's as `dataset/view@1@version`."""
    name, _, number = home.title.partition("@")
    kept = {record.name: str(record.version) for record in context.snapshot.live(FeatureView.kind)}
    return f"dataset/{home.title if number and kept.get(name) != number else name}@{version}"


def subject_rows(context: Context, subject: Subject) -> dict[str, pa.Table]:
    """Return the rows of a subject, by place; places without such rows are left out.

    Returns:
        `source/name` and, for every readable version, `dataset/name@version` → its rows.

    Raises:
        SchemaError: no place holds keys of that kind.

    Cost:
        Reads every source with the entity's keys, and of every version the shards that can hold them.
    """
    found: dict[str, pa.Table] = {}
    seen = False
    for place in source_places(context, subject):
        seen = True
        kept = [
            subject.rows_of(pa.Table.from_batches([batch]), place.renamed) for batch in place.table.scan()
        ]
        _keep(found, f"source/{place.source.name}", kept)
    for home in stored_homes(context):
        for version in published_versions(home.ipc):
            opened = open_dataset_folder(home.ipc, version)
            renamed = names_of_version(opened.manifest)
            if not subject.names_in(opened.manifest.schema, renamed):
                continue
            seen = True
            schema = opened.manifest.schema
            parts = rows_by_shard(opened, subject)
            kept = [
                subject.rows_of(opened.shard(i).to_table(schema.names).cast(schema), renamed) for i in parts
            ]
            _keep(found, place_name(context, home, version), kept)
    if not seen:
        raise SchemaError(
            f"no source and no version has keys of entity {subject.entity!r} of these types",
            hint=", ".join(f"{f.name}: {f.type}" for f in subject.keys.schema),
        )
    return found


def rows_by_shard(opened: ShardSet, subject: Subject, known: dict[str, int] | None = None) -> dict[int, int]:
    """Return how many rows of a subject each shard of a version holds, by number of the shard.

    Args:
        known: Counts by content digest, shared between versions that share shards; filled here.

    Cost:
        Where the version is stored by the subject's own keys, the keys' buckets are looked at and of these
        the list of entities alone; otherwise the key columns of every shard.
    """
    manifest = opened.manifest
    renamed = names_of_version(manifest)
    names = subject.names_in(manifest.schema, renamed)
    if not names:
        return {}
    keyed = all(set(n) <= set(manifest.entity_keys) for n in names)
    buckets = _buckets(manifest, subject, names)
    out = {}
    memory: dict[str, int] = {} if known is None else known
    for index, shard in enumerate(manifest.shards):
        if buckets is not None and shard.bucket not in buckets:
            continue
        if shard.digest not in memory:
            memory[shard.digest] = _count(opened, index, subject, renamed, keyed=keyed)
        if memory[shard.digest]:
            out[index] = memory[shard.digest]
    return out


def _count(
    opened: ShardSet, index: int, subject: Subject, renamed: tuple[Renamed, ...], *, keyed: bool
) -> int:
    view = opened.shard(index)
    if keyed:
        held = subject.mask(view.entity_keys(), renamed)
        offsets = view.offsets
        return int((offsets[1:] - offsets[:-1])[held].sum())
    columns = {c for names in subject.names_in(opened.manifest.schema, renamed) for c in names}
    return int(subject.mask(view.to_table(sorted(columns)), renamed).sum())


def _buckets(manifest: Manifest, subject: Subject, names: tuple[tuple[str, ...], ...]) -> set[int] | None:
    """Return the buckets that can hold the subject; `None` where any can."""
    found: set[int] = set()
    for columns in names:
        if set(columns) != set(manifest.entity_keys):
            return None
        own = dict(zip(columns, subject.columns, strict=True))
        keys = [subject.keys.column(own[k]) for k in manifest.entity_keys]
        found |= set(buckets_of(keys, manifest.buckets).tolist())
    return found


def _keep(found: dict[str, pa.Table], place: str, parts: list[pa.Table]) -> None:
    rows = pa.concat_tables(parts) if parts else None
    if rows is not None and rows.num_rows:
        found[place] = rows


def _folders(path: AnyPath) -> list[AnyPath]:
    there: Iterable[AnyPath] = path.iterdir() if path.is_dir() else ()
    return sorted((p for p in there if p.is_dir()), key=str)
