"""Columns as the window kernels read them, and answers as Arrow arrays."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.core.time import BoolArray, Int64Array
from featurestore.errors import SchemaError
from featurestore.temporal.rows import frozen
from featurestore.temporal.times import one_array
from featurestore.temporal.windows_order import Grouped

FLOAT: Final = 0
INT: Final = 1
UINT: Final = 2

Values = tuple[Int64Array, BoolArray, int]
NO_BOOL: BoolArray = frozen(np.zeros(0, np.bool_))


@dataclass(frozen=True, slots=True)
class Column:
    """One column in the sorted order of its rows.

    Attributes:
        name: Names it in errors.
        array: The column itself, in the source's order.
        order: The order.
    """

    name: str
    array: pa.Array
    order: Grouped

    def valid(self) -> BoolArray:
        """Return the validity per sorted row; empty where nothing is null."""
        if self.array.null_count == 0:
            return NO_BOOL
        mask: BoolArray = self.order.sorted(valid_mask(self.array))
        return mask

    def numbers(self) -> Values:
        """Return bits, validity and kind of a column that can be summed: numbers and booleans.

        Raises:
            SchemaError: the type has no exact sum here.
        """
        kind = self.array.type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise SchemaError(
                f"column {self.name!r} is {kind}: it has no sum, mean, std or var",
                hint="numbers and booleans do; cast it to one of them in the view",
                column=self.name,
            )
        return self._values()

    def _values(self) -> Values:
        bits, kind = number_bits(self.array)
        return self.order.sorted(bits), self.valid(), kind

    def keys(self) -> tuple[Values, "pa.Array | None"]:
        """Return what min and max compare, and the values that ranks stand for (`None`: the bits do).

        Raises:
            SchemaError: the type has no order.
        """
        if _is_fixed(self.array.type):
            return self._values(), None
        codes, values = self._coded()
        try:
            order = pc.sort_indices(values)
        except (pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise SchemaError(
                f"column {self.name!r} is {self.array.type}: it has no order, so no min or max",
                hint="aggregate one of its parts, selected in the view's source query",
                column=self.name,
            ) from error
        ranks = np.empty(len(values) + 1, np.int64)
        ranks[order.to_numpy()] = np.arange(len(values))
        return (ranks[codes], self.valid(), INT), values.take(order)

    def codes(self) -> tuple[Int64Array, int]:
        """Return a dense code per sorted row (-1: null) and their number; NaN is one value, -0.0 is 0.0.

        Raises:
            SchemaError: the type's values cannot be compared for equality.
        """
        codes, values = self._coded()
        return codes, len(values)

    def _coded(self) -> tuple[Int64Array, pa.Array]:
        array = self.array
        if pa.types.is_floating(array.type):
            array = _one_zero_one_nan(array)
        elif pa.types.is_dictionary(array.type):
            array = array.cast(array.type.value_type)
        try:
            coded = array.dictionary_encode()
        except (pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise SchemaError(
                f"column {self.name!r} is {self.array.type}: its values cannot be counted or ordered",
                hint="aggregate one of its parts, selected in the view's source query",
                column=self.name,
            ) from error
        codes = coded.indices.fill_null(-1).to_numpy().astype(np.int64)
        return self.order.sorted(codes), coded.dictionary


def valid_mask(array: pa.Array) -> BoolArray:
    """Return which values are not null, `(n,)`."""
    mask: BoolArray = np.asarray(array.is_valid())
    return mask


def _is_fixed(kind: pa.DataType) -> bool:
    """Whether a type's values are numbers of at most 64 bits whose order is theirs."""
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or (pa.types.is_temporal(kind) and not pa.types.is_interval(kind))
    )


def _physical(array: pa.Array) -> npt.NDArray[Any]:
    """Return the values' memory as NumPy numbers; what lies under a null is arbitrary."""
    kind = array.type
    if pa.types.is_boolean(kind):
        return np.asarray(array.fill_null(False)).astype(np.int64)
    if pa.types.is_floating(kind):
        dtype = np.dtype(f"f{kind.bit_width // 8}")
    else:
        letter = "u" if pa.types.is_unsigned_integer(kind) else "i"
        dtype = np.dtype(f"{letter}{kind.bit_width // 8}")
    buffer = array.buffers()[1]
    if buffer is None or len(array) == 0:
        return np.zeros(len(array), dtype)
    return np.frombuffer(buffer, dtype, len(array), array.offset * dtype.itemsize)


def number_bits(array: pa.Array) -> tuple[Int64Array, int]:
    """Return fixed-width values as int64 bits and their kind: double, int64 or uint64."""
    raw = _physical(array)
    if raw.dtype.kind == "f":
        return raw.astype(np.float64, copy=False).view(np.int64), FLOAT
    if raw.dtype == np.uint64:
        return raw.view(np.int64), UINT
    return raw.astype(np.int64, copy=False), INT


def _one_zero_one_nan(array: pa.Array) -> pa.Array:
    values = _physical(array).astype(np.float64) + 0.0
    values[np.isnan(values)] = np.nan
    return pa.array(values, mask=None if array.null_count == 0 else ~valid_mask(array))


def array_of_bits(bits: Int64Array, empty: BoolArray, to: pa.DataType) -> pa.Array:
    """Return values of a fixed-width type from doubles' or integers' bits, null where `empty`."""
    mask = empty if empty.any() else None
    if pa.types.is_floating(to):
        return pa.array(bits.view(np.float64).astype(f"f{to.bit_width // 8}", copy=False), mask=mask)
    if pa.types.is_boolean(to):
        return pa.array(bits.astype(np.bool_), mask=mask)
    letter = "u" if pa.types.is_unsigned_integer(to) else "i"
    physical = bits.view(np.uint64) if letter == "u" else bits
    return pa.array(physical.astype(f"{letter}{to.bit_width // 8}", copy=False), mask=mask).view(to)


def array_of(values: npt.NDArray[Any], empty: BoolArray | None) -> pa.Array:
    """Return NumPy numbers as Arrow, null where `empty`; NaN stays NaN."""
    if empty is None or not empty.any():
        return pa.array(values)
    return pa.array(values, mask=empty)


def lists_of(rows: npt.NDArray[np.int32], width: int, column: pa.Array) -> pa.Array:
    """Return fixed-size lists of `column` at `rows` `(n * width,)`, -1 null; a list of nulls only is null."""
    empty = (rows.reshape(-1, width) < 0).all(axis=1)
    child = take_rows(column, rows)
    return pa.FixedSizeListArray.from_arrays(child, width, mask=pa.array(empty))


def take_rows(column: pa.Array, rows: npt.NDArray[np.int32]) -> pa.Array:
    """Return `column[rows]`, null where a row is -1."""
    missing = rows < 0
    return column.take(pa.array(rows, mask=missing if missing.any() else None))


def column_of(name: str, data: "pa.ChunkedArray | pa.Array", rows: int, order: Grouped) -> Column:
    """Check a column's length and join its chunks.

    Raises:
        SchemaError: it has not one value per row.
    """
    array = one_array(data)
    if len(array) != rows:
        raise SchemaError(
            f"column {name!r} has {len(array)} values for {rows} rows",
            hint="pass one value per row, in the rows' order",
            column=name,
        )
    return Column(name, array, order)
