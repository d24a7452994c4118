"""Rows of one source file, batch by batch, in the file's order."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from featurestore.core.time import INT64_MAX, INT64_MIN, UNIT_NS
from featurestore.errors import CorruptDataError, FeatureStoreError, SchemaError
from featurestore.storage.files import nameless_copy, storage_errors
from featurestore.storage.objects import read_blocks
from featurestore.storage.source_files import Place, SourceFile

TimeRange = tuple[int, int]
# A batch, and the smallest event timestamp that what follows it in its file may hold: `INT64_MIN` where that
# is not known, `INT64_MAX` where nothing follows.
Scanned = tuple[pa.RecordBatch, int]
# What Arrow reads of a CSV file at a time. The first block decides the types.
_CSV_BLOCK: Final = 1 << 20


class GroupTimes(NamedTuple):
    """What a file's footer says of the event timestamps of some of its rows, which lie together."""

    rows: int
    min_ns: int
    max_ns: int


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn what Arrow's readers raise into ours.

    Raises:
        CorruptDataError: the bytes are not what the format promises.
        StorageError: they cannot be read.
        FeatureStoreError: what the block itself raised, as it is.
        OSError: never leaves this block.
    """
    with storage_errors("read", path):
        try:
            yield
        except FeatureStoreError:
            raise
        except (pa.ArrowInvalid, pa.ArrowSerializationError, pa.ArrowNotImplementedError) as error:
            raise CorruptDataError(
                f"cannot read {path!r}: {error}", hint="restore the file from its origin", path=path
            ) from error
        except OSError as error:
            # Arrow reports a page whose checksum does not match as an OSError without errno.
            if error.errno is None:
                raise CorruptDataError(
                    f"cannot read {path!r}: {error}", hint="restore the file from its origin", path=path
                ) from error
            raise


def file_schema(place: Place, file: SourceFile, kind: str) -> pa.Schema:
    """Read the schema of a file, without Hive columns and without metadata.

    Raises:
        CorruptDataError: the file is not of this format.
    """
    with reading(file.path), place.open(file.path) as handle:
        if kind == "parquet":
            schema = pq.ParquetFile(handle).schema_arrow
        elif kind == "arrow":
            schema = _arrow_schema(handle)
        else:
            head = _unpacked(handle, file).read_buffer(2 * _CSV_BLOCK)
            with _csv_reader(pa.BufferReader(head), file, None, None) as reader:
                schema = reader.schema
    return schema.remove_metadata()


def scan_file(
    place: Place,
    file: SourceFile,
    kind: str,
    *,
    columns: Sequence[str],
    schema: pa.Schema,
    timestamp: str | None,
    time_range_ns: TimeRange | None,
    batch_rows: int,
    partly: set[str] | None = None,
) -> Iterator[Scanned]:
    """Read columns of one file; with `time_range_ns` `[start, end)`, row groups outside may be left out.

    Args:
        partly: Gets the file's name where row groups are left out.

    Raises:
        SchemaError: the file lacks a column.
        CorruptDataError: damaged bytes.
    """
    if kind == "parquet":
        yield from _scan_parquet(place, file, columns, timestamp, time_range_ns, batch_rows, partly)
    elif kind == "arrow":
        yield from ((batch, INT64_MIN) for batch in _scan_arrow(place, file, columns, batch_rows))
    else:
        yield from ((batch, INT64_MIN) for batch in _scan_csv(place, file, columns, schema))


def _scan_parquet(
    place: Place,
    file: SourceFile,
    columns: Sequence[str],
    timestamp: str | None,
    time_range_ns: TimeRange | None,
    batch_rows: int,
    partly: set[str] | None,
) -> Iterator[Scanned]:
    with reading(file.path), place.open(file.path) as handle:
        reader = pq.ParquetFile(handle, page_checksum_verification=True, pre_buffer=place.remote is not None)
        groups = list(range(reader.metadata.num_row_groups))
        times = [None for _ in groups] if timestamp is None else _group_times(reader, timestamp)
        if time_range_ns is not None:
            groups = [g for g in groups if _is_within(times[g], time_range_ns)]
        if partly is not None and len(groups) < reader.metadata.num_row_groups:
            partly.add(file.name)
        if not groups:
            return
        ends = list(accumulate(reader.metadata.row_group(g).num_rows for g in groups))
        # Of the groups behind each: what is read next may come out of any of them.
        ahead = [*accumulate((_min_ns(times[g]) for g in reversed(groups)), min)][::-1]
        batches = reader.iter_batches(batch_rows, row_groups=groups, columns=list(columns), use_threads=True)
        seen = 0
        for batch in batches:
            seen += batch.num_rows
            group = bisect_right(ends, seen)
            yield batch, INT64_MAX if group == len(groups) else ahead[group]


def group_times(place: Place, file: SourceFile, timestamp: str) -> list[GroupTimes] | None:
    """Return the event timestamps of the row groups of a Parquet file with rows, if its footer tells all.

    Raises:
        CorruptDataError: the footer cannot be read.
    """
    with reading(file.path), place.open(file.path) as handle:
        found = _group_times(pq.ParquetFile(handle), timestamp)
    known = [times for times in found if times is not None]
    return [times for times in known if times.rows] if len(known) == len(found) else None


def _group_times(reader: pq.ParquetFile, timestamp: str) -> list[GroupTimes | None]:
    """Return the event timestamps of each row group, ns; `None` where the footer does not say."""
    metadata = reader.metadata
    found = _time_column(reader, timestamp)
    out: list[GroupTimes | None] = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        stats = None if found is None else group.column(found[0]).statistics
        if group.num_rows == 0:
            out.append(GroupTimes(0, INT64_MAX, INT64_MIN))
        elif found is None or stats is None or not stats.has_min_max:
            out.append(None)
        else:
            out.append(GroupTimes(group.num_rows, stats.min_raw * found[1], stats.max_raw * found[1]))
    return out


def _min_ns(times: GroupTimes | None) -> int:
    return INT64_MIN if times is None else times.min_ns


def _is_within(times: GroupTimes | None, time_range_ns: TimeRange) -> bool:
    return times is None or (times.max_ns >= time_range_ns[0] and times.min_ns < time_range_ns[1])


def _time_column(reader: pq.ParquetFile, timestamp: str) -> tuple[int, int] | None:
    """Return where a file's statistics hold its event timestamps, and how many ns one unit has."""
    metadata = reader.metadata
    index = next(
        (i for i in range(metadata.num_columns) if metadata.schema.column(i).path == timestamp), None
    )
    if index is None or metadata.schema.column(index).physical_type != "INT64":
        return None
    kind = reader.schema_arrow.field(timestamp).type
    return index, UNIT_NS[kind.unit] if pa.types.is_timestamp(kind) else 1


