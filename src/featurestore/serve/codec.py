"""Rows as bytes: fixed-width records that decode for many keys at once, and a heap for the rest.

A stored value is one key's rows: `header | n records | heap`. A record holds event, known, sequence,
arrival (int64 each), a validity bitmap, the lengths of its variable cells, and the fixed cells packed by
type, so that the records of many keys, joined, are one NumPy structured array. The heap holds the variable
cells of the records in order: strings as they are, nested types as Arrow messages of one row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.core.canonical import digest_json
from featurestore.core.table_rows import bitmap_of, decoded_type, plain_type
from featurestore.core.time import INT64_MIN, Int64Array
from featurestore.errors import CorruptDataError, SchemaError

_FORMAT: Final = 3  # of records and values; tables of another one are refused when they are opened
HEADER: Final = np.dtype([("codec", "<u4"), ("rows", "<u4")])
HEADER_BYTES: Final = HEADER.itemsize
CLOCKS: Final = ("event", "known", "sequence", "arrival")
_VERSION: Final = np.dtype([("codec", "<u4"), ("rows", "<u4"), *((name, "<i8") for name in CLOCKS)])
Versions = tuple[Int64Array, Int64Array, Int64Array]

Records = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Pack:
    """Cells of one Arrow type, side by side in a record.

    Attributes:
        field: Its name in the record.
        dtype: The NumPy type of one cell; opaque types are bytes.
        columns: Positions in the schema, in cell order.
    """

    field: str
    type: pa.DataType
    dtype: np.dtype[np.generic]
    columns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """`n` rows of one view.

    Attributes:
        records: `(n,)` structured array of the codec's record type.
        heap: Each record's variable cells, joined; `None` where the codec has none.
    """

    records: Records
    heap: pa.Array | None

    def __len__(self) -> int:
        return len(self.records)

    def take(self, positions: Int64Array) -> "Block":
        """Return the rows at positions, in that order."""
        heap = None if self.heap is None else self.heap.take(pa.array(positions))
        return Block(self.records[positions], heap)

    def clock(self, name: str) -> Int64Array:
        """Return event, known, sequence or arrival; `(n,)` int64, contiguous."""
        return np.ascontiguousarray(self.records[name])


@dataclass(frozen=True, slots=True)
class Stored:
    """What a store returned for `k` keys, decoded.

    Attributes:
        block: The rows of all keys, key after key, each key's in (event, known, sequence, arrival) order.
        counts: `(k,)` rows of each key.
    """

    block: Block
    counts: Int64Array

    def codes(self) -> npt.NDArray[np.int32]:
        """Return each row's key, numbered in the order they were asked for."""
        return np.repeat(np.arange(self.counts.size, dtype=np.int32), self.counts)


