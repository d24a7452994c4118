"""What a source points at, as Arrow rows in a fixed order, pinned by content."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.core.canonical import digest_json
from featurestore.core.names import near
from featurestore.core.table_rows import decoded_type, plain_type
from featurestore.core.time import INT64_MIN
from featurestore.errors import CorruptDataError, NotFoundError, SchemaError
from featurestore.storage.delta_files import DeltaFiles, delta_files
from featurestore.storage.files import AnyPath, is_remote
from featurestore.storage.objects import ObjectPath
from featurestore.storage.snapshots import PinnedFile, Snapshot
from featurestore.storage.source_files import (
    HashCache,
    Place,
    SourceFile,
    format_of,
    is_delta,
    list_files,
    nearest,
    place_of,
    suffixes_of,
)
from featurestore.storage.source_readers import GroupTimes, TimeRange, file_schema, group_times, scan_file
from featurestore.storage.suppression import NOTHING, Ledger, Suppression, read_ledger

BATCH_ROWS: Final = 1 << 17
_FOOTERS: Final = 8


class NamedBatch(NamedTuple):
    """Rows of one file of a source.

    Attributes:
        file: Its name; empty where a query mixes files.
        ahead_ns: The smallest event timestamp that what follows in the file may hold; `INT64_MIN` where that
            is not known, `INT64_MAX` where nothing follows.
    """

    file: str
    rows: pa.RecordBatch
    ahead_ns: int


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """A source in plain words.

    Attributes:
        path: Absolute, relative to the root, or an fsspec URL.
        timestamp_field: The event timestamp's column, by which reads may be pruned.
        format: `delta`, `parquet`, `arrow`, `csv`; `None` finds out.
        query: DuckDB SQL over the table, named `source`.
    """

    name: str
    path: str
    timestamp_field: str | None = None
    format: str | None = None
    query: str | None = None


def open_source(spec: SourceSpec, root: str | AnyPath, *, ledger_at: int = 0) -> "SourceTable":
    """Open a source for reading; only its schema is looked at.

    Args:
        ledger_at: Rows that counted as absent at this entry of the store's ledger of erasures are left out
            too, besides those that do now.

    Raises:
        NotFoundError: nothing is at its path.
        DefinitionError: its format cannot be told.
        CorruptDataError: its first file is not of its format.
    """
    place = place_of(spec.path, root)
    cache = _hashes_folder(root)
    ledger = read_ledger(root)
    erased = ledger.suppression(ledger_at)
    if spec.format == "delta" or (spec.format is None and is_delta(place)):
        return SourceTable(spec, place, "delta", cache, ledger, erased)
    files = list_files(place, suffixes=suffixes_of(spec.format))
    return SourceTable(spec, place, spec.format or format_of(place, files), cache, ledger, erased)


def _hashes_folder(root: str | AnyPath) -> Path | None:
    """Return where hashes of files are remembered: below the root, or beside the copies of remote files."""
    if isinstance(root, ObjectPath):
        name = digest_json([root.store.url])
        return Path(root.store.cache.folder) / "roots" / name
    return None if is_remote(str(root)) else Path(root) / ".cache"


class SourceTable:
    """A source's rows: every read gives them in the order of files by name, then of rows within (PIT-6).

    Rows of erased entities are left out of every read: those of the files, before a query sees them, and
    those of a query's result.

    Attributes:
        schema: The columns as read, Hive columns last; with a query, its result's.
        erased: Which keys count as absent.
        ledger_at: The newest entry of the ledger of erasures that this is by.
    """

    def __init__(
        self,
        spec: SourceSpec,
        place: Place,
        kind: str,
        cache: Path | None,
        ledger: Ledger,
        erased: Suppression,
    ) -> None:
        self.spec = spec
        self.erased = erased
        self._place = place
        self._kind = kind
        self._cache_folder = cache
        self._cache = HashCache(cache)
        self._ledger = ledger
        self.ledger_at = ledger.number

    def as_it_lies(self) -> "SourceTable":
        """Return the same source with the rows of erased entities, for those who look for them."""
        return SourceTable(self.spec, self._place, self._kind, self._cache_folder, self._ledger, NOTHING)

    def has_columns(self, names: Sequence[str]) -> bool:
        """Say whether the files, or a query's result, have all of some columns."""
        return any(set(names) <= set(s.names) for s in (self._raw_schema, self.schema))

    @cached_property
    def schema(self) -> pa.Schema:
        """Return the columns and their types."""
        if self.spec.query is None:
            return self._raw_schema
        from featurestore.storage.duckdb_sql import run_query  # noqa: PLC0415 -- only queries pay

        sample = self._raw_schema.empty_table()
        return run_query(self.spec.query, {"source": sample}).schema

    @cached_property
    def _raw_schema(self) -> pa.Schema:
        if self._kind == "delta":
            return delta_files(self._place, None).schema
        return self._schema_of(self._files()[0])

    def snapshot(self) -> Snapshot:
        """Pin what the source holds now: a Delta version, or every file by name, size and content hash.

        Cost:
            Reads every file once; unchanged files are remembered.
        """
        schema = digest_json([[f.name, str(f.type)] for f in self._raw_schema])
        if self._kind == "delta":
            found = delta_files(self._place, None)
            return Snapshot(
                self.spec.name, "delta", version=found.version, table_id=found.table_id, schema=schema
            )
        pins = tuple(PinnedFile(f.name, *self._content(f)) for f in self._files())
        self._cache.save()
        return Snapshot(self.spec.name, "files", files=pins, schema=schema)

    def read(
        self,
        columns: Sequence[str] | None = None,
        *,
        snapshot: Snapshot | None = None,
        time_range_ns: TimeRange | None = None,
        files: Sequence[str] | None = None,
    ) -> pa.Table:
        """Read rows; with `time_range_ns` `[start, end)`, rows outside may be left out.

        Args:
            snapshot: Read exactly this content, or fail.
            files: Read only these pinned files, by name.

        Raises:
            SchemaError: an unknown column, or files whose columns differ.
            CorruptDataError: content that is not the snapshot's, or damaged.
            NotFoundError: a pinned file or version is gone.
        """
        wanted = self._columns(columns)
        batches = list(self.scan(columns, snapshot=snapshot, time_range_ns=time_range_ns, files=files))
        return pa.Table.from_batches(batches, pa.schema([self.schema.field(n) for n in wanted]))

    def scan(
        self,
        columns: Sequence[str] | None = None,
        *,
        snapshot: Snapshot | None = None,
        time_range_ns: TimeRange | None = None,
        files: Sequence[str] | None = None,
        batch_rows: int = BATCH_ROWS,
    ) -> Iterator[pa.RecordBatch]:
        """Read rows as batches, like `read`; memory is one batch and what the decoder holds.

        Raises:
            SchemaError: an unknown column, or files whose columns differ.
            CorruptDataError: content that is not the snapshot's, or damaged.
            NotFoundError: a pinned file or version is gone.
        """
        named = self.scan_named(
            columns, snapshot=snapshot, time_range_ns=time_range_ns, files=files, batch_rows=batch_rows
        )
        return (found.rows for found in named)

    def scan_named(
        self,
        columns: Sequence[str] | None = None,
        *,
        snapshot: Snapshot | None = None,
        time_range_ns: TimeRange | None = None,
        files: Sequence[str] | None = None,
        batch_rows: int = BATCH_ROWS,
        partly: set[str] | None = None,
    ) -> Iterator[NamedBatch]:
        """Read rows as batches, each with the name of its file.

        Args:
            partly: Gets the names of files of which rows were left out.
        """
        wanted = self._columns(columns)
        if self.spec.query is None:
            yield from self._scan_raw(wanted, snapshot, time_range_ns, files, batch_rows, partly)
            return
        from featurestore.storage.duckdb_sql import run_query  # noqa: PLC0415 -- only queries pay

        raw = self._scan_raw(self._raw_schema.names, snapshot, None, files, batch_rows, None)
        whole = pa.Table.from_batches([found.rows for found in raw], self._raw_schema)
        result = self.erased.remaining(run_query(self.spec.query, {"source": whole})).select(wanted)
        for batch in result.to_batches(max_chunksize=batch_rows):
            yield NamedBatch("", batch, INT64_MIN)

    def file_names(self, snapshot: Snapshot) -> list[str]:
        """Return the names of the files that a snapshot consists of.

        Raises:
            NotFoundError: a Delta version that is gone.
        """
        return [name for name, _ in self.sized_files(snapshot)]

    def sized_files(self, snapshot: Snapshot) -> list[tuple[str, int]]:
        """Return the files that a snapshot consists of, by name, with their bytes.

        Raises:
            NotFoundError: a Delta version that is gone.
        """
        if snapshot.kind == "delta":
            return [(f.name, f.size) for f in delta_files(self._place, snapshot.version).files]
        return [(f.path, f.size) for f in snapshot.files]

    def file_times(self, snapshot: Snapshot, names: Sequence[str]) -> dict[str, list[GroupTimes]]:
        """Return rows, smallest and greatest event timestamp (ns) of the parts of files whose footers tell.

        Cost:
            Opens each file; no rows are read.
        """
        kind, wanted, timestamp = self._kind, set(names), self.spec.timestamp_field
        if kind not in {"parquet", "delta"} or timestamp is None or self.spec.query is not None:
            return {}
        files = delta_files(self._place, snapshot.version).files if kind == "delta" else self._files()
        chosen = [f for f in files if f.name in wanted]

        def told(file: SourceFile) -> list[GroupTimes] | None:
            return group_times(self._place, file, timestamp)

        # A footer of a remote file takes a few requests, one after the other.
        with ThreadPoolExecutor(1 if self._place.remote is None else _FOOTERS) as pool:
            found = list(pool.map(told, chosen))
        return {f.name: times for f, times in zip(chosen, found, strict=True) if times is not None}

    def _columns(self, columns: Sequence[str] | None) -> list[str]:
        if columns is None:
            return list(self.schema.names)
        for name in columns:
            if name not in self.schema.names:
                raise SchemaError(
                    f"source {self.spec.name!r} has no column {name!r}",
                    hint=near(name, self.schema.names),
                    source=self.spec.name,
                    column=name,
                )
        return list(columns)

    def _files(self) -> list[SourceFile]:
        return list_files(self._place, suffixes=suffixes_of(self._kind))

    def _content(self, file: SourceFile) -> tuple[int, str]:
        """Return what a file is pinned by: its size and hash, as they were before erasures rewrote it."""
        return self._ledger.origin(file.size, self._cache.digest(self._place, file))

    def _scan_raw(
        self,
        wanted: Sequence[str],
        snapshot: Snapshot | None,
        time_range_ns: TimeRange | None,
        names: Sequence[str] | None,
        batch_rows: int,
        partly: set[str] | None,
    ) -> Iterator[NamedBatch]:
        """Read the files' rows without those of erased entities, whose keys are read along to tell them."""
        hidden = [n for n in self.erased.columns_in(self._raw_schema) if n not in wanted]
        found = self._scan_files([*wanted, *hidden], snapshot, time_range_ns, names, batch_rows, partly)
        for batch in found:
            kept = self.erased.remaining(batch.rows)
            yield batch._replace(rows=kept.select(list(wanted)) if hidden else kept)

    def _scan_files(
        self,
        wanted: Sequence[str],
        snapshot: Snapshot | None,
        time_range_ns: TimeRange | None,
        names: Sequence[str] | None,
        batch_rows: int,
        partly: set[str] | None,
    ) -> Iterator[NamedBatch]:
        found = (
            delta_files(self._place, snapshot.version if snapshot else None)
            if self._kind == "delta"
            else None
        )
        files = self._pinned(snapshot, found)
        target = pa.schema([self._raw_schema.field(n) for n in wanted])
        chosen = None if names is None else set(names)
        for file in files:
            if chosen is not None and file.name not in chosen:
                continue
            hive = {k: v for k, v in file.partitions if k in wanted}
            inside = [n for n in wanted if n not in hive]
            with self._nearest(file, found) as place:
                self._check_file(place, file, target, hive)
                for batch, ahead_ns in scan_file(
                    place,
                    file,
                    "parquet" if found else self._kind,
                    columns=inside,
                    schema=self._raw_schema,
                    timestamp=self.spec.timestamp_field,
                    time_range_ns=time_range_ns,
                    batch_rows=batch_rows,
                    partly=partly,
                ):
                    yield NamedBatch(file.name, _shaped(batch, target, hive, file), ahead_ns)
        if snapshot is not None and found is None:
            self._pinned(snapshot, None)

    def _nearest(self, file: SourceFile, found: DeltaFiles | None) -> AbstractContextManager[Place]:
        """Give the place to read a file from; a Delta table's files have no hash to know a copy by."""
        if found is not None or self._place.remote is None or self._place.cache is None:
            return nullcontext(self._place)
        return nearest(self._place, file, self._cache.digest(self._place, file))

    def _pinned(self, snapshot: Snapshot | None, found: DeltaFiles | None) -> list[SourceFile]:
        """Return the files to read, refusing any that are not what the snapshot pinned.

        Raises:
            CorruptDataError: another table, or changed content.
            NotFoundError: a pinned file is gone.
        """
        if found is not None:
            if snapshot is not None and snapshot.table_id and snapshot.table_id != found.table_id:
                raise CorruptDataError(
                    f"source {self.spec.name!r} is another Delta table than the one that was pinned",
                    hint="the table was deleted and created again; the dataset cannot be recreated from it",
                )
            return list(found.files)
        files = self._files()
        if snapshot is None:
            return files
        there = {f.name: f for f in files}
        out = []
        for pin in snapshot.files:
            file = there.get(pin.path)
            if file is None:
                raise NotFoundError(
                    f"source {self.spec.name!r}: the pinned file {pin.path!r} is gone",
                    hint="restore it; a plain file is pinned by its content",
                    path=pin.path,
                )
            if self._content(file) != (pin.size, pin.xxh3):
                raise CorruptDataError(
                    f"source {self.spec.name!r}: the content of {pin.path!r} has changed since it was pinned",
                    hint="restore the file, or materialize a new version from what is there now",
                    path=pin.path,
                )
            out.append(file)
        self._cache.save()
        return out

    def _schema_of(self, file: SourceFile) -> pa.Schema:
        schema = file_schema(self._place, file, self._kind)
        names = [k for k, _ in file.partitions if k not in schema.names]
        samples: dict[str, set[str]] = {name: set() for name in names}
        if names:
            for other in self._files():
                for key, value in other.partitions:
                    if key in samples:
                        samples[key].add(value)
        hive = [pa.field(name, _hive_type(samples[name])) for name in names]
        repeated = next((n for n in schema.names if schema.names.count(n) > 1), None)
        if repeated is not None:
            raise SchemaError(
                f"{file.path!r} has column {repeated!r} twice",
                hint="rename or drop one of the two",
                column=repeated,
            )
        # Views of strings are a layout from which Arrow cannot take; large strings hold the same values.
        plain = [field.with_type(_readable_type(field.type)) for field in schema]
        return pa.schema([*plain, *hive])

    def _check_file(self, place: Place, file: SourceFile, target: pa.Schema, hive: dict[str, str]) -> None:
        if self._kind != "parquet" or len(target) == len(hive):
            return
        names = file_schema(place, file, self._kind).names
        for name in target.names:
            if name not in hive and name not in names:
                raise SchemaError(
                    f"source {self.spec.name!r}: file {file.name!r} has no column {name!r}",
                    hint=near(name, names) + "; every file of a source has the same columns",
                    column=name,
                    path=file.path,
                )