def _arrow_schema(handle: pa.NativeFile) -> pa.Schema:
    try:
        return pa.ipc.open_file(handle).schema
    except pa.ArrowInvalid:
        handle.seek(0)
        return pa.ipc.open_stream(handle).schema


def _scan_arrow(
    place: Place, file: SourceFile, columns: Sequence[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    with reading(file.path), place.open(file.path) as handle:
        try:
            table = pa.ipc.open_file(handle).read_all()
        except pa.ArrowInvalid:
            handle.seek(0)
            table = pa.ipc.open_stream(handle).read_all()
        yield from table.select(list(columns)).to_batches(max_chunksize=batch_rows)


def _unpacked(stream: pa.NativeFile, file: SourceFile) -> pa.NativeFile:
    return pa.CompressedInputStream(stream, "gzip") if file.name.endswith(".gz") else stream


def _csv_reader(
    stream: pa.NativeFile, file: SourceFile, columns: Sequence[str] | None, schema: pa.Schema | None
) -> pa_csv.CSVStreamingReader:
    """Read the rows of a CSV file.

    Args:
        stream: The text. Threads of Arrow read it ahead of the reader, and go on for a while after its end
            or its failure. So it must not be closed under them, which for a mapping would leave them a null
            pointer; and not be one of Python, for whose lock they would wait while whoever lets go of the
            reader, holding it, waits for them.
    """
    delimiter = "\t" if ".tsv" in file.name else ","
    convert = pa_csv.ConvertOptions(
        include_columns=None if columns is None else list(columns),
        column_types=schema,
        timestamp_parsers=[pa_csv.ISO8601],
        strings_can_be_null=True,
        # Nothing at all is null; "NA" is a country, "nan" is a number, and "" in quotes is a text.
        null_values=[""],
        quoted_strings_can_be_null=False,
    )
    return pa_csv.open_csv(
        stream,
        read_options=pa_csv.ReadOptions(block_size=_CSV_BLOCK),
        parse_options=pa_csv.ParseOptions(delimiter=delimiter),
        convert_options=convert,
    )


@contextmanager
def _at_hand(place: Place, file: SourceFile) -> Iterator[Place]:
    """Give the place to read a file from without Python: a remote one from a temporary copy.

    Raises:
        StorageError: there is no room for the copy.
    """
    if place.remote is None:
        yield place
        return
    with nameless_copy(read_blocks(place.remote, file.path, file.size)) as descriptor:
        yield Place(place.path, descriptor=descriptor)


def _scan_csv(
    place: Place, file: SourceFile, columns: Sequence[str], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    try:
        with storage_errors("read", file.path), _at_hand(place, file) as near:
            # Left open: its last reference closes it.
            stream = _unpacked(near.open(file.path), file)
            with _csv_reader(stream, file, columns, schema) as reader:
                yield from reader
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise SchemaError(
            f"{file.path!r}: {error}",
            hint="the first megabyte of the first file decides the types; store such data as Parquet",
            path=file.path,
        ) from error
