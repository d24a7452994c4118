"""Row gathers over many mapped parts: compiled where numba is there, NumPy otherwise, bit for bit the same.

numba is imported at the first gather, never at import; set `FEATURESTORE_NO_NUMBA=1` to do without.
"""

import os
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
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


def permutation_of_keys(keys: npt.NDArray[np.uint32] | npt.NDArray[np.uint64]) -> Int64Array:
    """Order `0 … n-1` by random keys, the upper 22 bits of short ones and 48 of long ones, stable.

    Cost: O(n), radix passes.
    """
    kernels = compiled()
    if kernels is not None:
        ordered: Int64Array = (kernels.radix_order if keys.dtype == np.uint32 else kernels.radix_order_wide)(
            np.ascontiguousarray(keys)
        )
        return ordered
    shifts = (0, 16) if keys.dtype == np.uint32 else (16, 32, 48)
    if keys.dtype == np.uint32:
        keys = keys >> np.uint32(10)
    order = np.arange(keys.size)
    for shift in shifts:
        digit = (keys >> keys.dtype.type(shift)).astype(np.uint16)
        order = order[np.argsort(digit[order], kind="stable")]
    return order


def fill_blocks(
    blocks: Int64Array, *, block_rows: int, phase: int, start: int, length: int, out: Int64Array
) -> None:
    """Write the rows of blocks cut from a ring of `length` rows, from `phase` on, that begins at row `start`.

    Args:
        blocks: Numbers of whole blocks; what is left of `out` takes the rows behind the last whole block.
    """
    kernels = compiled()
    if kernels is not None:
        kernels.fill_blocks(blocks, block_rows, phase, start, length, out)
        return
    whole = blocks.size * block_rows
    out[:whole] = (blocks[:, None] * block_rows + np.arange(block_rows)).reshape(-1)
    out[whole:] = length // block_rows * block_rows + np.arange(out.size - whole)
    out += phase
    np.subtract(out, length, out=out, where=out >= length)
    out += start


def deal(
    fetch: Int64Array, keys: npt.NDArray[np.uint32], edges: Int64Array
) -> tuple[npt.NDArray[np.int32], Int64Array]:
    """Permute each stream's rows by its keys and deal the streams out in turn.

    Args:
        fetch: `(n,)` rows of all streams, one stream after the other.
        edges: `(streams + 1,)` where each stream begins; none is longer than one before it by position, and
            lengths differ by at most one.

    Returns:
        `(n,)` place in `fetch` of each delivered row, and the rows themselves.
    """
    kernels = compiled()
    if kernels is not None:
        dealt: tuple[npt.NDArray[np.int32], Int64Array] = kernels.deal(fetch, keys, edges)
        return dealt
    sizes = np.diff(edges)
    places = np.full((int(sizes.max(initial=0)), sizes.size), -1, np.int32)
    for stream, (start, stop) in enumerate(pairwise(edges.tolist())):
        places[: stop - start, stream] = permutation_of_keys(keys[start:stop]) + start
    flat = places.reshape(-1)
    flat = flat[flat >= 0]
    return flat, fetch[flat]


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
        valid: Byte masks, 1 = valid; a part without nulls has none.
    """

    def __init__(self, index: PartIndex, dtype: np.dtype[Any], width: int, name: str | None = None) -> None:
        self.index = index
        self.name = name
        self.dtype = dtype
        self.width = width
        self._blocks: list[AnyArray | None] = [None] * len(index)
        self._valid: list[UInt8Array | None] = [None] * len(index)
        self._addresses = np.zeros(len(index), np.int64)
        self._valid_addresses = np.zeros(len(index), np.int64)

    def put(self, part: int, block: AnyArray, valid: UInt8Array | None) -> None:
        """Set the values of a part: C-contiguous `(rows, width)`, and mask bytes of the same shape."""
        block = np.ascontiguousarray(block).reshape(-1, self.width)
        self._blocks[part] = block
        self._addresses[part] = block.ctypes.data if block.size else 0
        if valid is not None:
            valid = np.ascontiguousarray(valid).reshape(-1, self.width)
            self._valid[part] = valid
            self._valid_addresses[part] = valid.ctypes.data

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
        return bool(self._valid_addresses.any())

    def gather(
        self, rows: Int64Array, columns: Int64Array, out: AnyArray, at: int, fills: AnyArray | None
    ) -> None:
        """Write `out[:, at:at + len(columns)]` = the chosen columns of `rows`, cast to `out`'s type.

        Args:
            rows: Row numbers in range whose parts are open.
            fills: One value per column, of `out`'s type, in place of nulls; None leaves what is stored.

        Cost: one read of the rows' cache lines; about 10 GB/s per core from memory, whole rows.
        """
        if rows.size == 0:
            return
        kernels = compiled()
        if kernels is None or not castable(self.dtype, out.dtype):
            self._gather_numpy(rows, columns, out, at, fills)
            return
        stored = self.dtype
        if stored == out.dtype:
            # The same bits: one compiled loop per width serves all types.
            stored, out = bits(stored), out.view(bits(stored))
            fills = None if fills is None else fills.view(stored)
        where = self.addresses(rows)
        if columns.size == self.width and np.array_equal(columns, np.arange(self.width)):
            if stored == out.dtype:
                row_bytes = self.width * stored.itemsize
                target = out.ctypes.data + at * out.itemsize
                kernels.copy_row_bytes(where, row_bytes, target, out.strides[0])
            else:
                kernels.copy_rows(np.empty(0, stored), where, self.width, out, at)
        else:
            kernels.copy_columns(np.empty(0, stored), where, columns, out, at)
        if fills is not None and self.has_nulls:
            kernels.fill_rows(self._mask_addresses(kernels, rows), columns, fills, out, at)

    def _mask_addresses(self, kernels: ModuleType, rows: Int64Array) -> Int64Array:
        index = self.index
        where = np.empty(rows.size, np.int64)
        kernels.row_addresses(
            self._valid_addresses, index.starts, index.first_part, index.shift, rows, self.width, where
        )
        return where

    def addresses(self, rows: Int64Array) -> Int64Array:
        """Return the memory address of each row, for the compiled loops; the parts must be open."""
        kernels = compiled()
        assert kernels is not None, "addresses are for compiled loops"  # noqa: S101 - a fault of ours
        index = self.index
        out = np.empty(rows.size, np.int64)
        stride = self.width * self.dtype.itemsize
        kernels.row_addresses(self._addresses, index.starts, index.first_part, index.shift, rows, stride, out)
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
        everything = columns.size == self.width and np.array_equal(columns, np.arange(self.width))
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
