"""Appending rows to a source: one new file, whole or not at all, with the columns that are there."""

import re
import uuid
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.catalog.refs import Ref
from featurestore.catalog.source import Source
from featurestore.core.fingerprint import logical_type
from featurestore.core.names import near
from featurestore.errors import AlreadyExistsError, DefinitionError, NotFoundError, SchemaError
from featurestore.materialize.context import Context, source_spec
from featurestore.storage.delta_append import append_to_delta
from featurestore.storage.files import (
    TEMPORARY,
    AnyPath,
    announce,
    fsync_file,
    fsync_folder,
    make_folders,
    storage_errors,
)
from featurestore.storage.objects import ObjectPath
from featurestore.storage.physical import stored_schema
from featurestore.storage.source_files import Place, is_delta, place_of
from featurestore.storage.sources import open_source
from featurestore.storage.suppression import read_ledger
from featurestore.temporal.tables import read_table
from featurestore.temporal.times import is_time_type, times_ns


@dataclass(frozen=True, slots=True)
class IngestResult:
    """What was appended.

    Attributes:
        path: The new file; for Delta the table.
        version: The new Delta version, else `None`.
        suppressed: Rows that were left out because their entity was erased.
    """

    source: str
    rows: int
    path: str
    version: int | None = None
    suppressed: int = 0


def ingest(context: Context, ref: Ref, data: Any) -> IngestResult:
    """Append rows: a Parquet folder gets a file that sorts behind all others, a Delta table a commit.

    Args:
        data: Anything with the Arrow PyCapsule protocol.

    Raises:
        SchemaError: a column is missing, unknown or of another type, or a time is null.
        DefinitionError: the source is a single file, a pattern, a query's result or another format.
        StorageError: the disk refused; nothing was appended.
    """
    source = context.snapshot.source(ref)
    rows = read_table(data, f"data for {source.name!r}")
    place = place_of(source.path, context.path)
    if source.format == "delta" or is_delta(place):
        rows, suppressed = _conform(context, source, rows, new=_delta_layout)
        version = append_to_delta(place, rows)
        return IngestResult(source.name, rows.num_rows, place.path, version, suppressed)
    if not _is_folder(source, place):
        raise DefinitionError(
            f"source {source.name!r} at {source.path!r} cannot be appended to",
            hint="rows are appended to a folder of Parquet files or to a Delta table; "
            'push(…, to="online") updates the online store alone',
        )
    rows, suppressed = _conform(context, source, rows, new=lambda _, schema: schema)
    path = _append(_folder(place, source, context.path), rows, context.clock.now_ns())
    return IngestResult(source.name, rows.num_rows, str(path), suppressed=suppressed)


def is_appendable(context: Context, ref: Ref) -> bool:
    """Say whether `ingest` can append to a source: a Delta table or a folder of Parquet files.

    Raises:
        NotFoundError: no such source.
    """
    source = context.snapshot.source(ref)
    place = place_of(source.path, context.path)
    return source.format == "delta" or is_delta(place) or _is_folder(source, place)


def _is_folder(source: Source, place: Place) -> bool:
    patterned = any(c in place.path for c in "*?[")
    return not (PurePosixPath(place.path).suffix or patterned) and source.format in {None, "parquet"}


def _folder(place: Place, source: Source, root: AnyPath) -> AnyPath:
    if place.remote is None:
        return Path(place.path)
    if isinstance(root, ObjectPath) and source.path.partition("://")[0] in {source.path, root.store.protocol}:
        return ObjectPath(root.store, place.path)
    raise DefinitionError(
        f"source {source.name!r} at {source.path!r} is not in the root's store",
        hint="rows are appended to local sources, and under a remote root to sources in the same store",
    )


def _conform(
    context: Context, source: Source, rows: pa.Table, *, new: Callable[[Source, pa.Schema], pa.Schema]
) -> tuple[pa.Table, int]:
    """Check columns by name and type, without any lossy cast, and put them in the source's order.

    Args:
        new: What a source that is not there yet makes of the rows' columns.

    Returns:
        The rows to append, without those of erased entities, and how many those were.

    Raises:
        SchemaError: a column is missing, unknown or of another type, or a time is null.
    """
    plain = replace(source_spec(source), query=None)
    try:
        schema = open_source(plain, context.path).schema
    except NotFoundError:
        schema = new(source, rows.schema)
    clocks = {source.timestamp_field, source.created_timestamp_column}
    for name in [*schema.names, *rows.column_names]:
        if name not in rows.column_names or name not in schema.names:
            what = "is missing" if name in schema.names else "is not in the source"
            raise SchemaError(
                f"cannot append to source {source.name!r}: column {name!r} {what}",
                hint=near(name, rows.column_names if name in schema.names else schema.names),
                column=name,
            )
        found, expected = rows.schema.field(name).type, schema.field(name).type
        if not _says_the_same(found, expected, clock=name in clocks):
            raise SchemaError(
                f"cannot append to source {source.name!r}: column {name!r} is {found}, there {expected}",
                hint="cast it yourself: nothing is cast silently",
                column=name,
            )
    rows = _laid_out(rows.select(schema.names), schema, clocks)
    if source.timestamp_field in rows.column_names:
        _, null = times_ns(rows.column(source.timestamp_field), source.timestamp_field)
        if null is not None:
            raise SchemaError(
                f"cannot append to source {source.name!r}: {int(null.sum())} rows have no event timestamp",
                hint="leave them out: no reader could see them",
                column=source.timestamp_field,
            )
    kept = read_ledger(context.path).suppression().remaining(rows)
    return kept, rows.num_rows - kept.num_rows


