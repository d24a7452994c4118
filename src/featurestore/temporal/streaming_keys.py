"""Entity codes that stay the same from batch to batch."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.core.python_values import python_values
from featurestore.core.time import INT64_MAX, Int64Array
from featurestore.errors import SchemaError
from featurestore.temporal.gather import gather
from featurestore.temporal.jit import lazy_module
from featurestore.temporal.key_kinds import key_kind
from featurestore.temporal.rows import Int32Array, frozen
from featurestore.temporal.times import one_array, valid_mask

_kernels: Any = lazy_module("featurestore.temporal.streaming_key_kernels")
_key_kernels: Any = lazy_module("featurestore.temporal.key_kernels")

_UInt8Array = npt.NDArray[np.uint8]
_SPARSE_SLOTS: Final = 1 << 14
_NARROW: Final = np.dtype(np.int32)
_WIDE: Final = np.dtype(np.int64)
_NO_BYTES: Final[_UInt8Array] = frozen(np.zeros(0, np.uint8))


def _room_of(table: npt.NDArray[np.uint64]) -> int:
    """Return how many keys a table takes before it grows: sparse while small, a second look costs most."""
    slots = len(table) >> 1
    return slots >> 4 if slots <= _SPARSE_SLOTS else slots >> 2


class _Words:
    """A growing table of integers."""

    def __init__(self) -> None:
        self.table: npt.NDArray[np.uint64] = np.zeros(2 * 1024, np.uint64)
        self.count = 0

    def code(
        self, values: Int64Array, bitmap: _UInt8Array, offset: int, out: Int32Array, *, codes: bool = False
    ) -> None:
        """Write a code per value, -1 for null; a negative value is null too where they are `codes`."""
        row, values = 0, frozen(values)
        while True:
            row, self.count = _kernels.number_words(
                values, bitmap, offset, codes, row, self.table, _room_of(self.table), self.count, out
            )
            if row == len(out):
                return
            self.table = _key_kernels.grown_table(self.table)


class _Bytes:
    """A growing table of byte strings, with their bytes."""

    def __init__(self) -> None:
        self.table: npt.NDArray[np.uint64] = np.zeros(2 * 1024, np.uint64)
        self.count = 0
        self.arena: _UInt8Array = np.empty(1 << 14, np.uint8)
        self.begins, self.sizes = np.zeros(65, np.int64), np.zeros(65, np.int64)

    def code(self, array: pa.Array, out: Int32Array) -> None:
        """Write a code per value of an array with offsets, 32 or 64 bits wide; -1 for null."""
        row, offset = 0, array.offset
        _, begins, content = array.buffers()
        data = _NO_BYTES if content is None else frozen(np.frombuffer(content, np.uint8))
        large = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
        width: np.dtype[Any] = _WIDE if large else _NARROW
        offsets = frozen(np.frombuffer(begins, width, len(array) + 1, offset * width.itemsize))
        bitmap = _bitmap(array)
        while True:
            room = len(self.begins) - 1
            row, self.count = _kernels.number_bytes(
                offsets, data, bitmap, offset, row, self.table, room,
                self.arena, self.begins, self.sizes, self.count, out,
            )  # fmt: skip
            if row == len(out):
                return
            self._grow(int(offsets[row + 1] - offsets[row]))

    def _grow(self, size: int) -> None:
        """Make room for more keys, and for one of `size` bytes."""
        if self.count == len(self.begins) - 1:
            self.table = _key_kernels.grown_table(self.table)
            room = _room_of(self.table)
            self.begins, self.sizes = _longer(self.begins, room + 1), _longer(self.sizes, room + 1)
        if self.begins[self.count] + size > len(self.arena):
            self.arena = _longer(self.arena, 2 * len(self.arena) + size)


def _longer(values: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    out = np.zeros(size, values.dtype)
    out[: len(values)] = values
    return out


class _Values:
    """A dictionary of Python values, for the key types that are rare: decimals and extensions."""

    def __init__(self) -> None:
        self.known: dict[Any, int] = {}

    def code(self, array: pa.Array, out: Int32Array) -> None:
        """Write a code per value, -1 for null; only the distinct ones are looked up."""
        coded = (array.storage if isinstance(array, pa.ExtensionArray) else array).dictionary_encode()
        known = self.known
        codes = [known.setdefault(key, len(known)) for key in python_values(coded.dictionary)]
        out[:] = np.array([*codes, -1], np.int32)[coded.indices.fill_null(-1).to_numpy()]


class KeyNumbers:
    """The keys seen so far; a batch costs one look-up per row in compiled loops."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self._kinds: dict[int, str] = {}
        self.forget()

    def forget(self) -> None:
        """Number the keys anew; their kinds stay what they are."""
        self._words = [_Words() for _ in self.names]
        self._bytes = [_Bytes() for _ in self.names]
        self._values = [_Values() for _ in self.names]
        self._pairs = [_Words() for _ in self.names]

    def __len__(self) -> int:
        if not self.names:
            return 1
        if len(self.names) > 1:
            return self._pairs[-1].count
        return max(self._words[0].count, self._bytes[0].count, len(self._values[0].known))

    def check(self, types: Sequence[pa.DataType]) -> None:
        """Check that the key columns are of the kinds seen so far; one of nulls alone is of any kind.

        Raises:
            SchemaError: a type that cannot be a key, or of another kind than before.
        """
        found: dict[int, str] = {}
        for place, (kind, name) in enumerate(zip(types, self.names, strict=True)):
            if pa.types.is_null(kind):
                continue  # nulls match nothing, whatever their type
            found[place] = key_kind(kind, name)
            before = self._kinds.get(place, found[place])
            if found[place] != before:
                raise SchemaError(
                    f"key column {name!r} is {found[place]} here and was {before} on another push",
                    hint="cast one of them: keys of different kinds are never equal",
                    column=name,
                )
        self._kinds |= found

    def code(self, columns: Sequence[pa.ChunkedArray], out: Int32Array) -> bool:
        """Write a code per row, -1 where a key is null; new keys get new codes.

        Returns:
            Whether a key can be null.

        Raises:
            SchemaError: an unsigned key above 2**63 - 1.
        """
        if len(out) == 0:
            return False
        if not columns:
            out[:] = 0
            return False
        missing = self._column(0, one_array(columns[0]), out)
        for place in range(1, len(columns)):
            other, pairs = np.empty_like(out), np.empty(len(out), np.int64)
            missing |= self._column(place, one_array(columns[place]), other)
            _kernels.pair_codes(out, other, pairs)
            self._pairs[place].code(pairs, _NO_BYTES, 0, out, codes=True)
        return missing

    def _column(self, place: int, array: pa.Array, out: Int32Array) -> bool:
        kind = array.type
        if pa.types.is_null(kind):
            out[:] = -1
        elif _is_bytes(kind):
            self._bytes[place].code(_with_offsets(array), out)
        elif pa.types.is_dictionary(kind):
            self._dictionary(place, array, out)
            return bool(array.null_count or array.dictionary.null_count)
        elif isinstance(array, pa.ExtensionArray) or pa.types.is_decimal(kind):
            self._values[place].code(array, out)
            return True
        else:
            if pa.types.is_uint64(kind) and (pc.max(array).as_py() or 0) > INT64_MAX:
                raise SchemaError(
                    f"key column {self.names[place]!r} holds a number above {INT64_MAX}: no stream key",
                    hint="cast the key to string on both sides",
                    column=self.names[place],
                )
            words = _integers(array)
            self._words[place].code(_numbers(words), _bitmap(words), words.offset, out)
        return bool(array.null_count)

    def _dictionary(self, place: int, array: pa.Array, out: Int32Array) -> None:
        """Code the values of a dictionary, or those that rows hold where they are fewer."""
        values, indices = array.dictionary, array.indices
        numbers, bitmap = _numbers(indices).astype(np.int32, copy=False), _bitmap(indices)
        if len(values) == 0:
            out[:] = -1
        elif len(values) <= len(array):
            table = np.empty(len(values), np.int32)
            self._column(place, values, table)
            _key_kernels.look_up(frozen(numbers), bitmap, indices.offset, frozen(table), out)
        else:
            valid = valid_mask(indices)
            places = numbers if valid is None else np.where(valid, numbers, np.int32(-1))
            self._column(place, gather(values, places), out)