class RowCodec:
    """Encodes rows of one schema.

    Attributes:
        schema: The stored columns.
        record: The NumPy type of a record.
        fingerprint: Stands for the schema and this layout; 32 hex digits.
    """

    def __init__(self, schema: pa.Schema) -> None:
        """Lay out records for a schema."""
        self.schema = schema
        self.packs, self.variable = _layout(schema)
        self.mask_bytes = (len(schema) + 7) // 8
        fields: list[tuple[str, object] | tuple[str, object, tuple[int, ...]]] = [
            (name, np.dtype("<i8")) for name in CLOCKS
        ]
        fields.append(("mask", np.dtype("u1"), (self.mask_bytes,)))
        if self.variable:
            fields.append(("lengths", np.dtype("<u4"), (len(self.variable),)))
        fields += [(p.field, p.dtype, (len(p.columns),)) for p in self.packs]
        self.record: np.dtype[np.void] = np.dtype(fields)
        self.stride = self.record.itemsize
        self.fingerprint = digest_json({"format": _FORMAT, "schema": [[f.name, str(f.type)] for f in schema]})
        self.tag = int(self.fingerprint[:8], 16)
        self._whole = np.dtype([("head", HEADER), ("row", self.record)])
        self.places = {c: (pack, at) for pack in self.packs for at, c in enumerate(pack.columns)}

    def encode(
        self,
        event_ns: Int64Array,
        known_ns: Int64Array,
        sequence: Int64Array,
        columns: Sequence[pa.Array],
    ) -> Block:
        """Encode rows; arrival is their position."""
        rows = len(event_ns)
        records: Records = np.zeros(rows, self.record)
        records["event"], records["known"], records["sequence"] = event_ns, known_ns, sequence
        records["arrival"] = np.arange(rows)
        valid = np.zeros((rows, self.mask_bytes * 8), np.uint8)
        for at, column in enumerate(columns):
            valid[:, at] = 1 if column.null_count == 0 else np.asarray(column.is_valid())
        records["mask"] = np.packbits(valid, axis=1, bitorder="little")
        for pack in self.packs:
            for cell, at in enumerate(pack.columns):
                records[pack.field][:, cell] = fixed_values(columns[at], pack.dtype)
        if not self.variable:
            return Block(records, None)
        heap, lengths = _heap([columns[at] for at in self.variable], rows)
        records["lengths"] = lengths
        return Block(records, heap)

    def lone_values(self, block: Block) -> list[bytes]:
        """Write one value for each row, as for keys that hold it alone."""
        whole = np.empty(len(block), self._whole)
        whole["head"] = np.array((self.tag, 1), HEADER)
        whole["row"] = block.records
        raw, size = whole.tobytes(), self._whole.itemsize
        lone = [raw[at : at + size] for at in range(0, len(raw), size)]
        if block.heap is None:
            return lone
        heap, ends = _heap_bytes(block.heap)
        cuts = ends.tolist()
        return [value + heap[a:b] for value, a, b in zip(lone, cuts, cuts[1:], strict=False)]

    def versions(self, values: Sequence[bytes | None]) -> Versions | None:
        """Read event, known and sequence of keys that hold at most one row each.

        A key that holds none is earlier than any; `None` where one holds several rows.

        Raises:
            CorruptDataError: a value is not one that this codec wrote.
        """
        none = self._no_version
        heads = b"".join([none if v is None else v[: _VERSION.itemsize] for v in values])
        if len(heads) != len(values) * _VERSION.itemsize:
            raise self._corrupt()
        found = np.frombuffer(heads, _VERSION)
        if (found["codec"] != self.tag).any():
            raise self._corrupt()
        if (found["rows"] != 1).any():
            return None
        return found["event"], found["known"], found["sequence"]

    def values(self, block: Block, counts: Int64Array) -> list[bytes | None]:
        """Write each key's value; a key without rows has none."""
        headers = np.zeros(counts.size, HEADER)
        headers["codec"], headers["rows"] = self.tag, counts
        head = headers.tobytes()
        body = block.records.tobytes()
        ends = np.cumsum(counts) * self.stride
        starts = (ends - counts * self.stride).tolist()
        empty = (counts == 0).tolist()
        size = HEADER_BYTES
        if block.heap is None:
            return [
                None if gone else head[at * size : at * size + size] + body[start:end]
                for at, (start, end, gone) in enumerate(zip(starts, ends.tolist(), empty, strict=True))
            ]
        heap, heap_ends = _heap_bytes(block.heap)
        upto = heap_ends[np.cumsum(counts)]
        first = heap_ends[np.cumsum(counts) - counts]
        return [
            None if gone else head[at * size : at * size + size] + body[start:end] + heap[h0:h1]
            for at, (start, end, h0, h1, gone) in enumerate(
                zip(starts, ends.tolist(), first.tolist(), upto.tolist(), empty, strict=True)
            )
        ]

    def decode(self, values: Sequence[bytes | None]) -> Stored:
        """Read values back, one or none per key.

        Raises:
            CorruptDataError: a value is not one that this codec wrote.
        """
        none = self._absent
        heads = b"".join([none if v is None else v[:HEADER_BYTES] for v in values])
        if len(heads) != len(values) * HEADER_BYTES:
            raise self._corrupt()
        headers = np.frombuffer(heads, HEADER)
        if (headers["codec"] != self.tag).any():
            raise self._corrupt()
        counts = headers["rows"].astype(np.int64)
        stride = self.stride
        if not self.variable:
            body = b"".join([v[HEADER_BYTES:] for v in values if v is not None])
            heap = None
        else:
            cuts = (HEADER_BYTES + counts * stride).tolist()
            pairs = [(v, cut) for v, cut in zip(values, cuts, strict=True) if v is not None]
            body = b"".join([v[HEADER_BYTES:cut] for v, cut in pairs])
            heap = b"".join([v[cut:] for v, cut in pairs])
        if len(body) != int(counts.sum()) * stride:
            raise self._corrupt()
        records = np.frombuffer(body, self.record)
        return Stored(Block(records, self._heap_array(records, heap)), counts)

    def table(self, block: Block, names: Sequence[str] | None = None) -> pa.Table:
        """Decode columns, all or those named, in that order."""
        names = self.schema.names if names is None else names
        cells = self._cells(block) if self.variable else []
        arrays = [self._column(block, self.schema.get_field_index(n), cells) for n in names]
        if not arrays:
            return pa.table({"_": pa.nulls(len(block))})
        return pa.Table.from_arrays(arrays, schema=pa.schema([self.schema.field(n) for n in names]))

    def valid(self, block: Block, columns: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Return which cells hold a value; `(n, columns)`."""
        bits = np.unpackbits(block.records["mask"], axis=1, bitorder="little")
        return bits[:, columns].astype(np.bool_)

    def _column(self, block: Block, at: int, cells: Sequence[pa.Array]) -> pa.Array:
        field = self.schema.field(at)
        mask = block.records["mask"][:, at // 8] >> np.uint8(at % 8) & np.uint8(1)
        valid = mask.astype(np.bool_)
        if at in self.places:
            pack, cell = self.places[at]
            return fixed_array(field.type, block.records[pack.field][:, cell], valid)
        return _variable_array(field.type, cells[self.variable.index(at)], valid)

    def _cells(self, block: Block) -> list[pa.Array]:
        """Cut the heap into its cells, one array per variable column."""
        if block.heap is None:
            raise self._corrupt()
        data, _ = _heap_buffer(block.heap)
        width = len(self.variable)
        ends = np.zeros(len(block) * width + 1, np.int64)
        np.cumsum(block.records["lengths"].astype(np.int64).ravel(), out=ends[1:])
        if ends[-1] != len(data):
            raise self._corrupt()
        whole = pa.Array.from_buffers(
            pa.large_binary(), ends.size - 1, [None, pa.py_buffer(ends), pa.py_buffer(data)]
        )
        if width == 1:
            return [whole]
        return [whole.take(pa.array(np.arange(c, ends.size - 1, width))) for c in range(width)]

    def _heap_array(self, records: Records, heap: bytes | None) -> pa.Array | None:
        if heap is None:
            return None
        ends = np.zeros(len(records) + 1, np.int64)
        np.cumsum(records["lengths"].astype(np.int64).sum(axis=1), out=ends[1:])
        if ends[-1] != len(heap):
            raise self._corrupt()
        return pa.Array.from_buffers(
            pa.large_binary(), len(records), [None, pa.py_buffer(ends), pa.py_buffer(heap)]
        )

    @cached_property
    def _no_version(self) -> bytes:
        version = np.zeros(1, _VERSION)
        version["codec"], version["rows"] = self.tag, 1
        for name in CLOCKS:
            version[name] = INT64_MIN
        return version.tobytes()

    @cached_property
    def _absent(self) -> bytes:
        header = np.zeros(1, HEADER)
        header["codec"] = self.tag
        return header.tobytes()

    def _corrupt(self) -> CorruptDataError:
        return CorruptDataError(
            f"a stored row does not fit the layout of columns {', '.join(self.schema.names)}",
            hint="the online store was written under other column types, or by another release; erase it and "
            "write the view again",
        )


def concat_blocks(blocks: Sequence[Block]) -> Block:
    """Join blocks of one codec."""
    heaps = [b.heap for b in blocks if b.heap is not None]
    heap = pa.concat_arrays(heaps) if heaps else None
    return Block(np.concatenate([b.records for b in blocks]), heap)


def _layout(schema: pa.Schema) -> tuple[tuple[Pack, ...], tuple[int, ...]]:
    groups: dict[str, list[int]] = {}
    variable: list[int] = []
    for at, field in enumerate(schema):
        if fixed_dtype(field.type) is None:
            variable.append(at)
        else:
            groups.setdefault(str(field.type), []).append(at)
    packs = []
    for number, columns in enumerate(groups.values()):
        kind = schema.field(columns[0]).type
        dtype = fixed_dtype(kind)
        if dtype is not None:
            packs.append(Pack(f"p{number}", kind, dtype, tuple(columns)))
    return tuple(packs), tuple(variable)


def fixed_dtype(kind: pa.DataType) -> np.dtype[np.generic] | None:
    """Return the NumPy type of a cell, or `None` for a type of no fixed width."""
    if pa.types.is_null(kind) or pa.types.is_boolean(kind):
        return np.dtype("u1")
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        number: np.dtype[np.generic] = np.dtype(kind.to_pandas_dtype()).newbyteorder("<")
        return number
    if pa.types.is_nested(kind) or pa.types.is_dictionary(kind) or isinstance(kind, pa.BaseExtensionType):
        return None
    try:
        bits = kind.bit_width
    except ValueError:
        return None
    if pa.types.is_temporal(kind) and bits in {32, 64}:
        return np.dtype("<i4") if bits == 32 else np.dtype("<i8")
    return np.dtype(f"V{bits // 8}") if bits and bits % 8 == 0 else None


def fixed_values(column: pa.Array, dtype: np.dtype[np.generic]) -> npt.NDArray[np.generic]:
    """Return the cells as NumPy values, zero under a null so that equal rows are equal bytes."""
    if pa.types.is_null(column.type):
        return np.zeros(len(column), dtype)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    data = column.buffers()[1]
    if data is None or len(column) == 0:
        return np.zeros(len(column), dtype)
    values = np.frombuffer(data, dtype, len(column), column.offset * dtype.itemsize)
    if column.null_count:
        values = values.copy()
        values[np.asarray(column.is_null())] = np.zeros((), dtype)
    return values


def fixed_array(kind: pa.DataType, cells: npt.NDArray[np.generic], valid: npt.NDArray[np.bool_]) -> pa.Array:
    """Return the cells of a fixed-width type as an Arrow array, null where not valid."""
    if pa.types.is_null(kind):
        return pa.nulls(len(cells))
    if pa.types.is_boolean(kind):
        data = np.packbits(cells.astype(np.bool_), bitorder="little").tobytes()
    else:
        data = np.ascontiguousarray(cells).tobytes()
    bits = bitmap_of(valid)
    return pa.Array.from_buffers(kind, len(cells), [bits, pa.py_buffer(data)])


def _heap(columns: Sequence[pa.Array], rows: int) -> tuple[pa.Array, npt.NDArray[np.uint32]]:
    """Join the variable cells of each row; returns each row's bytes and `(rows, columns)` lengths."""
    cells = pa.concat_arrays([_cell_bytes(column) for column in columns])
    width = len(columns)
    order = np.arange(rows * width, dtype=np.int64).reshape(width, rows).T.ravel()
    data, ends = _heap_buffer(cells.take(pa.array(order)))
    lengths = np.diff(ends).reshape(rows, width).astype(np.uint32)
    heap = pa.Array.from_buffers(
        pa.large_binary(), rows, [None, pa.py_buffer(np.ascontiguousarray(ends[::width])), pa.py_buffer(data)]
    )
    return heap, lengths


def _cell_bytes(column: pa.Array) -> pa.Array:
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.large_string()).cast(pa.large_binary()).fill_null(b"")
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return column.cast(pa.large_binary()).fill_null(b"")
    if pa.types.is_dictionary(kind):
        return _cell_bytes(column.cast(kind.value_type))
    if isinstance(kind, pa.BaseExtensionType):
        raise SchemaError(f"a column of type {kind} cannot be stored online", type=str(kind))
    # A message holds no dictionaries. Rows are copied out, not sliced: a slice with an empty list in it is
    # written with the offsets of the whole column.
    there = column.cast(plain_type(kind)).drop_null().cast(_message_type(kind))
    messages = (
        pa.RecordBatch.from_arrays([there.take(pa.array([at]))], ["c"]).serialize().to_pybytes()
        for at in range(len(there))
    )
    return pa.array(
        [b"" if null else next(messages) for null in column.is_null().to_pylist()], pa.large_binary()
    )