def _delta_layout(source: Source, schema: pa.Schema) -> pa.Schema:
    """Lay out a new Delta table: its own timestamps end at microseconds, so clocks of ns are int64."""
    clocks = {source.timestamp_field, source.created_timestamp_column}
    return pa.schema(
        stored_schema(pa.schema([f])).field(0) if f.name in clocks and _is_ns(f.type) else f for f in schema
    )


def _is_ns(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) and kind.unit == "ns")


def _says_the_same(found: pa.DataType, expected: pa.DataType, *, clock: bool) -> bool:
    """Say whether two types hold the same values: text, bytes and instants of any layout.

    Args:
        clock: Event and created timestamps, of which int64 means nanoseconds and naive ones UTC.
    """
    if clock and is_time_type(found) and is_time_type(expected) and not pa.types.is_date(expected):
        return True
    if pa.types.is_timestamp(found) and pa.types.is_timestamp(expected):
        return (found.tz is None) == (expected.tz is None)
    return logical_type(found) == logical_type(expected)


def _laid_out(rows: pa.Table, schema: pa.Schema, clocks: Collection[str | None]) -> pa.Table:
    """Give columns the source's layout; an instant that its unit cannot hold is refused.

    Raises:
        SchemaError: a time would lose digits.
    """
    columns = []
    for field in schema:
        column = rows.column(field.name)
        if column.type != field.type and field.name in clocks:
            values, null = times_ns(column, field.name)
            column = pa.chunked_array([pa.array(values, mask=null)])
            if pa.types.is_timestamp(field.type):
                column = pa.chunked_array([column.chunk(0).view(pa.timestamp("ns", field.type.tz))])
        try:
            columns.append(column.cast(field.type))
        except pa.ArrowInvalid as error:
            raise SchemaError(
                f"column {field.name!r} is {field.type} in the source, and the rows do not fit it exactly: "
                f"{error}",
                hint="store these times as int64 nanoseconds, or in a folder of Parquet files, which hold "
                "every digit, or round them yourself",
                column=field.name,
            ) from error
    return pa.Table.from_arrays(columns, schema=schema)


def _append(folder: AnyPath, rows: pa.Table, now_ns: int) -> AnyPath:
    if isinstance(folder, ObjectPath):
        return _append_object(folder, rows, now_ns)
    return _append_file(folder, rows, now_ns)


def _next_name(names: Iterable[str], now_ns: int) -> str:
    """Name a file so that it sorts behind all others, even where the clock stands still.

    Position decides ties (PIT-2).
    """
    last = max((n for n in names if not n.startswith((".", "_"))), default="")
    number = re.fullmatch(r"(z*)zz-(\d{20})\.parquet", last)
    order = max(now_ns, int(number[2]) + 1) if number else now_ns
    name = f"{number[1] if number else ''}zz-{order:020d}.parquet"
    while name <= last:
        name = f"z{name}"
    return name


def _append_object(folder: ObjectPath, rows: pa.Table, now_ns: int) -> ObjectPath:
    """Put the rows as one object; a name that another writer took first is left to it."""
    # Equal rows appended twice are two appends: each object tells who put it.
    rows = rows.replace_schema_metadata(
        {**(rows.schema.metadata or {}), "featurestore.append": uuid.uuid4().hex}
    )
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", compression_level=1, write_page_checksum=True)
    data = sink.getvalue().to_pybytes()
    while True:
        path = folder / _next_name((p.relative_to(folder).as_posix() for p in folder.objects()), now_ns)
        try:
            path.put_if_absent(data)
        except AlreadyExistsError:
            continue
        return path


def _append_file(folder: Path, rows: pa.Table, now_ns: int) -> Path:
    make_folders(folder)
    name = _next_name((p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()), now_ns)
    staged = folder / f"{TEMPORARY}{name}"
    announce("write", staged)
    try:
        with storage_errors("write", staged):
            pq.write_table(rows, staged, compression="zstd", compression_level=1, write_page_checksum=True)
        fsync_file(staged)
        announce("rename", folder / name)
        with storage_errors("publish", folder / name):
            staged.rename(folder / name)
    finally:
        staged.unlink(missing_ok=True)
    fsync_folder(folder)
    return folder / name
