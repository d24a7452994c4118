"""Columns of a batch as the window kernels read them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.core.table_rows import plain_type
from featurestore.core.time import BoolArray, Int64Array
from featurestore.errors import SchemaError
from featurestore.temporal.rows import Int32Array, frozen
from featurestore.temporal.times import one_array

FLOAT: Final = 0
INT: Final = 1
UINT: Final = 2

Values = tuple[Int64Array, BoolArray, int]
NO_BOOL: BoolArray = frozen(np.zeros(0, np.bool_))


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a batch, in the batch's order.

    Attributes:
        name: Names it in errors.
        array: Its values.
        rows: How many there are; `"*"` has none.
    """

    name: str
    array: pa.Array
    rows: int

    def valid(self) -> BoolArray:
        """Return the validity per row; empty where nothing is null."""
        return NO_BOOL if self.array.null_count == 0 else frozen(valid_mask(self.array))

    def check(self, functions: Iterable[str]) -> None:
        """Check that the column's type has these functions.

        Raises:
            SchemaError: it has not.
        """
        wanted = set(functions)
        if wanted & {"sum", "mean", "std", "var"}:
            self.numbers()
        if wanted & {"min", "max"}:
            self.keys()
        if "n_distinct" in wanted:
            self.codes()

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
        return frozen(bits), self.valid(), kind

    def keys(self) -> tuple[Values, Int32Array | None]:
        """Return what min and max compare: the values' bits, or their ranks and a row that holds each.

        Raises:
            SchemaError: the type has no order.
        """
        if is_fixed(self.array.type):
            return self._values(), None
        codes, values = self._coded()
        plain = values.cast(plain_type(values.type))
        try:
            order = pc.sort_indices(plain)
        except (pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise SchemaError(
                f"column {self.name!r} is {self.array.type}: it has no order, so no min or max",
                hint="aggregate one of its parts, selected in the view's source query",
                column=self.name,
            ) from error
        ranks = np.empty(len(values) + 1, np.int64)
        ranks[order.to_numpy()] = np.arange(len(values))
        ranks[-1] = len(values)  # of a null
        ranked = frozen(ranks[codes])
        holders = np.zeros(len(values) + 1, np.int32)
        holders[ranked] = np.arange(len(ranked))
        return (ranked, self.valid(), INT), holders

    def codes(self) -> tuple[Int64Array, int]:
        """Return a dense code per row (-1: null) and their number; NaN is one value, -0.0 is 0.0.

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
        return frozen(codes), coded.dictionary


def valid_mask(array: pa.Array) -> BoolArray:
    """Return which values are not null, `(n,)`."""
    mask: BoolArray = np.asarray(array.is_valid())
    return mask


def is_fixed(kind: pa.DataType) -> bool:
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


def column_of(name: str, data: "pa.ChunkedArray | pa.Array", rows: int) -> pa.Array:
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
    return array
