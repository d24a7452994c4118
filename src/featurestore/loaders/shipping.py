"""What crosses the bus for a run of steps: one packed buffer, and how batches are made of it.

A unit holds the rows of some consecutive steps once each, in the order that reads best, and for every
delivered position the place of its row among them. Values travel as stored, or in the delivered type where
that is narrower; permutation, cast and null-filling happen on the device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from featurestore.core.time import Int64Array
from featurestore.loaders.batch import Batch
from featurestore.loaders.device import Array, Buffer, Device
from featurestore.loaders.fields import Matrix, Scalar
from featurestore.loaders.gather import AnyArray, StoredColumn, UInt8Array
from featurestore.loaders.host import HostGather, Piece, arranged, labels_of
from featurestore.loaders.steps import Places, StepRows
from featurestore.loaders.windows import WindowIndex

ALIGN: Final = 256
# Device libraries do little with wide unsigned integers; they travel as the next type that holds them.
_TRAVELS_AS: Final = {"uint16": "int32", "uint32": "int64"}


@dataclass(frozen=True, slots=True)
class Region:
    """One array of a unit: the values, or the mask, of some columns for every row.

    Attributes:
        dtype: NumPy name of the type that travels.
        mask: Whether this is the mask of the columns.
    """

    name: str
    column: StoredColumn
    columns: tuple[int, ...]
    dtype: str
    mask: bool = False

    @property
    def row_bytes(self) -> int:
        """Bytes per row."""
        return len(self.columns) * np.dtype(self.dtype).itemsize

    def fill(self, rows: Int64Array, out: UInt8Array) -> None:
        """Gather the rows into host bytes."""
        shaped = out.view(self.dtype).reshape(rows.size, len(self.columns))
        places = np.asarray(self.columns, np.int64)
        if self.mask:
            self.column.gather_mask(rows, places, shaped, 0)
        else:
            self.column.gather(rows, places, shaped, 0, None)


@dataclass(frozen=True, slots=True)
class Unit:
    """The rows of steps `[first, last)`, each once.

    Attributes:
        fetch: `(n,)` row numbers in the order that reads best.
        places: Place of each delivered row in `fetch`: `(positions,)`, with windows `(positions · L,)`.
        own: `(positions,)` place of each position's own row; the same as `places` without windows.
        bounds: `(steps + 1,)` first position of each step, then the number of positions.
        reals: Real rows of each step.
    """

    first: int
    last: int
    fetch: Int64Array
    places: Places
    own: Places
    bounds: tuple[int, ...]
    reals: tuple[int, ...]


class Shipment:
    """The regions of a loader's units, and the batches made of them."""

    def __init__(self, gather: HostGather) -> None:
        self.gather = gather
        self.regions: list[Region] = []
        self._constants: dict[str, Array] = {}
        fields = gather.fields
        for matrix in fields.matrices:
            for number, piece in enumerate(gather.pieces(matrix)):
                self._add_piece(f"{matrix.name}.{number}", matrix, piece)
        for scalar in (*fields.labels, fields.weight):
            if scalar is not None:
                column = gather.scalar_column(scalar)
                self._add(f"y.{scalar.name}", column, (scalar.column,), str(column.dtype))
        for name, column in gather.plain_columns().items():
            self._add(name, column, tuple(range(column.width)), str(column.dtype))
        self.row_bytes = sum(region.row_bytes for region in self.regions)

    def offsets(self, rows: int) -> dict[str, int]:
        """Give where each region of `rows` rows begins; the end is under `""`."""
        out, at = {}, 0
        for region in self.regions:
            out[region.name] = at
            at += -(-rows * region.row_bytes // ALIGN) * ALIGN
        out[""] = at
        return out

    def put_first(self, chosen: Sequence[Region]) -> None:
        """Let some regions come first in the packed buffer."""
        self.regions = [*chosen, *(region for region in self.regions if region not in chosen)]

    def fill(self, rows: Int64Array, out: UInt8Array, *, skip: int = 0) -> None:
        """Gather rows into a host buffer, region by region, but for the first `skip` regions."""
        self.gather.source.touch(rows)
        offsets = self.offsets(rows.size)
        for region in self.regions[skip:]:
            start = offsets[region.name]
            region.fill(rows, out[start : start + rows.size * region.row_bytes])

    def views(self, device: Device, buffer: Buffer, rows: int) -> dict[str, Array]:
        """See the regions of `rows` rows in device memory."""
        offsets = self.offsets(rows)
        return {
            region.name: device.view(buffer, offsets[region.name], region.dtype, (rows, len(region.columns)))
            for region in self.regions
        }

    def batch(
        self,
        device: Device,
        views: dict[str, Array],
        index: Array,
        own: Array,
        rows: Int64Array,
        real: int | None,
    ) -> Batch:
        """Make one batch on the device.

        Args:
            index: Places of the batch's rows in the views; with windows `(N · L,)`, and `own` the `(N,)`
                last of each.
            rows: `(N,)` row numbers, for what the host knows of windows.
            real: With padding, how many rows are real.
        """
        fields, windows = self.gather.fields, self.gather.windows
        count = rows.size
        shape: tuple[int, ...] = (count,)
        mask = None
        if windows is not None:
            shape = (count, windows.window.lookback)
            mask = device.upload(windows.mask(rows).view(np.uint8))
        wide = BatchMaker(device, self, views, index, shape, mask)
        single = BatchMaker(device, self, views, own, (count,), None)
        weight = None if fields.weight is None else single.scalar(fields.weight)
        valid = None
        if real is not None:
            valid = device.cast(device.upload((np.arange(count) < real).astype(np.uint8)), "bool")
            weight = (
                None if weight is None else device.where(valid, weight, self.zero(device, type_name(weight)))
            )
        masks = {m.name: wide.mask_of(m) for m in fields.matrices} if fields.nulls == "mask" else None
        return Batch(
            x=arranged(fields, {m.name: wide.matrix(m) for m in fields.matrices}),
            y=labels_of({s.name: single.scalar(s) for s in fields.labels}),
            w=weight,
            mask=None if masks is None else arranged(fields, masks),
            codes={name: wide.plain(f"codes.{name}") for name in fields.codes},
            extras={name: wide.plain(f"extras.{name}") for name in fields.extras},
            valid=valid,
            time=single.plain("time") if fields.time else None,
            entity=single.plain("entity") if fields.entity else None,
            window_mask=None if mask is None else device.cast(mask, "bool"),
            delta_ns=None if windows is None else device.upload(self.gather.ages(windows, rows)),
        )

    def constant(self, device: Device, name: str, values: AnyArray) -> Array:
        """Upload a constant once."""
        if name not in self._constants:
            self._constants[name] = device.upload(values)
        return self._constants[name]

    def zero(self, device: Device, dtype: str) -> Array:
        """Return a zero of a type."""
        return device.cast(self.constant(device, "zero", np.zeros(1, np.float32)), dtype)

    def _add(self, name: str, column: StoredColumn, columns: tuple[int, ...], dtype: str) -> None:
        self.regions.append(Region(name, column, columns, _TRAVELS_AS.get(dtype, dtype)))

    def _add_piece(self, name: str, matrix: Matrix, piece: Piece) -> None:
        stored, wanted = piece.column.dtype, np.dtype(matrix.dtype)
        columns = tuple(piece.columns.tolist())
        self._add(name, piece.column, columns, str(wanted if wanted.itemsize < stored.itemsize else stored))
        if piece.nullable and (piece.fills is not None or self.gather.fields.nulls == "mask"):
            self.regions.append(Region(f"{name}.mask", piece.column, columns, "uint8", mask=True))


class BatchMaker:
    """Builds one batch's arrays from the views of a unit."""

    def __init__(
        self,
        device: Device,
        shipment: Shipment,
        views: dict[str, Array],
        index: Array,
        shape: tuple[int, ...],
        window: Array | None,
    ) -> None:
        self.device, self.shipment, self.views = device, shipment, views
        self.index, self.shape, self.window = index, shape, window

    def matrix(self, matrix: Matrix) -> Array:
        """Take, cast, fill and join the pieces of a matrix."""
        device = self.device
        parts = []
        for number, piece in enumerate(self.shipment.gather.pieces(matrix)):
            name = f"{matrix.name}.{number}"
            values = device.cast(device.take(self.views[name], self.index), matrix.dtype)
            if piece.fills is not None and f"{name}.mask" in self.views:
                mask = device.take(self.views[f"{name}.mask"], self.index)
                fills = self.shipment.constant(device, f"{name}.fills", piece.fills)
                values = device.where(mask, values, fills)
            parts.append(values)
        return self._shaped(device.concat(parts) if len(parts) > 1 else parts[0])

    def mask_of(self, matrix: Matrix) -> Array:
        """Take and join the masks of a matrix; ones where the version has no nulls."""
        device, rows = self.device, math.prod(self.shape)
        parts = []
        for number, piece in enumerate(self.shipment.gather.pieces(matrix)):
            name = f"{matrix.name}.{number}.mask"
            if name in self.views:
                parts.append(device.take(self.views[name], self.index))
            else:
                parts.append(device.upload(np.ones((rows, piece.columns.size), np.uint8)))
        return device.cast(self._shaped(device.concat(parts) if len(parts) > 1 else parts[0]), "bool")

    def scalar(self, scalar: Scalar) -> Array:
        """Take a label or weight."""
        values = self.plain(f"y.{scalar.name}")
        return values if scalar.dtype is None else self.device.cast(values, scalar.dtype)

    def plain(self, name: str) -> Array:
        """Take a column as it is."""
        values = self.device.take(self.views[name], self.index)
        flat = values.shape[-1] == 1
        return self._shaped(self.device.reshape(values, (values.shape[0],)) if flat else values, flat=flat)

    def _shaped(self, values: Array, *, flat: bool = False) -> Array:
        """Give windows their axis, and zeros on padding."""
        if self.window is None:
            return values
        device = self.device
        shape = self.shape if flat else (*self.shape, values.shape[-1])
        mask = self.window if flat else device.reshape(self.window, (*self.shape, 1))
        return device.where(
            mask, device.reshape(values, shape), self.shipment.zero(device, type_name(values))
        )


def unit_of(walk: StepRows, epoch: int, first: int, last: int, windows: WindowIndex | None) -> Unit:
    """Collect the rows of steps `[first, last)` in reading order, with the place of each position.

    Cost: O(rows of the chunks touched); with windows, a sort of all window rows.
    """
    plan = walk.plan
    reals = tuple(plan.rows_in(step) for step in range(first, last))
    sizes = [plan.batch if plan.drop_last == "pad" else real for real in reals]
    bounds = (0, *np.cumsum(sizes).tolist())
    fetch, own = walk.span(epoch, first, last)
    if windows is None:
        return Unit(first, last, fetch, own, own, bounds, reals)
    wanted = windows.rows_of(fetch[own])
    fetch, inverse = np.unique(wanted, return_inverse=True)
    places = inverse.astype(np.int32).reshape(wanted.shape)
    return Unit(first, last, fetch, places.reshape(-1), np.ascontiguousarray(places[:, -1]), bounds, reals)


def type_name(array: Array) -> str:
    """Give the NumPy name of an array's type, whatever the library."""
    return str(array.dtype).rsplit(".", maxsplit=1)[-1]
