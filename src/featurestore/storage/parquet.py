"""Our own Parquet files: sorted, checksummed page by page, encoded by what the columns hold."""

import os
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import lru_cache
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
# A row group has four; each page is compressed anew, which takes a while to begin with.
_PAGE_ROWS: Final = 1 << 15
_BUFFER_BYTES: Final = 1 << 20
# Values that Arrow encodes at a time, where they are short: by its own 1,024 it takes a twentieth longer.
_BATCH_ROWS: Final = 1 << 16
_SAMPLE_ROWS: Final = 4096
_FEW_ROWS: Final = 256
_DICTIONARY_SHARE: Final = 0.05
_HELD_SHARE: Final = 0.1
_NOISE_SHARE: Final = 0.9


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
        staged: Where it lies.
    """

    folder: str
    staged: str
    rows: int
    bytes: int
    xxh3: str

    @property
    def name(self) -> str:
        """The name that its content gives it."""
        return f"part-{self.xxh3}.parquet"

    def finish(self) -> ParquetFile:
        """Force it to the disk, then give it its name; the folder's entry is the caller's to fsync.

        Raises:
            StorageError: the disk refused; the file is removed.
        """
        final = f"{self.folder}/{self.name}"
        try:
            fsync_file(self.staged)
            announce("rename", final)
            with storage_errors("rename", final):
                # Equal names are equal bytes: a file left over from an interrupted run is simply taken over.
                os.replace(self.staged, final)  # noqa: PTH105 -- texts, where there are many files
        except BaseException:
            _remove(self.staged)
            raise
        return ParquetFile(Path(final), self.rows, self.bytes, self.xxh3)


def write_parquet(
    folder: Path, table: pa.Table, *, times: tuple[str, ...], sort: tuple[str, ...]
) -> ParquetFile:
    """Write rows as one Parquet file named by its content, and fsync it: `stage_parquet`, finished."""
    return stage_parquet(str(folder), table, times=times, sort=sort).finish()


def stage_parquet(
    folder: str, table: pa.Table, *, times: tuple[str, ...], sort: tuple[str, ...]
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
    staged = f"{folder}/.tmp-{id(table):x}.parquet"
    announce("write", staged)
    whole = False
    try:
        with storage_errors("write", staged):
            _remove(staged)
            with closing(HashedFile(staged)) as file:
                # Pages are put together without Python: a call of it per page would wait for its lock.
                sink = pa.BufferedOutputStream(pa.PythonFile(file, mode="w"), _BUFFER_BYTES)
                with pq.ParquetWriter(sink, table.schema, **_settings(table, times, sort)) as writer:
                    writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
                sink.flush()
                digest = file.digest()
        whole = True
    finally:
        if not whole:
            _remove(staged)
    return StagedParquet(folder, staged, table.num_rows, file.position, digest)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108 -- as above


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
    bare: list[str] = []
    for field in table.schema:
        name, kind = field.name, field.type
        words = _words(table.column(name)) if _is_number(kind) else None
        if name in times or (name in sort[:1] and pa.types.is_integer(kind) and not _repeats(words)):
            encoding[name] = "DELTA_BINARY_PACKED"
            if _is_noise(words):
                bare.append(name)
        elif _is_text(kind) or _repeats(words):
            dictionary.append(name)
        elif pa.types.is_floating(kind) and not _is_held(words):
            encoding[name] = "BYTE_STREAM_SPLIT"
    order = [
        pq.SortingColumn(table.schema.get_field_index(name), nulls_first=False)
        for name in sort
        if name in table.schema.names
    ]
    packed = [path for path in _paths(table.schema) if path not in bare]
    return {
        "compression": dict.fromkeys(packed, "zstd") | dict.fromkeys(bare, "none"),
        "compression_level": dict.fromkeys(packed, 1),
        "write_batch_size": _BATCH_ROWS if all(_is_number(f.type) for f in table.schema) else None,
        "use_dictionary": dictionary or False,
        "column_encoding": encoding or None,
        "max_rows_per_page": _PAGE_ROWS,
        "write_page_checksum": True,
        "write_page_index": True,
        "sorting_columns": order or None,
        "store_schema": False,
    }


@lru_cache(maxsize=64)
def _paths(schema: pa.Schema) -> tuple[str, ...]:
    """Return the columns of numbers and bytes that a schema's files consist of."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink, store_schema=False)
    found = pq.read_metadata(pa.BufferReader(sink.getvalue())).schema
    return tuple(found.column(place).path for place in range(len(found)))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _repeats(words: np.ndarray | None) -> bool:
    """Say whether values repeat enough for a dictionary, from an even sample."""
    if words is None:
        return False
    sample = words[:: -(-words.size // _SAMPLE_ROWS)]
    most = max(1, int(sample.size * _DICTIONARY_SHARE))
    # Mostly a few of them hold more different values than that already.
    few = sample[:: -(-sample.size // _FEW_ROWS)]
    return _distinct(few) <= most and (few.size == sample.size or _distinct(sample) <= most)


def _distinct(words: np.ndarray) -> int:
    ordered = np.sort(words)
    return 1 + int(np.count_nonzero(ordered[1:] != ordered[:-1]))


def _is_held(words: np.ndarray | None) -> bool:
    """Say whether values are often the one before, as joined values are, from an even sample.

    zstd finds such repeats where values lie whole; split into byte streams they are lost.
    """
    if words is None or words.size < 2:
        return False
    before, after = _neighbours(words, _SAMPLE_ROWS)
    return int(np.count_nonzero(before == after)) > _HELD_SHARE * before.size


def _is_noise(words: np.ndarray | None) -> bool:
    """Say whether the steps from value to value hardly ever repeat, from an even sample.

    What is left of such values when they are packed as steps does not compress.
    """
    if words is None or words.size < _FEW_ROWS:
        return False
    before, after = _neighbours(words, _FEW_ROWS)
    return _distinct(after - before) > _NOISE_SHARE * before.size


def _neighbours(words: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return values here and there, `most` at most, and the one behind each."""
    step = -(-(words.size - 1) // most)
    return words[:-1:step], words[1::step]


def _words(column: pa.ChunkedArray) -> np.ndarray | None:
    """Return numbers as the integers of their bits, uncopied, nulls as whatever lies there.

    `None` where there are no rows, or several chunks of them.
    """
    if column.num_chunks != 1 or not len(column) or column.null_count == len(column):
        return None
    array = column.chunk(0)
    kind = np.dtype(f"u{column.type.bit_width // 8}")
    return np.frombuffer(array.buffers()[1], kind, len(array), array.offset * kind.itemsize)
