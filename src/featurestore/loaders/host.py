"""The CPU tier: batches gathered straight from the memory-mapped shards, each row read once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore.core.time import Int64Array
from featurestore.errors import SchemaError
from featurestore.loaders.batch import Batch
from featurestore.loaders.buffers import BufferPool
from featurestore.loaders.entities import EntityIndex
from featurestore.loaders.fields import Fields, Matrix, Scalar
from featurestore.loaders.gather import AnyArray, StoredColumn
from featurestore.loaders.prepare import Prepared
from featurestore.loaders.source import TIME, DatasetRows
from featurestore.loaders.vocabulary import codes_column
from featurestore.loaders.windows import Runs, WindowIndex
from featurestore.storage.shards import ShardView


@dataclass(frozen=True, slots=True)
class Piece:
    """A segment of a matrix with the column it comes from.

    Attributes:
        fills: One per column, of the delivered type; None where what is stored stays.
        nullable: Whether any shard of the version has nulls in the pack.
    """

    column: StoredColumn
    columns: Int64Array
    at: int
    fills: AnyArray | None
    nullable: bool


class HostGather:
    """Gathers rows into batches of NumPy arrays. Safe for threads.

    Args:
        vocabularies: Of each string column that is delivered.
        entities: Where entity codes are delivered.
    """

    def __init__(
        self,
        source: DatasetRows,
        fields: Fields,
        *,
        vocabularies: Mapping[str, Sequence[str]],
        entities: EntityIndex | None,
        windows: WindowIndex | None,
        pool: BufferPool,
    ) -> None:
        self.source = source
        self.fields = fields
        self.pool = pool
        self.windows = windows
        self._pieces = {matrix.name: self._pieces_of(matrix) for matrix in fields.matrices}
        scalars = [s for s in (*fields.labels, fields.weight) if s is not None]
        self._scalars = {s.name: self._scalar_column(s) for s in scalars}
        self._scalar_places = {s.name: self._scalars[s.name].columns([s.column]) for s in scalars}
        self._codes = {name: codes_column(source, name, vocabularies[name]) for name in fields.codes}
        self._extras = {name: source.column(name) for name in fields.extras}
        self._time = source.column(TIME) if fields.time else None
        self._entity = None if entities is None or not fields.entity else entity_column(source, entities)

    def batch(self, rows: Int64Array, real: int | None = None) -> Batch:
        """Gather one batch.

        Args:
            rows: `(N,)` row numbers.
            real: With padding, how many of them (the first ones) are real.

        Raises:
            CorruptDataError: a shard that holds one of the rows is damaged.
        """
        runs = None
        if self.windows is None:
            self.source.touch(rows)
        else:
            self.windows.touch(rows)
            runs = self.windows.runs(rows)
        x, mask = self._features(rows, runs)
        weight = self._scalar(self.fields.weight, rows) if self.fields.weight is not None else None
        valid = None
        if real is not None:
            valid = np.arange(rows.size) < real
            if weight is not None:
                weight[real:] = 0
        return Batch(
            x=x,
            y=self._labels(rows),
            w=weight,
            mask=mask,
            codes={name: self._feature(column, rows) for name, column in self._codes.items()},
            extras={name: self._feature(column, rows) for name, column in self._extras.items()},
            valid=valid,
            time=None if self._time is None else self._plain(self._time, rows),
            entity=None if self._entity is None else self._plain(self._entity, rows),
            window_mask=None if self.windows is None else self.windows.mask(rows),
            delta_ns=None if self.windows is None else self.ages(self.windows, rows, runs),
        )

    def pieces(self, matrix: Matrix) -> list[Piece]:
        """Return a matrix's segments with their columns."""
        return self._pieces[matrix.name]

    def scalar_column(self, scalar: Scalar) -> StoredColumn:
        """Return the column of a label or weight."""
        return self._scalars[scalar.name]

    def plain_columns(self) -> dict[str, StoredColumn]:
        """Return all other columns that are delivered: `codes.…`, `extras.…`, `time`, `entity`."""
        out = {f"codes.{name}": column for name, column in self._codes.items()}
        out |= {f"extras.{name}": column for name, column in self._extras.items()}
        return out | {n: c for n, c in (("time", self._time), ("entity", self._entity)) if c is not None}

    def matrix(self, matrix: Matrix, rows: Int64Array, runs: Runs | None = None) -> AnyArray:
        """Gather one matrix `(N, F)`, or `(N, L, F)` with windows."""
        out = self.pool.empty(self._shape(rows, len(matrix.features)), np.dtype(matrix.dtype))
        for piece in self._pieces[matrix.name]:
            if self.windows is None:
                piece.column.gather(rows, piece.columns, out, piece.at, piece.fills)
            else:
                self.windows.gather(piece.column, rows, piece.columns, out, piece.at, piece.fills, runs=runs)
        return out

    def mask(self, matrix: Matrix, rows: Int64Array) -> AnyArray:
        """Gather a matrix's mask, shaped like it: True where valid, False on padding."""
        width = len(matrix.features)
        out = self.pool.empty(self._shape(rows, width), np.dtype(np.uint8))
        flat = rows if self.windows is None else self.windows.rows_of(rows).reshape(-1)
        for piece in self._pieces[matrix.name]:
            piece.column.gather_mask(flat, piece.columns, out.reshape(-1, width), piece.at)
        if self.windows is not None:
            out *= self.windows.mask(rows)[:, :, None]
        return out.view(np.bool_)

    def _shape(self, rows: Int64Array, width: int) -> tuple[int, ...]:
        if self.windows is None:
            return rows.size, width
        return rows.size, self.windows.window.lookback, width

    def _feature(self, column: StoredColumn, rows: Int64Array) -> AnyArray:
        """Gather a feature outside the matrices; in windows `(N, L, …)` with zeros on padding."""
        if self.windows is None:
            return self._extra(column, rows)
        values = self._extra(column, self.windows.rows_of(rows).reshape(-1))
        mask = self.windows.mask(rows)
        shaped = values.reshape(*mask.shape, *values.shape[1:])
        shaped[~mask] = 0
        return shaped

    def ages(self, windows: WindowIndex, rows: Int64Array, runs: Runs | None = None) -> AnyArray:
        """Return `(N, L)` ages of window rows at their anchor's time, ns; 0 on padding."""
        out = self.pool.empty((rows.size, windows.window.lookback), np.dtype(np.int64))
        windows.ages(self.source.column(TIME), rows, out, runs=runs)
        return out

    def _features(self, rows: Int64Array, runs: Runs | None) -> tuple[Any, Any]:
        fields = self.fields
        x = {m.name: self.matrix(m, rows, runs) for m in fields.matrices}
        mask = {m.name: self.mask(m, rows) for m in fields.matrices} if fields.nulls == "mask" else None
        return arranged(fields, x), None if mask is None else arranged(fields, mask)

    def _labels(self, rows: Int64Array) -> Any:
        values = {label.name: self._scalar(label, rows) for label in self.fields.labels}
        return labels_of(values)

    def _scalar(self, scalar: Scalar, rows: Int64Array) -> AnyArray:
        column = self._scalars[scalar.name]
        dtype = np.dtype(scalar.dtype) if scalar.dtype else column.dtype
        out = self.pool.empty((rows.size, 1), dtype)
        column.gather(rows, self._scalar_places[scalar.name], out, 0, None)
        return out.reshape(-1)

    def _plain(self, column: StoredColumn, rows: Int64Array) -> AnyArray:
        return self._extra(column, rows).reshape(-1)

    def _extra(self, column: StoredColumn, rows: Int64Array) -> AnyArray:
        out = self.pool.empty((rows.size, column.width), column.dtype)
        column.gather(rows, column.whole, out, 0, None)
        return out.reshape(-1) if column.width == 1 else out

    def _pieces_of(self, matrix: Matrix) -> list[Piece]:
        fills = fill_values(matrix)
        nullable_packs = {p.column: p.mask is not None for p in self.source.manifest.packs}
        pieces = []
        for segment in matrix.segments:
            column = self.source.column(segment.pack)
            kept = self.fields.nulls == "nan" and column.dtype.kind == "f"  # nulls are stored as NaN already
            chosen = fills[segment.at : segment.at + len(segment.columns)]
            columns = column.columns(segment.columns)
            nullable = nullable_packs.get(segment.pack, False)
            pieces.append(Piece(column, columns, segment.at, None if kept else chosen, nullable))
        return pieces

    def _scalar_column(self, scalar: Scalar) -> StoredColumn:
        return self.source.column(scalar.pack or scalar.name)


