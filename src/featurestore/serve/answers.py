"""Answers: what one view says to `k` readers at one instant, in the form that was cheapest to get."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.core.python_values import python_values
from featurestore.core.time import INT64_MIN, Int64Array
from featurestore.errors import CorruptDataError
from featurestore.resolve.program import ViewProgram
from featurestore.resolve.views import (
    EXPIRED,
    NOT_FOUND,
    NULL,
    PRESENT,
    Numbered,
    Resolved,
    resolve_numbered,
)
from featurestore.serve.codec import HEADER_BYTES, Block, RowCodec, Stored
from featurestore.serve.views import OnlineView, stored_events
from featurestore.temporal.rows import Rows
from featurestore.temporal.visible import fresh_rows, is_fresh, is_visible, steady_until, visible_rows

StatusArray = npt.NDArray[np.int8]


class Answer(Protocol):
    """A view's features for `k` readers.

    Attributes:
        row_status: `(k,)` PRESENT, NOT_FOUND or EXPIRED.
        event_ns: `(k,)` event timestamp of the newest row used, `INT64_MIN` where there is none.
    """

    @property
    def row_status(self) -> StatusArray: ...  # noqa: D102 -- said above
    @property
    def event_ns(self) -> Int64Array: ...  # noqa: D102 -- said above
    def array(self, name: str) -> pa.Array:
        """Return a feature's values; null where the status is not PRESENT."""
        ...

    def values(self, name: str) -> list[object]:
        """Return a feature's values as Python objects."""
        ...

    def status(self, name: str) -> StatusArray:
        """Return the status of each cell of a feature."""
        ...


@dataclass(frozen=True)
class ResolvedAnswer:
    """The answer of a view that is evaluated for each reader."""

    resolved: Resolved

    @property
    def row_status(self) -> StatusArray:
        """Status by reader."""
        return self.resolved.row_status

    @property
    def event_ns(self) -> Int64Array:
        """Event timestamps by reader."""
        return self.resolved.event_ns

    def array(self, name: str) -> pa.Array:
        """Return a feature's values."""
        return self.resolved.columns[name]

    def values(self, name: str) -> list[object]:
        """Return a feature's values as Python objects."""
        return python_values(self.resolved.columns[name])

    def status(self, name: str) -> StatusArray:
        """Return the status of each cell of a feature."""
        return self.resolved.cell_status(name)


@dataclass(frozen=True)
class PlainAnswer:
    """The answer of a plain view: one record per reader, empty where there is none to see."""

    codec: RowCodec
    block: Block
    row_status: StatusArray
    event_ns: Int64Array

    @cached_property
    def table(self) -> pa.Table:
        """All features."""
        return self.codec.table(self.block)

    @cached_property
    def valid(self) -> npt.NDArray[np.bool_]:
        """Which cells hold a value; `(k, features)`."""
        return self.codec.valid(self.block, range(len(self.codec.schema)))

    def array(self, name: str) -> pa.Array:
        """Return a feature's values."""
        return self.codec.table(self.block, [name]).column(0).combine_chunks()

    def values(self, name: str) -> list[object]:
        """Return a feature's values as Python objects."""
        at = self.codec.schema.get_field_index(name)
        place = self.codec.places.get(at)
        if place is not None and place[0].dtype.kind in "if" and not pa.types.is_temporal(place[0].type):
            listed: list[object] = self.matrices[place[0].field][:, place[1]].tolist()
            if not self.valid[:, at].all():
                there = self.valid[:, at].tolist()
                return [v if ok else None for v, ok in zip(listed, there, strict=True)]
            return listed
        return python_values(self.array(name))

    @cached_property
    def matrices(self) -> dict[str, npt.NDArray[np.generic]]:
        """The fixed cells of each pack, column-major; `(k, columns of the pack)`."""
        return {p.field: np.asfortranarray(self.block.records[p.field]) for p in self.codec.packs}

    def status(self, name: str) -> StatusArray:
        """Return the status of each cell of a feature."""
        valid = self.valid[:, self.codec.schema.get_field_index(name)]
        null = (self.row_status == PRESENT) & ~valid
        return np.where(null, np.int8(NULL), self.row_status)


