"""Arrow IPC files whose buffers lie on 64-byte (or 4 KiB) boundaries of the file.

pyarrow aligns buffers to 8 bytes and has no knob. The file is therefore laid out here: Arrow serializes each
batch, its buffers move to aligned places, and the offsets inside the metadata are patched. Nothing changes
size in the metadata, so no flatbuffer is rebuilt, and every Arrow reader reads the file.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa

from featurestore.errors import CorruptDataError, SchemaError
from featurestore.storage.files import announce, storage_errors

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


def write_ipc(path: str | Path, batch: pa.RecordBatch, *, align: int = 64) -> WrittenFile:
    """Write one record batch as an Arrow IPC file, uncompressed, and fsync it.

    Args:
        align: Boundary of every buffer, counted from the start of the file; a power of two, at least 8.

    Raises:
        SchemaError: the batch has dictionary columns, which a memory-mapped shard does not hold.
        StorageError: disk full or no permission; the torn file is removed.
        OSError: never leaves this function.

    Cost:
        One copy of the batch in memory, one pass of xxh3 while writing.
    """
    for field in batch.schema:
        if pa.types.is_dictionary(field.type):
            raise SchemaError(f"column {field.name!r} is a dictionary: decode it first", column=field.name)
    announce("write", path)
    with storage_errors("write", path):
        try:
            with Path(path).open("xb") as file:
                written = _write(file, batch, align)
                file.flush()
                announce("fsync", path)
                os.fsync(file.fileno())
        except OSError:
            Path(path).unlink(missing_ok=True)
            raise
    return written


class _Sink:
    """Writes, counts and hashes."""

    def __init__(self, file: BinaryIO) -> None:
        import xxhash  # noqa: PLC0415 -- readers do not need it

        self.file = file
        self.position = 0
        self.hasher = xxhash.xxh3_128()

    def put(self, data: bytes | bytearray | memoryview) -> None:
        self.file.write(data)
        self.hasher.update(data)
        self.position += len(data)

    def pad(self, align: int) -> None:
        self.put(bytes(-self.position % align))


def _write(file: BinaryIO, batch: pa.RecordBatch, align: int) -> WrittenFile:
    sink = _Sink(file)
    empty = _empty_file(batch.schema)
    sink.put(_MAGIC + b"\0\0")
    sink.put(memoryview(batch.schema.serialize()))
    sink.pad(8)
    block = _put_batch(sink, batch, align)
    sink.put(_CONTINUATION + bytes(4))
    footer = _patched_footer(empty, block)
    sink.put(footer)
    sink.put(struct.pack("<i", len(footer)) + _MAGIC)
    return WrittenFile(sink.position, str(sink.hasher.hexdigest()))


def _put_batch(sink: _Sink, batch: pa.RecordBatch, align: int) -> tuple[int, int, int]:
    """Write one message; returns its offset, metadata length (prefix included) and body length."""
    message = memoryview(batch.serialize())
    length = struct.unpack_from("<i", message, 4)[0]
    metadata = bytearray(message[8 : 8 + length])
    body = message[8 + length :]
    start = sink.position
    padded = -(start + 8 + length) % align + length
    table = _root(metadata)
    buffers = _vector(metadata, _table(metadata, table, _HEADER), _BUFFERS)
    places, end = [], 0
    for at in range(buffers[0], buffers[0] + 16 * buffers[1], 16):
        offset, size = struct.unpack_from("<qq", metadata, at)
        struct.pack_into("<q", metadata, at, end)
        places.append((offset, size, end))
        end += -(-size // align) * align
    struct.pack_into("<q", metadata, _field(metadata, table, _BODY_LENGTH), end)
    sink.put(_CONTINUATION + struct.pack("<i", padded))
    sink.put(metadata)
    sink.put(bytes(padded - length))
    base = sink.position
    for offset, size, place in places:
        sink.put(bytes(base + place - sink.position))
        sink.put(body[offset : offset + size])
    sink.put(bytes(base + end - sink.position))
    return start, 8 + padded, end


def _empty_file(schema: pa.Schema) -> bytes:
    """Let Arrow write the footer of a file with one batch."""
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