def _is_bytes(kind: pa.DataType) -> bool:
    """Whether a type's values are bytes: strings and binaries of any layout."""
    types = pa.types
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )


def _with_offsets(array: pa.Array) -> pa.Array:
    """Return strings or binaries in a layout that has offsets."""
    types = pa.types
    if types.is_string(array.type):
        return array
    if types.is_string_view(array.type):
        return array.cast(pa.large_string())
    if types.is_binary_view(array.type) or types.is_fixed_size_binary(array.type):
        return array.cast(pa.large_binary())
    return array


def _integers(array: pa.Array) -> pa.Array:
    """Return integers, booleans, dates and times as integers."""
    if pa.types.is_temporal(array.type):
        return array.view(pa.int32() if array.type.bit_width == 32 else pa.int64())
    return array.cast(pa.int8()) if pa.types.is_boolean(array.type) else array


def _numbers(array: pa.Array) -> Int64Array:
    """Return the stored integers; what lies under a null is arbitrary."""
    kind = np.dtype(array.type.to_pandas_dtype())
    values = np.frombuffer(array.buffers()[1], kind, len(array), array.offset * kind.itemsize)
    return values.astype(np.int64, copy=False)


def _bitmap(array: pa.Array) -> _UInt8Array:
    data = array.buffers()[0] if array.null_count else None
    return _NO_BYTES if data is None else frozen(np.frombuffer(data, np.uint8))