class OneReader:
    """The answer of a plain view to a single reader, read without arrays.

    Cost: a few microseconds, whatever the number of features.
    """

    __slots__ = ("_cells", "_reader", "_valid", "event", "raw", "row")

    def __init__(
        self,
        reader: "OneReading",
        row: int,
        event: int,
        valid: int,
        cells: Sequence[object],
        *,
        raw: bytes | None = None,
    ) -> None:
        """Hold what was read; `raw` is the stored value where it may be seen."""
        self.raw = raw
        self._reader = reader
        self.row = row
        self.event = event
        self._valid = valid
        self._cells = cells

    @property
    def row_status(self) -> StatusArray:
        """Status of the reader."""
        return np.array([self.row], np.int8)

    @property
    def event_ns(self) -> Int64Array:
        """Event timestamp for the reader."""
        return np.array([self.event], np.int64)

    def value(self, at: int) -> object:
        """Return the feature at a position of the view's schema."""
        return self._cells[self._reader.cell_of[at]] if self._valid >> at & 1 else None

    def array(self, name: str) -> pa.Array:
        """Return a feature's value."""
        field = self._reader.schema.field(name)
        return pa.array([self.value(self._reader.schema.get_field_index(name))], field.type)

    def values(self, name: str) -> list[object]:
        """Return a feature's value."""
        return [self.value(self._reader.schema.get_field_index(name))]

    def status(self, name: str) -> StatusArray:
        """Return the status of a feature's cell."""
        return np.array([self.status_at(self._reader.schema.get_field_index(name))], np.int8)

    def lacks(self, bits: int) -> bool:
        """Whether one of the features in a set of bits has no value."""
        return self._valid & bits != bits

    def status_at(self, at: int) -> int:
        """Return the status of the feature at a position of the view's schema."""
        if self.row != PRESENT:
            return self.row
        return PRESENT if self._valid >> at & 1 else NULL


class OneReading:
    """How a plain view's value is read for a single reader; made once per view.

    Attributes:
        possible: Whether all features are numbers, booleans or strings.
        cell_of: For each feature of the schema, its place among the cells that are read.
    """

    def __init__(self, view: OnlineView) -> None:
        """Lay out the reading."""
        codec = view.codec
        self.schema = codec.schema
        self.codec = codec
        self.ttl_ns = view.program.ttl_ns
        codes = [_struct_code(p.type, len(p.columns)) for p in codec.packs]
        texts = [codec.schema.field(at).type for at in codec.variable]
        self.possible = None not in codes and all(map(_is_text, texts))
        width = f"{codec.mask_bytes}s" + (f"{len(codec.variable)}I" if codec.variable else "")
        self._unpack = (
            struct.Struct("<IIqqqQ" + width + "".join(c or "" for c in codes)) if self.possible else None
        )
        order = [at for pack in codec.packs for at in pack.columns]
        self._texts = len(codec.variable)
        first = 7 + self._texts
        place = {at: first + number for number, at in enumerate(order)}
        end = first + len(order)
        place |= {at: end + number for number, at in enumerate(codec.variable)}
        self.cell_of = tuple(place[at] for at in range(len(codec.schema)))
        self._end = HEADER_BYTES + codec.stride

    def read(self, value: bytes | None, now_ns: int) -> OneReader | None:
        """Answer from a stored value; `None` where it holds several rows, which arrays read better.

        Raises:
            CorruptDataError: the value is not one that the view's codec wrote.
        """
        if value is None:
            return OneReader(self, NOT_FOUND, INT64_MIN, 0, ())
        if self._unpack is None or len(value) < self._end:
            return None
        cells: tuple[Any, ...] = self._unpack.unpack_from(value)
        if cells[0] != self.codec.tag:
            raise CorruptDataError("a stored row was written under another layout")
        if cells[1] != 1:
            return None
        event, known = cells[2], cells[3]
        if not is_visible(event, known, now_ns):
            return OneReader(self, NOT_FOUND, INT64_MIN, 0, ())
        if not is_fresh(event, now_ns, self.ttl_ns):
            return OneReader(self, EXPIRED, INT64_MIN, 0, ())
        valid = int.from_bytes(cells[6], "little")
        if self._texts:
            cells += self._strings(value, cells[7 : 7 + self._texts])
        return OneReader(self, PRESENT, event, valid, cells, raw=value)

    def _strings(self, value: bytes, lengths: Sequence[int]) -> tuple[object, ...]:
        out: list[object] = []
        at = self._end
        for length in lengths:
            stop = at + length
            out.append(value[at:stop].decode())
            at = stop
        return tuple(out)


