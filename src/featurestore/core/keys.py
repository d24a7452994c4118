"""Entity keys as bytes, and the bucket each belongs to."""

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.core.jit import lazy_module
from featurestore.core.table_rows import plain_type
from featurestore.errors import SchemaError

Int32Array = npt.NDArray[np.int32]
UInt64Array = npt.NDArray[np.uint64]

_kernels: Any = lazy_module("featurestore.core.xxh64_kernels")

Column: TypeAlias = pa.Array | pa.ChunkedArray
_KEY_KINDS: Final = (
    pa.types.is_integer,
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)


def key_bytes(columns: Sequence[Column]) -> list[bytes | None]:
    """Encode keys, one entry per row: a string as UTF-8, an integer as 8 bytes little-endian.

    A composite key is the parts in order, each after its length (4 bytes little-endian), so that
    `(1, 23)` and `(12, 3)` differ. A key with a null part is `None`. Pass unique keys: this is a
    Python loop.

    Raises:
        SchemaError: a column that is neither string, binary nor integer.
    """
    parts = [_part_bytes(column) for column in columns]
    if len(parts) == 1:
        return parts[0]
    return [
        None if None in key else b"".join(len(p).to_bytes(4, "little") + p for p in key if p is not None)
        for key in zip(*parts, strict=True)
    ]


def buckets_of(columns: Sequence[Column], buckets: int) -> Int32Array:
    """Return each row's bucket: xxh64 of the key's bytes, modulo `buckets`; 0 where a part is null.

    Args:
        columns: The key columns, `n` rows each.

    Cost:
        One pass over the keys; of a dictionary over its values.

    Raises:
        SchemaError: a column that is neither string, binary nor integer, or no column.
    """
    if not columns:
        raise SchemaError("rows without a key column have no bucket", hint="name the entities of the table")
    for column in columns:
        _check_key_type(column.type)
    rows = len(columns[0])
    if buckets == 1 or rows == 0:
        return np.zeros(rows, np.int32)
    hashed = key_hashes(columns, 0)
    # A mask costs a tenth of a division.
    whole = buckets & (buckets - 1) == 0
    out = (hashed & np.uint64(buckets - 1) if whole else hashed % np.uint64(buckets)).astype(np.int32)
    for column in columns:
        if column.null_count or pa.types.is_dictionary(column.type):
            out[_nulls(column)] = 0
    return out


def key_hashes(columns: Sequence[Column], seed: int) -> UInt64Array:
    """Return each row's seeded xxh64 of the key's bytes; of no meaning where a part is null.

    Cost:
        One pass over the keys, some ns a row; of a dictionary over its values. A composite key is put
        together first.

    Raises:
        SchemaError: a column that is neither string, binary nor integer.
    """
    for column in columns:
        _check_key_type(column.type)
    if len(columns) > 1:
        return _string_hashes(_joined(columns), seed)
    flat = _flat(columns[0])
    if not pa.types.is_dictionary(flat.type):
        return _array_hashes(flat, seed)
    # The last place is where a null looks.
    return np.append(_array_hashes(flat.dictionary, seed), np.uint64(0))[_indices(flat.indices)]


