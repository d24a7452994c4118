"""Row gathers over many mapped parts: compiled where numba is there, NumPy otherwise, bit for bit the same.

numba is imported at the first gather, never at import; set `FEATURESTORE_NO_NUMBA=1` to do without.
"""

import os
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.core.time import Int64Array

AnyArray = npt.NDArray[Any]
UInt8Array = npt.NDArray[np.uint8]


@cache
def compiled() -> ModuleType | None:
    """Return the compiled kernels, or None where numba is not installed."""
    if os.environ.get("FEATURESTORE_NO_NUMBA"):
        return None
    try:
        from featurestore.loaders import kernels  # noqa: PLC0415 - numba takes most of a second to import
    except ImportError:
        return None
    return kernels


@cache
def bits(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Give the unsigned integer type of the same width."""
    return np.dtype(f"u{dtype.itemsize}")


def castable(stored: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Say whether a compiled loop converts between the types (it knows no half precision)."""
    return stored == wanted or "float16" not in {stored.name, wanted.name}


class PartIndex:
    """Where a row number lies: which part, and where in it.

    Attributes:
        starts: `(parts + 1,)` first row of each part, then the number of rows.
    """

    def __init__(self, part_rows: Sequence[int]) -> None:
        self.starts: Int64Array = np.concatenate([[0], np.cumsum(part_rows, dtype=np.int64)]).astype(np.int64)
        self.rows = int(self.starts[-1])
        # A table of about four entries per part finds a row's part without a binary search.
        self.shift = max(0, (self.rows // max(1, 4 * len(part_rows))).bit_length() - 1)
        firsts = np.arange((self.rows >> self.shift) + 1, dtype=np.int64) << self.shift
        self.first_part: Int64Array = np.searchsorted(self.starts, firsts, side="right").astype(np.int64) - 1

    def __len__(self) -> int:
        return self.starts.size - 1

    def parts_of(self, rows: Int64Array) -> Int64Array:
        """Give each row's part."""
        if len(self) == 1:
            return np.zeros(rows.size, np.int64)
        return np.searchsorted(self.starts, rows, side="right").astype(np.int64) - 1


class StoredColumn:
    """One stored column, or pack of columns, of a dataset: a `(rows, width)` block for each part.

    Attributes:
        dtype: Of the stored values.
        width: Values per row.
        name: The stored column; None where the values are computed from others.
        whole: `0 … width-1`: give it to `gather` for all columns.
        valid: Byte masks, 1 = valid; a part without nulls has none.
    """

    def __init__(self, index: PartIndex, dtype: np.dtype[Any], width: int, name: str | None = None) -> None:
        self.index = index
        self.name = name
        self.dtype = dtype
        self.width = width
        self.whole: Int64Array = np.arange(width)
        self._blocks: list[AnyArray | None] = [None] * len(index)
        self._valid: list[UInt8Array | None] = [None] * len(index)
        self._addresses = np.zeros(len(index), np.int64)
        self._valid_addresses = np.zeros(len(index), np.int64)
        self._masked = False

    def put(self, part: int, block: AnyArray, valid: UInt8Array | None) -> None:
        """Set the values of a part: C-contiguous `(rows, width)`, and mask bytes of the same shape."""
        block = np.ascontiguousarray(block).reshape(-1, self.width)
        self._blocks[part] = block
        self._addresses[part] = block.ctypes.data if block.size else 0
        if valid is not None:
            valid = np.ascontiguousarray(valid).reshape(-1, self.width)
            self._valid[part] = valid
            self._valid_addresses[part] = valid.ctypes.data
            self._masked = True

    def block(self, part: int) -> AnyArray:
        """Return a part's `(rows, width)` values; the part must be open."""
        block = self._blocks[part]
        assert block is not None, f"part {part} is not open"  # noqa: S101 - a fault of ours, not of the data
        return block

    def valid(self, part: int) -> UInt8Array | None:
        """Return a part's mask; None where everything in it is valid."""
        return self._valid[part]

    @property
    def has_nulls(self) -> bool:
        """Whether any part opened so far has a mask."""
        return self._masked

    def gather(
        self, rows: Int64Array, columns: Int64Array, out: AnyArray, at: int, fills: AnyArray | None
    ) -> None:
        """Write `out[:, at:at + len(columns)]` = the chosen columns of `rows`, cast to `out`'s type.

        Args:
            rows: Row numbers in range whose parts are open.
            fills: One value per column, of `out`'s type, in place of nulls; None leaves what is stored.

        Cost: one read of the rows' cache lines, asked for ahead of the copy.
        """
        if rows.size == 0:
            return
        kernels = compiled()
        if kernels is None or not castable(self.dtype, out.dtype):
            self._gather_numpy(rows, columns, out, at, fills)
            return
        whole, same = self.is_whole(columns), self.dtype == out.dtype
        if same:
            # The same bits: one compiled loop per width serves all types.
            alike = bits(self.dtype)
            out, fills = out.view(alike), None if fills is None else fills.view(alike)
        like = np.empty(0, out.dtype if same else self.dtype)
        if not whole:
            kernels.copy_columns(like, self.addresses(rows), columns, out, at)
        elif same:
            target = out.ctypes.data + at * like.itemsize
            kernels.gather_bytes(*self.parts, rows, self.width * like.itemsize, target, out.strides[0])
        else:
            kernels.copy_rows(like, self.addresses(rows), self.width, out, at)
        if fills is not None and self.has_nulls:
            kernels.fill_rows(self._mask_addresses(kernels, rows), columns, fills, out, at)

    @property
    def parts(self) -> tuple[Int64Array, Int64Array, Int64Array, int]:
        """Where each part's values begin, and how a row number finds its part, for the compiled loops."""
        return self._addresses, self.index.starts, self.index.first_part, self.index.shift

    def columns(self, chosen: Sequence[int]) -> Int64Array:
        """Return columns as `gather` takes them; `whole` itself where they are all, in their own order."""
        columns = np.asarray(chosen, np.int64)
        return self.whole if self.is_whole(columns) else columns

    def is_whole(self, columns: Int64Array) -> bool:
        """Say whether these are all columns in their own order."""
        return columns is self.whole or (columns.size == self.width and bool((columns == self.whole).all()))

    def _mask_addresses(self, kernels: ModuleType, rows: Int64Array) -> Int64Array:
        where = np.empty(rows.size, np.int64)
        kernels.row_addresses(self._valid_addresses, *self.parts[1:], rows, self.width, where)
        return where

    def addresses(self, rows: Int64Array) -> Int64Array:
        """Return the memory address of each row, for the compiled loops; the parts must be open."""
        kernels = compiled()
        assert kernels is not None, "addresses are for compiled loops"  # noqa: S101 - a fault of ours
        out = np.empty(rows.size, np.int64)
        kernels.row_addresses(*self.parts, rows, self.width * self.dtype.itemsize, out)
        return out

    def gather_mask(self, rows: Int64Array, columns: Int64Array, out: UInt8Array, at: int) -> None:
        """Write 1 where the value is valid and 0 where it is null into `out[:, at:at + len(columns)]`."""
        kernels = compiled()
        if not self.has_nulls:
            out[:, at : at + columns.size] = 1
        elif kernels is not None:
            kernels.mask_rows(self._mask_addresses(kernels, rows), columns, out, at)
        else:
            for part, places, local in self._by_part(rows):
                valid = self._valid[part]
                out[places, at : at + columns.size] = 1 if valid is None else valid[local][:, columns]

    def _gather_numpy(
        self, rows: Int64Array, columns: Int64Array, out: AnyArray, at: int, fills: AnyArray | None
    ) -> None:
        everything = self.is_whole(columns)
        for part, places, local in self._by_part(rows):
            values = self.block(part)[local]
            values = values if everything else values[:, columns]
            valid = self._valid[part]
            if fills is not None and valid is not None:
                values = np.where(valid[local][:, columns] != 0, values.astype(out.dtype), fills)
            out[places, at : at + columns.size] = values

    def _by_part(self, rows: Int64Array) -> list[tuple[int, Any, Int64Array]]:
        """Split rows by part: (part, their places in `rows`, their places in the part)."""
        parts = self.index.parts_of(rows)
        if (parts == parts[:1]).all():
            return [(int(parts[0]), slice(None), rows - self.index.starts[parts[0]])] if rows.size else []
        order = np.argsort(parts, kind="stable")
        edges = np.flatnonzero(np.diff(parts[order])) + 1
        return [
            (int(parts[group[0]]), group, rows[group] - self.index.starts[parts[group[0]]])
            for group in np.split(order, edges)
        ]