def _hive_type(values: set[str]) -> pa.DataType:
    if all(v.lstrip("-").isdigit() for v in values):
        return pa.int64()
    if all(len(v) == 10 and v[4] == v[7] == "-" for v in values):
        return pa.date32()
    return pa.string()


def _shaped(
    batch: pa.RecordBatch, target: pa.Schema, hive: dict[str, str], file: SourceFile
) -> pa.RecordBatch:
    """Give a batch the source's columns in order; only encodings may differ between files, never kinds."""
    arrays = []
    for field in target:
        if field.name in hive:
            value = hive[field.name]
            null = value == "__HIVE_DEFAULT_PARTITION__"
            constant = pa.scalar(None if null else value, pa.string()).cast(field.type)
            arrays.append(pa.repeat(constant, batch.num_rows))
            continue
        column = batch.column(field.name)
        if column.type != field.type:
            column = _recoded(pc.cast(column, _readable_type(column.type)), field, file)
        arrays.append(column)
    return pa.RecordBatch.from_arrays(arrays, schema=target.remove_metadata())


def _readable_type(kind: pa.DataType) -> pa.DataType:
    # Nor can Arrow's messages be read back by hand where they hold dictionaries inside other types.
    return kind if pa.types.is_dictionary(kind) else decoded_type(plain_type(kind))


def _recoded(column: pa.Array, field: pa.Field, file: SourceFile) -> pa.Array:
    def plain(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_dictionary(kind):
            return plain(kind.value_type)
        if pa.types.is_large_string(kind):
            return pa.string()
        return pa.binary() if pa.types.is_large_binary(kind) else kind

    same = plain(column.type) == plain(field.type) or pa.types.is_null(column.type)
    if not same:
        raise SchemaError(
            f"file {file.name!r} has column {field.name!r} as {column.type}, the first file as {field.type}",
            hint="write all files of a source with one schema; nothing is cast silently",
            column=field.name,
            path=file.path,
        )
    return pc.cast(column, field.type)