def can_be_key(kind: pa.DataType) -> bool:
    """Say whether columns of a type can be keys: strings, binaries and integers, dictionaries of them."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(check(kind) for check in _KEY_KINDS)


def distinct_keys(columns: Sequence[Column]) -> tuple[Int32Array, list[pa.Array]]:
    """Number the distinct keys of rows.

    Returns:
        `(n,)` codes into the distinct keys in order of first appearance, -1 where a part is null; and the
        distinct keys' columns.
    """
    encoded = [_encode(column) for column in columns]
    if len(encoded) == 1:
        return encoded[0][0], [encoded[0][1]]
    null = np.zeros(len(columns[0]), np.bool_)
    combined = np.zeros(len(columns[0]), np.int64)
    for codes, values in encoded:
        null |= codes < 0
        combined = combined * (len(values) + 1) + np.where(codes < 0, len(values), codes)
        if len(values) and int(combined.max(initial=0)) > 2**31:
            combined = np.asarray(pa.array(combined).dictionary_encode().indices).astype(np.int64)
    again = pa.array(combined, mask=null).dictionary_encode()
    codes = _indices(again.indices)
    first = np.full(len(again.dictionary), -1, np.int64)
    rows = np.flatnonzero(codes >= 0)[::-1]
    first[codes[rows]] = rows
    return codes, [values.take(pa.array(part[first])) for part, values in encoded]


def _array_hashes(array: pa.Array, seed: int) -> UInt64Array:
    if not pa.types.is_integer(array.type):
        return _string_hashes(_as_bytes(array), seed)
    out = np.empty(len(array), np.uint64)
    _kernels.hash_words(_words(array), np.uint64(seed), out)
    return out


def _string_hashes(texts: pa.Array, seed: int) -> UInt64Array:
    out = np.empty(len(texts), np.uint64)
    if len(texts):
        _, offsets, data = texts.buffers()
        at = np.frombuffer(offsets, np.int64, len(texts) + 1, 8 * texts.offset)
        raw = np.frombuffer(b"" if data is None else data, np.uint8)
        _kernels.hash_strings(_read_only(raw), _read_only(at), np.uint64(seed), out)
    return out


def _joined(columns: Sequence[Column]) -> pa.Array:
    """Return composite keys as `key_bytes` encodes them: each part after its length."""
    pieces: list[pa.Array] = []
    for column in columns:
        part = _as_bytes(_flat(column))
        sizes = pc.binary_length(part).fill_null(0).cast(pa.int32())
        pieces += [sizes.view(pa.binary(4)).cast(pa.large_binary()), part]
    return pc.binary_join_element_wise(*pieces, pa.scalar(b"", pa.large_binary()))


def _as_bytes(array: pa.Array) -> pa.Array:
    """Return keys as large binary: texts as UTF-8, integers as 8 bytes little-endian."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _as_bytes(array.cast(kind.value_type))
    if pa.types.is_integer(kind) or pa.types.is_null(kind):
        words = pa.array(_words(array), mask=_nulls(array) if array.null_count else None)
        return words.view(pa.binary(8)).cast(pa.large_binary())
    return array.cast(plain_type(kind)).cast(pa.large_binary())


def _words(integers: pa.Array) -> UInt64Array:
    """Return the 8 bytes of each integer as one number, 0 where null."""
    plain = integers.cast(pa.uint64() if pa.types.is_unsigned_integer(integers.type) else pa.int64())
    if plain.null_count:
        plain = plain.fill_null(0)
    return _read_only(plain.to_numpy().view(np.uint64))


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array in the one form that kernels are compiled for."""
    view = array.view()
    view.flags.writeable = False
    return view


def _flat(column: Column) -> pa.Array:
    if not isinstance(column, pa.ChunkedArray):
        return column
    # Arrow copies even a single chunk when it combines them.
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _nulls(column: Column) -> npt.NDArray[np.bool_]:
    """`(n,)` True where there is no value, also where a dictionary's value is null."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return np.asarray(column.is_null())


def _encode(column: Column) -> tuple[Int32Array, pa.Array]:
    _check_key_type(column.type)
    flat = _flat(column)
    if pa.types.is_dictionary(flat.type):
        flat = flat.cast(flat.type.value_type)
    if pa.types.is_string_view(flat.type):
        flat = flat.cast(pa.large_string())
    if pa.types.is_binary_view(flat.type):
        flat = flat.cast(pa.large_binary())
    if pa.types.is_null(flat.type):  # Arrow does not encode it
        flat = flat.cast(pa.int64())
    encoded = flat.dictionary_encode()
    return _indices(encoded.indices), encoded.dictionary


def _indices(indices: pa.Array) -> Int32Array:
    if indices.null_count:
        indices = pc.fill_null(indices, -1)
    return np.asarray(indices.to_numpy(zero_copy_only=False), dtype=np.int32)


def _part_bytes(column: Column) -> list[bytes | None]:
    _check_key_type(column.type)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    values = column.to_pylist()
    if pa.types.is_integer(kind):
        signed = not pa.types.is_unsigned_integer(kind)
        return [None if v is None else v.to_bytes(8, "little", signed=signed) for v in values]
    return [None if v is None else v.encode() if isinstance(v, str) else bytes(v) for v in values]


def _check_key_type(kind: pa.DataType) -> None:
    # A column that is null throughout may have no type of its own: rows without a key, in no one's bucket.
    if not can_be_key(kind) and not pa.types.is_null(kind):
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        raise SchemaError(
            f"a key column has type {plain}", hint="keys are strings or integers", type=str(plain)
        )
