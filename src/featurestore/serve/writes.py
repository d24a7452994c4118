"""The write path, as functions of values: rows in, what each key holds afterwards out.

What a key holds is the set of rows that a reader at or after the floor could still use (`resolve.retain`).
Merging is commutative and idempotent: a row counts as often as in the delivery that holds it most often, so
repeated and reordered deliveries converge. Rows equal in event, known and sequence keep their order of
arrival, as rows of a source keep their position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from featurestore.core.keys import distinct_keys
from featurestore.core.time import INT64_MAX, Int64Array
from featurestore.errors import SchemaError
from featurestore.resolve.events import Events, column_of, columns_of, source_events
from featurestore.resolve.retain import retained_numbered
from featurestore.resolve.views import Numbered, evaluate_features, view_events
from featurestore.serve.codec import Block, Stored, concat_blocks
from featurestore.serve.entity_keys import stored_keys
from featurestore.serve.views import OnlineView, check_key_kind, stored_events
from featurestore.temporal.visible import newest_and_later, replacing_rows

Int32Array = npt.NDArray[np.int32]
_VERSION: Final = ("event", "known", "sequence")


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows ready to merge.

    Attributes:
        keys: The `k` distinct keys, encoded.
        codes: `(n,)` each row's key.
        block: The rows.
        dropped: How many rows no reader can ever see: a null key, event or created timestamp.
        lone: Each key's value if the row is all that it will hold; `None` where keys repeat, or where several
            rows of a key matter.
    """

    keys: list[bytes]
    codes: Int32Array
    block: Block
    dropped: int
    lone: list[bytes] | None = None

    def only(self, at: Int64Array) -> "Prepared":
        """Return some of the keys with their rows, where each has one."""
        codes = np.arange(at.size, dtype=np.int32)
        return Prepared([self.keys[k] for k in at.tolist()], codes, self.block.take(at), self.dropped)


def prepare_rows(view: OnlineView, table: pa.Table) -> Prepared:
    """Evaluate and encode rows of a view's source.

    Args:
        table: Rows in source order with at least the columns the view reads.

    Raises:
        SchemaError: a column is missing or of another type than the catalog recorded.
        ExpressionError: an expression failed on the values it met.
    """
    program = view.program
    events, columns = _evaluated(view, table)
    keys = columns_of(events.table, program.join_keys)
    for name, kind, column in zip(program.join_keys, view.key_types, keys, strict=True):
        check_key_kind(name, kind, column.type)
    codes, uniques = distinct_keys(keys)
    known = events.event_ns if events.known_ns is None else events.known_ns
    live = (codes >= 0) & (known != INT64_MAX)
    if events.dead is not None:
        live &= ~events.dead
    sequence = np.zeros(len(codes), np.int64) if events.sequence is None else events.sequence
    block = view.codec.encode(events.event_ns, known, sequence, columns)
    dropped = int(len(codes) - np.count_nonzero(live))
    if dropped:
        kept = np.flatnonzero(live)
        block, codes = block.take(kept), codes[kept]
    encoded = [key for key in stored_keys(uniques) if key is not None]
    # A key may have lost all of its rows: that there are as many rows as keys is not enough.
    one_each = view.is_plain and np.array_equal(codes, np.arange(len(encoded)))
    lone = view.codec.lone_values(block) if one_each else None
    return Prepared(encoded, codes.astype(np.int32), block, dropped, lone)


def merge_rows(
    view: OnlineView, prepared: Prepared, old: Sequence[bytes | None], *, at_ns: int
) -> list[bytes | None]:
    """Return what each key of `prepared` holds afterwards.

    Args:
        old: What each key holds now.
        at_ns: The floor: readers at or after this instant are answered exactly.

    Raises:
        CorruptDataError: a stored value is not one that the view's codec wrote.

    Cost:
        A comparison of versions for keys whose one row is newer than the one that they hold; for others one
        sort of their rows with those that they hold.
    """
    if prepared.lone is None:
        return _merged(view, prepared, old, at_ns)
    older = view.codec.versions(old)
    if older is None:
        return _merged(view, prepared, old, at_ns)
    block = prepared.block
    newer = replacing_rows([block.clock(name) for name in _VERSION], older, at_ns)
    out: list[bytes | None] = list(prepared.lone)
    rest = np.flatnonzero(~newer)
    if rest.size:
        places = rest.tolist()
        values = _merged(view, prepared.only(rest), [old[at] for at in places], at_ns)
        for at, value in zip(places, values, strict=True):
            out[at] = value
    return out


def _merged(
    view: OnlineView, prepared: Prepared, old: Sequence[bytes | None], at_ns: int
) -> list[bytes | None]:
    codec = view.codec
    stored = codec.decode(old)
    block, codes, first_new = _combined(stored, prepared)
    # Rows are moved once, at the end: until then they are chosen by position, on their clocks alone.
    chosen = _sorted(block, codes)
    unique = _without_repeats(block, codes, chosen, first_new)
    if unique is not None:
        chosen = chosen[unique]
    chosen = chosen[_retained(view, block, codes, chosen, len(prepared.keys), at_ns)]
    counts = np.bincount(codes[chosen], minlength=len(prepared.keys)).astype(np.int64)
    return codec.values(block.take(chosen), counts)


