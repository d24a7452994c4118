"""Arrow IPC files whose buffers lie on 64-byte (or 4 KiB) boundaries of the file.

pyarrow aligns buffers to 8 bytes and has no knob. The file is therefore laid out here: Arrow serializes each
batch, its buffers move to aligned places, and the offsets inside the metadata are patched. Nothing changes
size in the metadata, so no flatbuffer is rebuilt, and every Arrow reader reads the file.
"""

import struct
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from featurestore.errors import CorruptDataError, SchemaError
from featurestore.storage.files import announce, storage_errors
from featurestore.storage.hashed_file import HashedFile

_MAGIC: Final = b"ARROW1"
_CONTINUATION: Final = b"\xff\xff\xff\xff"
_BODY_LENGTH: Final = 3  # slots of the flatbuffer tables, from the format's schema
_HEADER: Final = 2
_BUFFERS: Final = 2
_RECORD_BATCHES: Final = 3


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file as it was written.

    Attributes:
        xxh3: xxh3-128 of its bytes, 32 hex digits.
    """

    bytes: int
    xxh3: str


def write_ipc(path: str | Path, batch: pa.RecordBatch, *, align: int = 64, sync: bool = True) -> WrittenFile:
    """Write one record batch as an Arrow IPC file, uncompressed, and fsync it.

    Args:
        align: Boundary of every buffer, counted from the start of the file; a power of two, at least 8.
        sync: Whether to fsync it now; otherwise the caller does (`fsync_file`) before anybody relies on it.

    Raises:
        SchemaError: the batch has dictionary columns, which a memory-mapped shard does not hold.
        StorageError: disk full or no permission; the torn file is removed.
        OSError: never leaves this function.

    Cost:
        One write and one pass of xxh3, straight from the batch's buffers. What Arrow writes of a slice ends
        with bytes of the rows behind it: a slice of other than numbers without nulls is copied first.
    """
    for field in batch.schema:
        if pa.types.is_dictionary(field.type):
            raise SchemaError(f"column {field.name!r} is a dictionary: decode it first", column=field.name)
    announce("write", path)
    with storage_errors("write", path):
        try:
            with closing(HashedFile(path)) as file:
                file.write_all(_pieces(_without_neighbours(batch), align))
                digest = file.digest()
                if sync:
                    announce("fsync", path)
                    file.sync()
        except OSError:
            Path(path).unlink(missing_ok=True)
            raise
    return WrittenFile(file.position, digest)


def _without_neighbours(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch whose buffers hold nothing but its own rows."""
    own = [c if _is_whole(c) else _cut(c) for c in batch.columns]
    return pa.RecordBatch.from_arrays(own, schema=batch.schema)


def _cut(column: pa.Array) -> pa.Array:
    """Return a slice with buffers of its own: for numbers without nulls, parts of those that are there."""
    kind = column.type
    if column.null_count or not pa.types.is_primitive(kind) or pa.types.is_boolean(kind):
        return pa.concat_arrays([column, column.slice(0, 0)])
    width = kind.bit_width // 8
    data = column.buffers()[1].slice(column.offset * width, len(column) * width)
    return pa.Array.from_buffers(kind, len(column), [None, data])


def _is_whole(column: pa.Array) -> bool:
    """Say whether no buffer of a column is longer than its rows need."""
    if column.offset:
        return False
    kind = column.type
    # `nbytes` leaves the last offset of texts out.
    last = 8 if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind) else 0
    last = 4 if pa.types.is_string(kind) or pa.types.is_binary(kind) else last
    held = sum(buffer.size for buffer in column.buffers() if buffer is not None)
    return bool(held <= column.nbytes + last)


def _pieces(batch: pa.RecordBatch, align: int) -> list[bytes | memoryview]:
    """Return the file's bytes; the batch's buffers among them, not copied."""
    schema = batch.schema.serialize().to_pybytes()
    head = _MAGIC + b"\0\0" + schema
    head += bytes(-len(head) % 8)
    body, block = _put_batch(len(head), batch, align)
    footer = _patched_footer(_empty_file(schema), block)
    tail = _CONTINUATION + bytes(4) + footer + struct.pack("<i", len(footer)) + _MAGIC
    return [head, *body, tail]


class _Pieces:
    """Takes what Arrow's stream writer hands over, without copying the buffers."""

    closed = False

    def __init__(self) -> None:
        self.views: list[memoryview] = []

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.views.append(view)
        return view.nbytes

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def flush(self) -> None: ...

    def close(self) -> None: ...


