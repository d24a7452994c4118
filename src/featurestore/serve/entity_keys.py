"""Entity keys as the online store writes them: as `core.keys`, but integers with their highest byte first.

Stores are sorted by key. Neighbouring numbers then lie on one page, and a batch of them, which is what
materialization writes, touches a few pages instead of one for each.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Final, SupportsIndex

import numpy as np
import pyarrow as pa

from featurestore.core.keys import key_bytes
from featurestore.errors import SchemaError

KeyEncoder = Callable[[object], bytes]
_INTEGER: Final = struct.Struct(">q")


def stored_keys(columns: Sequence[pa.Array | pa.ChunkedArray]) -> list[bytes | None]:
    """Write keys given as Arrow columns; a key with a null part is `None`."""
    parts = [_parts(column) for column in columns]
    return parts[0] if len(parts) == 1 else joined_parts(parts)


def joined_parts(parts: Sequence[Sequence[bytes | None]]) -> list[bytes | None]:
    """Join the parts of composite keys, each with its length before it."""
    return [
        None
        if None in key
        else b"".join([len(part).to_bytes(4, "little") + part for part in key if part is not None])
        for key in zip(*parts, strict=True)
    ]


def split_parts(key: bytes, parts: int) -> list[bytes]:
    """Return the parts of a key of so many."""
    if parts == 1:
        return [key]
    out, at = [], 0
    while at < len(key):
        length = int.from_bytes(key[at : at + 4], "little")
        out.append(key[at + 4 : at + 4 + length])
        at += 4 + length
    return out


def decoded_part(kind: pa.DataType, part: bytes) -> object:
    """Return what a part was written from."""
    plain = plain_type(kind)
    if pa.types.is_integer(plain):
        return int.from_bytes(part, "big", signed=not pa.types.is_unsigned_integer(plain))
    return part if pa.types.is_binary(plain) or pa.types.is_large_binary(plain) else part.decode()


def part_encoder(name: str, kind: pa.DataType) -> KeyEncoder:
    """Return what writes a part of column `name` given as a Python value."""
    return _integer_encoder(name) if pa.types.is_integer(plain_type(kind)) else _text_encoder(name, kind)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column's values, dictionary or not."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def key_kind(kind: pa.DataType) -> str:
    """Return what keys of a type are: integer, string or binary."""
    kind = plain_type(kind)
    if pa.types.is_integer(kind):
        return "integer"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "string"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return "binary"
    return str(kind)


def _parts(column: pa.Array | pa.ChunkedArray) -> list[bytes | None]:
    if not pa.types.is_integer(plain_type(column.type)):
        return key_bytes([column])
    flat = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(flat.type):
        flat = flat.cast(flat.type.value_type)
    wide = flat.cast(pa.uint64() if pa.types.is_unsigned_integer(flat.type) else pa.int64())
    numbers = (wide.fill_null(0) if wide.null_count else wide).to_numpy().byteswap().tobytes()
    out: list[bytes | None] = [numbers[at : at + 8] for at in range(0, len(numbers), 8)]
    for at in np.flatnonzero(np.asarray(wide.is_null())).tolist() if wide.null_count else ():
        out[at] = None
    return out


def _integer_encoder(name: str) -> KeyEncoder:
    pack: KeyEncoder = _INTEGER.pack

    def encode(value: object) -> bytes:
        if type(value) is bool:
            raise _wrong(name, "an integer", value)
        try:
            return pack(value)
        except struct.error as error:
            number = value.__index__() if isinstance(value, SupportsIndex) else -1
            if 0 <= number < 2**64:
                return number.to_bytes(8, "big")
            raise _wrong(name, "an integer", value) from error

    return encode


def _text_encoder(name: str, kind: pa.DataType) -> KeyEncoder:
    wanted = "bytes" if key_kind(kind) == "binary" else "a string"

    def encode(value: object) -> bytes:
        if isinstance(value, str) and wanted == "a string":
            try:
                return value.encode()
            except UnicodeEncodeError as error:
                raise _wrong(name, "valid Unicode", value) from error
        if isinstance(value, bytes) and wanted == "bytes":
            return value
        raise _wrong(name, wanted, value)

    return encode


def _wrong(name: str, wanted: str, value: object) -> SchemaError:
    return SchemaError(
        f"entity column {name!r} holds {type(value).__name__}, where the key is {wanted}",
        hint="send keys of the kind that the source has",
        column=name,
    )