def _evaluated(view: OnlineView, table: pa.Table) -> tuple[Events, list[pa.Array]]:
    program = view.base
    if program.upstream is not None:
        table = view_events(program.upstream, table, threads=1)
    events = source_events(table, program.times)
    if view.is_plain:
        by_name = dict(zip(table.column_names, table.columns, strict=True))
        inputs = {n: by_name[n] if n in by_name else column_of(table, n) for n in program.inputs()}
        values = evaluate_features(program, inputs, newest=None, rows=table.num_rows)
        return events, [typed_column(values[f.name], f) for f in view.codec.schema]
    return events, [typed_column(column_of(table, f.name), f) for f in view.codec.schema]


def typed_column(column: pa.Array | pa.ChunkedArray, field: pa.Field) -> pa.Array:
    """Return a column in its recorded type; only casts that lose nothing are made.

    Raises:
        SchemaError: the column has another kind, or a value that the recorded type cannot hold.
    """
    flat = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if flat.type == field.type:
        return flat
    if not _is_lossless(flat.type, field.type):
        raise SchemaError(
            f"column {field.name!r} has type {flat.type}, recorded as {field.type}",
            hint="send the type that the source has",
            column=field.name,
        )
    try:
        return flat.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(
            f"column {field.name!r} of type {flat.type} does not fit {field.type}",
            hint=str(error),
            column=field.name,
        ) from error


def _is_lossless(found: pa.DataType, wanted: pa.DataType) -> bool:
    found = found.value_type if pa.types.is_dictionary(found) else found
    wanted = wanted.value_type if pa.types.is_dictionary(wanted) else wanted
    if pa.types.is_null(found) or found == wanted:
        return True
    families = (
        (pa.types.is_integer,),
        (pa.types.is_timestamp,),
        (pa.types.is_duration,),
        (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
        (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list),
    )
    if any(any(f(found) for f in fam) and any(f(wanted) for f in fam) for fam in families):
        return True
    floats = pa.types.is_floating(found) and pa.types.is_floating(wanted)
    return bool(floats and found.bit_width < wanted.bit_width)


def _combined(stored: Stored, prepared: Prepared) -> tuple[Block, Int32Array, int]:
    """Join what is stored and what is new; new rows arrive after, from the returned number on."""
    if len(stored.block) == 0:
        return prepared.block, prepared.codes, 0
    first_new = int(stored.block.records["arrival"].max()) + 1
    new = prepared.block.records.copy()
    new["arrival"] += first_new
    block = concat_blocks([stored.block, Block(new, prepared.block.heap)])
    return block, np.concatenate([stored.codes(), prepared.codes]), first_new


def _sorted(block: Block, codes: Int32Array) -> Int64Array:
    """Point at the rows by key, then event, known, sequence and arrival."""
    clocks = [block.clock(name) for name in ("arrival", "sequence", "known", "event")]
    return np.lexsort(np.vstack([*clocks, codes]))


def _without_repeats(
    block: Block, codes: Int32Array, chosen: Int64Array, first_new: int
) -> Int64Array | None:
    """Point at the chosen rows that are no second delivery, in order; `None` where all stay.

    Copies of a row within one delivery are numbered, and a number counts once. Rows are sorted by key
    and version; only rows tied with a neighbour are compared by content.
    """
    if chosen.size < 2:
        return None
    keys = codes[chosen]
    same = keys[1:] == keys[:-1]
    for name in _VERSION:
        clock = block.records[name][chosen]
        same &= clock[1:] == clock[:-1]
    if not same.any():
        return None
    edge = np.array([False])
    tied = np.flatnonzero(np.concatenate([same, edge]) | np.concatenate([edge, same]))
    group = np.concatenate([[0], np.cumsum(~same)])[tied]
    rows = block.take(chosen[tied])
    content = _contents(rows)
    is_new = rows.clock("arrival") >= first_new
    order = np.lexsort((tied, is_new, content, group))
    copy = _numbered(group[order], content[order], is_new[order])
    again = np.lexsort((tied[order], copy, content[order], group[order]))
    order, copy = order[again], copy[again]
    repeat = _numbered(group[order], content[order], copy) > 0
    keep = np.ones(chosen.size, np.bool_)
    keep[tied[order[repeat]]] = False
    return np.flatnonzero(keep)


def _numbered(*columns: npt.NDArray[np.generic]) -> Int64Array:
    """Number the members of each run of equal rows, from 0."""
    start = np.zeros(len(columns[0]), np.bool_)
    start[0] = True
    for column in columns:
        start[1:] |= column[1:] != column[:-1]
    at = np.arange(start.size, dtype=np.int64)
    return at - np.maximum.accumulate(np.where(start, at, 0))


def _contents(rows: Block) -> npt.NDArray[np.uint64]:
    """Hash each row's cells; `(n,)`."""
    records = rows.records.copy()
    records["arrival"] = 0
    body, stride = records.tobytes(), records.dtype.itemsize
    heaps = [b""] * len(rows) if rows.heap is None else rows.heap.to_pylist()
    hashes = [
        xxhash.xxh3_64_intdigest(body[at * stride : (at + 1) * stride] + heap)
        for at, heap in enumerate(heaps)
    ]
    return np.array(hashes, np.uint64)


def _retained(
    view: OnlineView, block: Block, codes: Int32Array, chosen: Int64Array, keys: int, at_ns: int
) -> Int64Array:
    """Point at the chosen rows that some reader could use, and each key's newest: found or expired."""
    mine = codes[chosen]
    event, known = block.records["event"][chosen], block.records["known"][chosen]
    newest = np.flatnonzero(newest_and_later(mine, event, known, at_ns, entities=keys))
    if view.is_plain:
        return newest
    events = stored_events(view, block.take(chosen))
    used = retained_numbered(Numbered(view.program, events, mine, keys), at_ns=at_ns)
    return np.union1d(newest, used)