def _take_metadata(views: list[memoryview]) -> bytearray:
    """Take a message's head off a stream's pieces.

    Raises:
        CorruptDataError: Arrow cut its pieces in another way.
    """
    taken = bytearray()
    length = 8
    while views and len(taken) < length:
        taken += views.pop(0)
        if len(taken) == 8:
            length = 8 + struct.unpack_from("<i", taken, 4)[0]
    if taken[:4] != _CONTINUATION or len(taken) != length:
        raise CorruptDataError("Arrow wrote a batch in another way than the format says")
    return taken[8:]


def _message(batch: pa.RecordBatch) -> tuple[bytearray, dict[int, memoryview]]:
    """Let Arrow describe a batch; returns the metadata and the body's pieces by their place in the body."""
    pieces = _Pieces()
    with pa.ipc.new_stream(pa.PythonFile(pieces, mode="w"), batch.schema) as writer:
        writer.write_batch(batch)
        views = list(pieces.views)
    _take_metadata(views)  # the schema's
    metadata = _take_metadata(views)
    body, place = {}, 0
    for view in views:
        body[place] = view
        place += view.nbytes
    return metadata, body


def _put_batch(
    start: int, batch: pa.RecordBatch, align: int
) -> tuple[list[bytes | memoryview], tuple[int, int, int]]:
    """Lay out one message from a place of the file on.

    Returns:
        Its pieces; its offset, metadata length (prefix included) and body length.
    """
    metadata, body = _message(batch)
    length = len(metadata)
    padded = -(start + 8 + length) % align + length
    table = _root(metadata)
    buffers = _vector(metadata, _table(metadata, table, _HEADER), _BUFFERS)
    views: list[bytes | memoryview] = []
    end = 0
    for at in range(buffers[0], buffers[0] + 16 * buffers[1], 16):
        offset, size = struct.unpack_from("<qq", metadata, at)
        struct.pack_into("<q", metadata, at, end)
        if size:
            views.append(body[offset][:size])
            if padding := -size % align:
                views.append(bytes(padding))
            end += size + padding
    struct.pack_into("<q", metadata, _field(metadata, table, _BODY_LENGTH), end)
    prefix = _CONTINUATION + struct.pack("<i", padded) + metadata + bytes(padded - length)
    return [prefix, *views], (start, 8 + padded, end)


@lru_cache(maxsize=64)
def _empty_file(serialized: bytes) -> bytes:
    """Let Arrow write the footer of a file with one batch of a schema."""
    schema = pa.ipc.read_schema(pa.py_buffer(serialized))
    stream = pa.BufferOutputStream()
    with pa.ipc.new_file(stream, schema) as writer:
        writer.write_batch(_no_rows(schema))
    return bytes(stream.getvalue().to_pybytes())


def _no_rows(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(0, f.type) for f in schema], schema=schema)


def _patched_footer(file: bytes, block: tuple[int, int, int]) -> bytes:
    length = struct.unpack_from("<i", file, len(file) - 10)[0]
    footer = bytearray(file[len(file) - 10 - length : len(file) - 10])
    at, count = _vector(footer, _root(footer), _RECORD_BATCHES)
    if count != 1:
        raise CorruptDataError(f"Arrow wrote a footer with {count} batches, expected one")
    # struct Block: offset int64, metaDataLength int32, padding, bodyLength int64.
    struct.pack_into("<qi4xq", footer, at, *block)
    return bytes(footer)


def _root(data: Any) -> int:
    return int(struct.unpack_from("<I", data, 0)[0])


def _field(data: Any, table: int, slot: int) -> int:
    """Return the position of a table's field.

    Raises:
        CorruptDataError: the field is absent.
    """
    vtable = table - struct.unpack_from("<i", data, table)[0]
    entry = 4 + 2 * slot
    size = struct.unpack_from("<H", data, vtable)[0]
    offset = struct.unpack_from("<H", data, vtable + entry)[0] if entry < size else 0
    if not offset:
        raise CorruptDataError("Arrow's message metadata lacks a field that the format requires")
    return int(table + offset)


def _table(data: Any, table: int, slot: int) -> int:
    at = _field(data, table, slot)
    return int(at + struct.unpack_from("<I", data, at)[0])


def _vector(data: Any, table: int, slot: int) -> tuple[int, int]:
    """Return the position of a vector's first element, and how many there are."""
    at = _table(data, table, slot)
    return at + 4, int(struct.unpack_from("<I", data, at)[0])
