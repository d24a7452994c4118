"""Our own Parquet files: sorted, checksummed page by page, encoded by what the columns hold."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import CorruptDataError
from featurestore.storage.files import announce, fsync_file, storage_errors
from featurestore.storage.hashed_file import HashedFile
from featurestore.storage.source_files import Place, hash_file
from featurestore.storage.source_readers import reading

ROW_GROUP_ROWS: Final = 1 << 17
_SAMPLE_ROWS: Final = 4096
_FEW_ROWS: Final = 256
_DICTIONARY_SHARE: Final = 0.05
_STRETCHES: Final = 4
_HELD_SHARE: Final = 0.1


@dataclass(frozen=True, slots=True)
class ParquetFile:
    """A finished file.

    Attributes:
        xxh3: xxh3-128 of its bytes, 32 hex digits.
    """

    path: Path
    rows: int
    bytes: int
    xxh3: str


@dataclass(frozen=True, slots=True)
class StagedParquet:
    """A file that is written but neither durable nor under its name.

    Attributes:
        final: The name that its content gives it.
    """

    staged: Path
    final: Path
    rows: int
    bytes: int
    xxh3: str

    def finish(self) -> ParquetFile:
        """Force it to the disk, then give it its name; the folder's entry is the caller's to fsync.

        Raises:
            StorageError: the disk refused; the file is removed.
        """
        try:
            fsync_file(self.staged)
            announce("rename", self.final)
            with storage_errors("rename", self.final):
                # Equal names are equal bytes: a file left over from an interrupted run is simply taken over.
                self.staged.replace(self.final)
        except BaseException:
            self.staged.unlink(missing_ok=True)
            raise
        return ParquetFile(self.final, self.rows, self.bytes, self.xxh3)


def write_parquet(
    folder: Path, table: pa.Table, *, times: tuple[str, ...], sort: tuple[str, ...]
) -> ParquetFile:
    """Write rows as one Parquet file named by its content, and fsync it: `stage_parquet`, finished."""
    return stage_parquet(folder, table, times=times, sort=sort).finish()


def stage_parquet(
    folder: Path, table: pa.Table, *, times: tuple[str, ...], sort: tuple[str, ...]
) -> StagedParquet:
    """Write rows as one Parquet file; it is not durable before it is finished.

    Args:
        table: Stored columns (see `physical`), sorted by `sort`.
        times: int64 columns that grow slowly: delta-encoded.
        sort: Columns recorded as the order of the rows.

    Raises:
        StorageError: disk full or no permission; the torn file is removed.

    Cost:
        zstd-1; memory of one row group. The file is hashed while it is written.
    """
    staged = folder / f".tmp-{id(table):x}.parquet"
    announce("write", staged)
    whole = False
    try:
        with storage_errors("write", staged):
            staged.unlink(missing_ok=True)
            with closing(HashedFile(staged)) as file:
                sink = pa.PythonFile(file, mode="w")
                with pq.ParquetWriter(sink, table.schema, **_settings(table, times, sort)) as writer:
                    writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
                digest = file.finish()
        whole = True
    finally:
        if not whole:
            staged.unlink(missing_ok=True)
    return StagedParquet(staged, folder / f"part-{digest}.parquet", table.num_rows, file.position, digest)


def read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read columns of one of our files, page checksums verified.

    Raises:
        NotFoundError: it is gone.
        CorruptDataError: damaged bytes.
    """
    with reading(str(path)):
        return pq.ParquetFile(path, page_checksum_verification=True, memory_map=True).read(columns)


def check_parquet(path: Path, *, xxh3: str, rows: int, size: int) -> None:
    """Compare a file with what was recorded when it was written: size, every byte, rows in the footer.

    Raises:
        NotFoundError: it is gone.
        CorruptDataError: something differs.
    """
    with reading(str(path)):
        found = path.stat().st_size
    if found != size or hash_file(Place(str(path)), str(path)) != xxh3:
        raise CorruptDataError(
            f"{str(path)!r} is damaged: size or checksum is not what the log recorded",
            hint="materialize again; the damaged partition is rewritten",
            path=str(path),
        )
    with reading(str(path)):
        counted = pq.read_metadata(path).num_rows
    if counted != rows:
        raise CorruptDataError(f"{str(path)!r} holds {counted} rows, the log says {rows}", path=str(path))


def _settings(table: pa.Table, times: tuple[str, ...], sort: tuple[str, ...]) -> dict[str, Any]:
    dictionary: list[str] = []
    encoding: dict[str, str] = {}
    for field in table.schema:
        kind = field.type
        if field.name in times:
            encoding[field.name] = "DELTA_BINARY_PACKED"
        elif _is_text(kind) or (_is_number(kind) and _repeats(table.column(field.name))):
            dictionary.append(field.name)
        elif pa.types.is_floating(kind) and not _is_held(table.column(field.name)):
            encoding[field.name] = "BYTE_STREAM_SPLIT"
    order = [
        pq.SortingColumn(table.schema.get_field_index(name), nulls_first=False)
        for name in sort
        if name in table.schema.names
    ]
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": dictionary or False,
        "column_encoding": encoding or None,
        "write_page_checksum": True,
        "write_page_index": True,
        "sorting_columns": order or None,
        "store_schema": False,
    }


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _repeats(column: pa.ChunkedArray) -> bool:
    """Say whether values repeat enough for a dictionary, from an even sample."""
    rows = len(column)
    words = _words(column)
    if words is None:
        return False
    size = min(rows, _SAMPLE_ROWS)
    most = max(1, int(size * _DICTIONARY_SHARE))
    sample = words[np.arange(size) * (rows - 1) // max(size - 1, 1)]
    # Mostly a few of them hold more different values than that already.
    few = min(size, _FEW_ROWS)
    return _distinct(sample[:: size // few]) <= most and (few == size or _distinct(sample) <= most)


def _distinct(words: np.ndarray) -> int:
    ordered = np.sort(words)
    return 1 + int(np.count_nonzero(ordered[1:] != ordered[:-1]))


def _is_held(column: pa.ChunkedArray) -> bool:
    """Say whether values are often the one before, as joined values are: from a few stretches.

    zstd finds such repeats where values lie whole; split into byte streams they are lost.
    """
    rows = len(column)
    words = _words(column)
    if words is None:
        return False
    stretch = min(rows, _SAMPLE_ROWS // _STRETCHES)
    same = 0
    for place in range(_STRETCHES):
        start = (rows - stretch) * place // _STRETCHES
        part = words[start : start + stretch]
        same += int(np.count_nonzero(part[1:] == part[:-1]))
    return same > _HELD_SHARE * _STRETCHES * max(stretch - 1, 0)


def _words(column: pa.ChunkedArray) -> np.ndarray | None:
    """Return numbers as the integers of their bits, uncopied, nulls as whatever lies there.

    `None` where there are no rows, or several chunks of them.
    """
    if column.num_chunks != 1 or not len(column) or column.null_count == len(column):
        return None
    array = column.chunk(0)
    kind = np.dtype(f"u{column.type.bit_width // 8}")
    return np.frombuffer(array.buffers()[1], kind, len(array), array.offset * kind.itemsize)
