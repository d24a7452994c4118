"""The fingerprint: one number for what a dataset says, whatever files it lies in.

Rows are taken in canonical order, partition by partition (event date, then bucket). Within a partition every
column feeds its own streams: validity, values with nulls as zero, lengths of strings and lists. A stream does
not know where one chunk ends and the next begins, so batches, row groups, files and shards leave no trace.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.core.canonical import digest_json
from featurestore.core.table_rows import valid_rows
from featurestore.errors import SchemaError


@dataclass(frozen=True, slots=True, order=True)
class PartitionDigest:
    """What one (event date, bucket) partition contributes.

    Attributes:
        date: Days since 1970-01-01.
        digest: xxh3-128 of the partition's content, 32 hex digits.
    """

    date: int
    bucket: int
    rows: int
    digest: str


def partition_digest(table: pa.Table) -> str:
    """Hash the rows of one partition, in canonical order.

    Raises:
        SchemaError: a column type that has no canonical bytes.

    Cost:
        About the memory bandwidth; strings without copies, nulls with one copy of the column.
    """
    import xxhash  # noqa: PLC0415 -- only writers and `verify` need it

    return digest_json(
        [
            [field.name, _Stream(xxhash.xxh3_128, table.column(i)).text()]
            for i, field in enumerate(table.schema)
        ]
    )


def combine_partitions(schema: pa.Schema, partitions: Iterable[PartitionDigest]) -> str:
    """Return a dataset's fingerprint from its partitions, given in any order; empty ones do not count."""
    return digest_json(
        {
            "columns": [[f.name, logical_type(f.type)] for f in schema],
            "partitions": [[p.date, p.bucket, p.rows, p.digest] for p in sorted(partitions) if p.rows],
        }
    )


def logical_type(kind: pa.DataType) -> str:
    """Name a type by what it can say, not by how it lies in memory."""
    if pa.types.is_dictionary(kind):
        return logical_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "string"
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return "binary"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list<{logical_type(kind.value_type)}>"
    return str(kind)


class _Stream:
    """The hashes of one column."""

    def __init__(self, hasher: type, column: pa.ChunkedArray) -> None:
        self.hasher = hasher
        self.chunks: Sequence[pa.Array] = [_plain(chunk) for chunk in column.chunks]
        self.kind = self.chunks[0].type if self.chunks else column.type

    def text(self) -> list[object]:
        validity, values, lengths = self.hasher(), self.hasher(), self.hasher()
        nulls = sum(chunk.null_count for chunk in self.chunks)
        children: list[list[pa.Array]] = []
        for chunk in self.chunks:
            if nulls:
                validity.update(valid_rows(chunk).view(np.uint8))
            children.append(_feed(chunk, values, lengths))
        out: list[object] = [validity.hexdigest() if nulls else "", values.hexdigest(), lengths.hexdigest()]
        nested = (pa.chunked_array(list(parts)) for parts in zip(*children, strict=True))
        return [*out, *(_Stream(self.hasher, column).text() for column in nested)]


def _plain(chunk: pa.Array) -> pa.Array:
    """Undo encodings that do not change meaning."""
    kind = chunk.type
    if pa.types.is_dictionary(kind):
        return _plain(chunk.cast(kind.value_type))
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        return chunk.cast(pa.large_string())
    if pa.types.is_binary(kind) or pa.types.is_binary_view(kind) or pa.types.is_fixed_size_binary(kind):
        return chunk.cast(pa.large_binary())
    if pa.types.is_list(kind):
        return chunk.cast(pa.large_list(kind.value_field))
    return chunk


def _feed(chunk: pa.Array, values: Any, lengths: Any) -> list[pa.Array]:
    """Feed one chunk; nested types return their children instead."""
    kind = chunk.type
    update = values.update
    if pa.types.is_null(kind):
        return []
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        counts = pc.binary_length(chunk).fill_null(0)
        lengths.update(np.ascontiguousarray(counts.to_numpy(zero_copy_only=False), np.int64))
        filled = (
            pc.fill_null(chunk, b"" if pa.types.is_large_binary(kind) else "") if chunk.null_count else chunk
        )
        offsets = np.frombuffer(filled.buffers()[1], np.int64)[
            filled.offset : filled.offset + len(filled) + 1
        ]
        data = filled.buffers()[2]
        if data is not None and len(offsets):
            update(memoryview(data)[offsets[0] : offsets[-1]])
        return []
    if pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        counts = pc.list_value_length(chunk).fill_null(0)
        lengths.update(np.ascontiguousarray(counts.to_numpy(zero_copy_only=False), np.int64))
        return [chunk.drop_null().flatten()]
    if pa.types.is_struct(kind):
        return list(chunk.flatten())
    if pa.types.is_boolean(kind):
        filled = chunk.fill_null(False) if chunk.null_count else chunk
        update(np.ascontiguousarray(filled.to_numpy(zero_copy_only=False)).view(np.uint8))
        return []
    update(_fixed_width_bytes(chunk))
    return []


def _fixed_width_bytes(chunk: pa.Array) -> np.ndarray:
    kind = chunk.type
    try:
        width = kind.bit_width // 8
    except ValueError as error:
        raise SchemaError(
            f"a column of type {kind} cannot be fingerprinted",
            hint="store it as numbers, strings, lists or structs",
            type=str(kind),
        ) from error
    buffer = chunk.buffers()[1]
    if buffer is None:
        return np.zeros(len(chunk) * width, np.uint8)
    raw = np.frombuffer(buffer, np.uint8)[chunk.offset * width : (chunk.offset + len(chunk)) * width]
    if chunk.null_count == 0:
        return raw
    valid = valid_rows(chunk)
    if width in {1, 2, 4, 8}:
        return (raw.view(f"u{width}") * valid).view(np.uint8)
    return (raw.reshape(len(chunk), width) * valid[:, None]).reshape(-1)