def _message_type(kind: pa.DataType) -> pa.DataType:
    """Return the type in which a cell is written: with plain values where there are dictionaries or views."""
    return plain_type(decoded_type(kind))


def _variable_array(kind: pa.DataType, cells: pa.Array, valid: npt.NDArray[np.bool_]) -> pa.Array:
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if any(
        check(plain)
        for check in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_binary_view,
        )
    ):
        data, ends = _heap_buffer(cells)
        bits = bitmap_of(valid)
        large = pa.Array.from_buffers(
            pa.large_binary(),
            len(cells),
            [bits, pa.py_buffer(np.ascontiguousarray(ends)), pa.py_buffer(data)],
        )
        text = pa.types.is_string(plain) or pa.types.is_large_string(plain) or pa.types.is_string_view(plain)
        out = (large.cast(pa.large_string()) if text else large).cast(plain)
        return out.dictionary_encode().cast(kind) if plain is not kind else out
    if pa.types.is_dictionary(kind):
        return _variable_array(plain, cells, valid).dictionary_encode().cast(kind)
    written = _message_type(kind)
    schema = pa.schema([("c", written)])
    parts = [
        pa.nulls(1, written)
        if not there
        else pa.ipc.read_record_batch(pa.py_buffer(message), schema).column(0)
        for message, there in zip(cells.to_pylist(), valid.tolist(), strict=True)
    ]
    return pa.concat_arrays(parts).cast(kind) if parts else pa.array([], kind)


def _heap_buffer(cells: pa.Array) -> tuple[memoryview | bytes, Int64Array]:
    """Return the joined bytes of large_binary cells and `n + 1` ends that start at 0."""
    buffers = cells.buffers()
    if len(cells) == 0 or buffers[1] is None:
        return b"", np.zeros(len(cells) + 1, np.int64)
    ends = np.frombuffer(buffers[1], np.int64, len(cells) + 1, cells.offset * 8)
    start, stop = int(ends[0]), int(ends[-1])
    data = memoryview(b"") if buffers[2] is None else memoryview(buffers[2])[start:stop]
    return data, ends - start


def _heap_bytes(heap: pa.Array) -> tuple[bytes, Int64Array]:
    data, ends = _heap_buffer(heap)
    return bytes(data), ends
