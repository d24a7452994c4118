"""Entity keys as bytes, and the bucket each belongs to."""

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import SchemaError

Int32Array = npt.NDArray[np.int32]
_U: Final = np.uint64
_P1: Final = _U(11400714785074694791)
_P2: Final = _U(14029467366897019727)
_P3: Final = _U(1609587929392839161)
_P4: Final = _U(9650029242287828579)
_P5: Final = _U(2870177450012600261)

Column: TypeAlias = pa.Array | pa.ChunkedArray
_BLOCK_ROWS: Final = 1 << 14
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
        One hash table over the rows and one hash per distinct key; integers and dictionaries need no table.

    Raises:
        SchemaError: a column that is neither string, binary nor integer, or no column.
    """
    if not columns:
        raise SchemaError("rows without a key column have no bucket", hint="name the entities of the table")
    rows = len(columns[0])
    if buckets == 1 or rows == 0:
        for column in columns:
            _check_key_type(column.type)
        return np.zeros(rows, np.int32)
    if len(columns) == 1 and pa.types.is_integer(columns[0].type):
        hashed = _integer_hashes(columns[0], 0)
        # A mask costs a tenth of a division.
        whole = buckets & (buckets - 1) == 0
        out = (hashed & _U(buckets - 1) if whole else hashed % _U(buckets)).astype(np.int32)
        if columns[0].null_count:
            out[np.asarray(columns[0].is_null())] = 0
        return out
    codes, uniques = _dictionary_keys(columns) or distinct_keys(columns)
    import xxhash  # noqa: PLC0415 -- only writers need it

    hashes = [0 if key is None else xxhash.xxh64_intdigest(key) % buckets for key in key_bytes(uniques)]
    # The last entry is where code -1, a null part, lands.
    return np.asarray([*hashes, 0], dtype=np.int32)[codes]


def _dictionary_keys(columns: Sequence[Column]) -> tuple[Int32Array, list[pa.Array]] | None:
    """Return the codes that a single dictionary column brings along, and its values: nothing is hashed."""
    kind = columns[0].type
    if len(columns) > 1 or not pa.types.is_dictionary(kind):
        return None
    flat = columns[0].combine_chunks() if isinstance(columns[0], pa.ChunkedArray) else columns[0]
    return _indices(flat.indices), [flat.dictionary]


def key_hashes(columns: Sequence[Column], seed: int) -> npt.NDArray[np.uint64]:
    """Return each row's seeded xxh64 of the key's bytes; of no meaning where a part is null.

    Cost:
        Integers: a dozen passes over the column. Otherwise one hash table over the rows and one hash per
        distinct key.

    Raises:
        SchemaError: a column that is neither string, binary nor integer.
    """
    if len(columns) == 1 and pa.types.is_integer(columns[0].type):
        return _integer_hashes(columns[0], seed)
    codes, uniques = distinct_keys(columns)
    import xxhash  # noqa: PLC0415 -- only where subjects were erased

    hashes = [0 if key is None else xxhash.xxh64_intdigest(key, seed) for key in key_bytes(uniques)]
    return np.asarray([*hashes, 0], dtype=np.uint64)[codes]


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


def _integer_hashes(column: Column, seed: int) -> npt.NDArray[np.uint64]:
    """Hash all rows: xxh64 of 8 bytes, written out for arrays; block by block, as a block stays cached."""
    plain = column.cast(pa.uint64() if pa.types.is_unsigned_integer(column.type) else pa.int64())
    if plain.null_count:
        plain = plain.fill_null(0)
    values = np.ascontiguousarray(plain.to_numpy()).view(np.uint64)
    out = np.empty(len(values), np.uint64)
    for start in range(0, len(values), _BLOCK_ROWS):
        _hash_block(values[start : start + _BLOCK_ROWS], seed, out[start : start + _BLOCK_ROWS])
    return out


def _hash_block(values: npt.NDArray[np.uint64], seed: int, hashed: npt.NDArray[np.uint64]) -> None:
    np.multiply(values, _P2, out=hashed)
    hashed[:] = ((hashed << _U(31)) | (hashed >> _U(33))) * _P1
    hashed ^= _U((seed + int(_P5) + 8) & 0xFFFF_FFFF_FFFF_FFFF)
    hashed[:] = ((hashed << _U(27)) | (hashed >> _U(37))) * _P1 + _P4
    hashed ^= hashed >> _U(33)
    hashed *= _P2
    hashed ^= hashed >> _U(29)
    hashed *= _P3
    hashed ^= hashed >> _U(32)


def _encode(column: Column) -> tuple[Int32Array, pa.Array]:
    _check_key_type(column.type)
    flat = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
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