def fill_values(matrix: Matrix) -> AnyArray:
    """Return a matrix's fills in its own type.

    Raises:
        SchemaError: the type cannot hold a fill exactly enough to be meant (a fraction in an integer matrix).
    """
    wanted = np.asarray(matrix.fills, np.float64)
    dtype = np.dtype(matrix.dtype)
    if dtype.kind == "f":
        return wanted.astype(dtype)
    whole = np.isfinite(wanted) & (wanted == np.floor(wanted))
    if not whole.all():
        place = int(np.argmin(whole))
        name = matrix.features[place]
        raise SchemaError(
            f"column {name!r} comes as {dtype} and cannot be filled with {matrix.fills[place]}",
            hint='give a whole number, or dtype="float32"',
            column=name,
        )
    return wanted.astype(dtype)


def arranged(fields: Fields, matrices: Mapping[str, Any]) -> Any:
    """Put matrices into the shape of `Batch.x`."""
    if fields.layout == "columns":
        return {
            name: matrices[m.name][..., place]
            for m in fields.matrices
            for place, name in enumerate(m.features)
        }
    if not matrices:
        return None
    return matrices["x"] if len(matrices) == 1 else dict(matrices)


def labels_of(values: Mapping[str, Any]) -> Any:
    """Put labels into the shape of `Batch.y`."""
    if not values:
        return None
    return next(iter(values.values())) if len(values) == 1 else dict(values)


def entity_column(source: DatasetRows, entities: EntityIndex) -> StoredColumn:
    """Add the column of entity codes that hold for the whole version."""

    def encode(part: int, view: ShardView) -> AnyArray:
        return entities.codes_of(part, view.entity_codes)

    return source.derive("\0entity", np.dtype(np.int32), 1, encode)


def host_gather(prepared: Prepared, pool: BufferPool) -> HostGather:
    """Return the gather that every tier and adapter builds its batches with."""
    return HostGather(
        prepared.source,
        prepared.fields,
        vocabularies=prepared.vocabularies,
        entities=prepared.entities,
        windows=prepared.windows,
        pool=pool,
    )