def answer_plain(view: OnlineView, values: Sequence[bytes | None], now_ns: int) -> PlainAnswer:
    """Answer `k` readers at one instant from what their keys hold, by PIT-1 and PIT-2.

    Rows are stored in (event, known, sequence, arrival) order, so the last visible one is the newest.
    """
    codec = view.codec
    stored = codec.decode(values)
    event, known = stored.block.records["event"], stored.block.records["known"]
    seen = visible_rows(event, known, now_ns)
    chosen = _last_of_each(stored, seen)
    found = chosen >= 0
    used = found & fresh_rows(event[chosen], now_ns, view.program.ttl_ns) if len(event) else found
    status = np.full(len(values), NOT_FOUND, np.int8)
    status[found] = EXPIRED
    status[used] = PRESENT
    if used.all():
        whole = len(chosen) == len(event)
        block = stored.block if whole else stored.block.take(chosen)
        return PlainAnswer(codec, block, status, block.clock("event"))
    records = np.zeros(len(values), codec.record)
    records[used] = stored.block.records[chosen[used]]
    heap = stored.block.heap
    if heap is not None:
        heap = heap.take(pa.array(np.where(used, chosen, 0), mask=~used)).fill_null(b"")
    event_ns = np.where(used, records["event"], np.int64(INT64_MIN))
    return PlainAnswer(codec, Block(records, heap), status, event_ns)


def _last_of_each(stored: Stored, seen: npt.NDArray[np.bool_]) -> Int64Array:
    """Point at each key's last row that is seen, -1 where there is none; `(k,)`."""
    counts = stored.counts
    rows = int(counts.sum())
    at = np.where(seen, np.arange(rows, dtype=np.int64), np.int64(-1))
    if rows == counts.size and (counts == 1).all():
        return at
    chosen = np.full(counts.size, -1, np.int64)
    some = np.flatnonzero(counts)
    if some.size:
        starts = (np.cumsum(counts) - counts)[some]
        chosen[some] = np.maximum.reduceat(at, starts)
    return chosen


def answer_resolved(
    view: OnlineView, program: ViewProgram, values: Sequence[bytes | None], now_ns: int
) -> ResolvedAnswer:
    """Answer `k` readers at one instant by the same function that training uses.

    Args:
        program: The view's program, narrowed to the features that are asked for.
    """
    stored = view.codec.decode(values)
    readers = len(values)
    spine = Rows(np.arange(readers, dtype=np.int32), np.full(readers, now_ns, np.int64), None, None)
    rows = Numbered(program, stored_events(view, stored.block), stored.codes(), readers)
    return ResolvedAnswer(resolve_numbered(rows, spine, threads=1))


class SteadyAnswers:
    """Answers to single readers, kept for as long as time alone does not change them.

    An answer is a function of the stored value and of now. For views that are evaluated for each reader this
    makes repeated reads of an entity as cheap as those of plain views. Threads may share it: an entry is
    put whole, and a lost one is made again.
    """

    def __init__(self, *, max_bytes: int) -> None:
        """Hold nothing; at most about `max_bytes` of stored values."""
        self._answers: dict[bytes, tuple[int, int, ResolvedAnswer]] = {}
        self._bytes = 0
        self._max_bytes = max_bytes

    def answer(self, view: OnlineView, program: ViewProgram, value: bytes, now_ns: int) -> ResolvedAnswer:
        """Answer one reader from what its key holds."""
        found = self._answers.get(value)
        if found is not None and found[0] <= now_ns <= found[1]:
            return found[2]
        answer = answer_resolved(view, program, [value], now_ns)
        block = view.codec.decode([value]).block
        until = steady_until(
            block.clock("event"),
            block.clock("known"),
            now_ns,
            ttl_ns=program.ttl_ns,
            windows_ns=[(a.window_ns, a.tile_ns) for a in program.aggregations],
        )
        self._bytes += len(value)
        if self._bytes > self._max_bytes:
            self._answers.clear()
            self._bytes = len(value)
        self._answers[value] = (now_ns, until, answer)
        return answer


_CODES: Final = {"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"}
_FLOATS: Final = {16: "e", 32: "f", 64: "d"}


def _struct_code(kind: pa.DataType, count: int) -> str | None:
    if pa.types.is_boolean(kind):
        return f"{count}?"
    if pa.types.is_floating(kind):
        return f"{count}{_FLOATS[kind.bit_width]}"
    if pa.types.is_integer(kind):
        return f"{count}{_CODES[np.dtype(kind.to_pandas_dtype()).str[1:]]}"
    return None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
