"""Many streams onto one spine: keys are numbered once, every stream keeps its own rules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from featurestore.core.time import INT64_MAX, BoolArray, Duration, Int64Array, duration_ns
from featurestore.errors import DefinitionError, SchemaError, TimeOverflowError
from featurestore.temporal.asof import chosen_rows, last_known_indices
from featurestore.temporal.gather import gather
from featurestore.temporal.gather_types import check_takeable
from featurestore.temporal.key_kinds import key_kind
from featurestore.temporal.keys import code_keys
from featurestore.temporal.merge import are_ascending
from featurestore.temporal.order import NO_INT64
from featurestore.temporal.rows import BOUNDARIES, DIRECTIONS, Int32Array, Rows, check_choice
from featurestore.temporal.statistics import JoinStatistics, join_statistics
from featurestore.temporal.tables import as_table, check_text, check_unique, column_of, names_of
from featurestore.temporal.threads import check_count, run_in_turn, thread_count
from featurestore.temporal.times import is_time_type, times_ns, valid_mask

NULLS: Final = ("keep", "last_known")


@dataclass(frozen=True, slots=True)
class AsOf:
    """One stream of `align`, with its own rules.

    Attributes:
        table: anything with the Arrow PyCapsule protocol.
        columns: which of its columns to join; `None`: all but its time and key columns.
        tolerance: the greatest distance in time, bound included; `None` for no bound.
        direction: backward, forward or nearest (equidistant: backward).
        boundary: inclusive, or exclusive of rows of the very same instant.
        on: its time column; `None`: named as the spine's.
        by: its key columns, in the spine's order; `None`: named as the spine's; `()`: no keys, every row
            of the spine sees the same stream.
        created_on: when its rows could have been known; a null is never known.
        prefix: put before the names of its columns.
        nulls: keep: the chosen row decides, nulls included; last_known: each column takes its newest
            value that is not null, with its own age (backward only).
        matched_timestamp: name of an output column for the chosen row's time.
        age: name of an output column for the spine's time minus the chosen row's, a duration in ns.
    """

    table: Any
    columns: Sequence[str] | None = None
    tolerance: Duration | None = None
    direction: str = "backward"
    boundary: str = "inclusive"
    on: str | None = None
    by: str | Sequence[str] | None = None
    created_on: str | None = None
    prefix: str = ""
    nulls: str = "keep"
    matched_timestamp: str | None = None
    age: str | None = None


class Aligned(NamedTuple):
    """The result of `align_with_statistics`."""

    table: pa.Table
    statistics: dict[str, JoinStatistics]


@dataclass(frozen=True, slots=True)
class _Stream:
    """A stream that was checked."""

    name: str
    rule: AsOf
    table: pa.Table
    on: str
    by: tuple[str, ...]
    columns: tuple[str, ...]
    tolerance_ns: int | None

    @property
    def outputs(self) -> list[str]:
        """Names of the output columns, in order."""
        extra = [name for name in (self.rule.matched_timestamp, self.rule.age) if name is not None]
        return [self.rule.prefix + name for name in self.columns] + extra

    @property
    def fields(self) -> list[pa.Field]:
        """Fields of the output columns: the stream's own, but any of them may be null."""
        rule = self.rule
        fields = [
            self.table.schema.field(name).with_name(rule.prefix + name).with_nullable(True)
            for name in self.columns
        ]
        if rule.matched_timestamp is not None:
            matched = self.table.schema.field(self.on)
            fields.append(matched.with_name(rule.matched_timestamp).with_nullable(True))
        if rule.age is not None:
            fields.append(pa.field(rule.age, pa.duration("ns")))
        return fields


def align(
    spine: Any,
    streams: Mapping[str, AsOf],
    *,
    on: str,
    by: str | Sequence[str] | None = None,
    threads: int | None = None,
) -> pa.Table:
    """Join many streams onto one spine, point in time.

    Args:
        spine: anything with the Arrow PyCapsule protocol.
        streams: the streams by name; the names appear in messages and statistics.
        on: the spine's time column.
        by: the spine's key columns.
        threads: `None` for one per core.

    Returns:
        One row per spine row in the spine's order: its columns untouched, then each stream's.

    Raises:
        SchemaError: a missing or mistyped column, keys of different kinds, a name clash.
        DefinitionError: a rule that cannot be right, such as a negative tolerance.
        TimeOverflowError: a time or tolerance that int64 ns cannot hold.
    """
    return aligned(spine, streams, on, by, threads=threads, count=False, spine_name="spine").table


def align_with_statistics(
    spine: Any,
    streams: Mapping[str, AsOf],
    *,
    on: str,
    by: str | Sequence[str] | None = None,
    threads: int | None = None,
) -> Aligned:
    """Do what `align` does, and count per stream what matched, what was too old and what was unknown.

    Raises:
        SchemaError: as `align`.
        DefinitionError: as `align`.
        TimeOverflowError: as `align`.
    """
    return aligned(spine, streams, on, by, threads=threads, count=True, spine_name="spine")


def aligned(
    spine: Any,
    streams: Mapping[str, AsOf],
    on: str,
    by: str | Sequence[str] | None,
    *,
    threads: int | None,
    count: bool,
    spine_name: str,
) -> Aligned:
    """Check everything, then join stream by stream; `spine_name` is what messages call the spine.

    Raises:
        SchemaError: as `align`.
        DefinitionError: as `align`.
        TimeOverflowError: as `align`.
    """
    table, keys = as_table(spine, spine_name), names_of(by)
    if not isinstance(streams, Mapping):
        raise DefinitionError(
            f"streams is a {type(streams).__name__}", hint='name them: {"quote": AsOf(quotes), …}'
        )
    if threads is not None:
        check_count(threads, "threads")
    check_time_column(table, on, spine_name)
    for key in keys:
        kind = column_of(table, key, spine_name).type
        if not pa.types.is_null(kind):
            key_kind(kind, key)
    plans = [_plan(name, rule, table, on, keys, spine_name) for name, rule in streams.items()]
    names = [*table.column_names, *(name for plan in plans for name in plan.outputs)]
    check_unique(names, "the output would have two columns named", "set a prefix, or choose columns")
    joined = _joined(plans, _sides(table, on, keys, plans, threads), count=count, threads=threads)
    columns = [*table.columns, *(column for mine, _ in joined for column in mine)]
    statistics = {
        plan.name: found for plan, (_, found) in zip(plans, joined, strict=True) if found is not None
    }
    fields = [*table.schema, *(field for plan in plans for field in plan.fields)]
    return Aligned(pa.table(columns, schema=pa.schema(fields, table.schema.metadata)), statistics)


def check_time_column(table: pa.Table, name: str, what: str) -> None:
    """Check that a table has a column of times of that name.

    Raises:
        SchemaError: there is none, or its type holds no time.
    """
    kind = column_of(table, name, what).type
    if not is_time_type(kind):
        raise SchemaError(
            f"time column {name!r} of {what} is of type {kind}",
            hint="a timestamp of any unit and zone, a date, or int64 nanoseconds since 1970 UTC",
            column=name,
        )


def _plan(name: str, rule: AsOf, spine: pa.Table, on: str, keys: tuple[str, ...], spine_name: str) -> _Stream:
    # Checks one stream against the spine, before any work.
    if not isinstance(rule, AsOf):
        raise DefinitionError(
            f"stream {name!r} is a {type(rule).__name__}", hint="wrap its table in AsOf(...)"
        )
    time = on if rule.on is None else rule.on
    optional = (rule.created_on, rule.matched_timestamp, rule.age)
    for text in (rule.prefix, time, *(text for text in optional if text is not None)):
        check_text(text, f"a name or prefix of {name!r}")
    check_choice(rule.direction, DIRECTIONS, f"direction of {name!r}")
    check_choice(rule.boundary, BOUNDARIES, f"boundary of {name!r}")
    check_choice(rule.nulls, NULLS, f"nulls of {name!r}")
    if rule.nulls == "last_known" and rule.direction != "backward":
        raise DefinitionError(
            f"stream {name!r} asks for the last known values with direction {rule.direction!r}",
            hint='last_known looks back: use direction="backward"',
        )
    tolerance_ns = None
    if rule.tolerance is not None:
        tolerance_ns = duration_ns(rule.tolerance, what=f"tolerance of {name!r}")
    table = as_table(rule.table, name)
    by = keys if rule.by is None else names_of(rule.by)
    check_time_column(table, time, name)
    if rule.created_on is not None:
        check_time_column(table, rule.created_on, name)
    _check_keys(name, table, by, spine, keys, spine_name)
    columns = names_of(rule.columns)
    if rule.columns is None:
        columns = tuple(column for column in table.column_names if column != time and column not in by)
    for column in columns:
        check_takeable(column_of(table, column, name).type, column)
    return _Stream(name, rule, table, time, by, columns, tolerance_ns)


def _check_keys(
    name: str, table: pa.Table, by: tuple[str, ...], spine: pa.Table, keys: tuple[str, ...], spine_name: str
) -> None:
    if by and len(by) != len(keys):
        raise DefinitionError(
            f"{name} is joined by {list(by)}, {spine_name} by {list(keys)}",
            hint="name as many key columns on both sides, in the same order",
        )
    for mine, key in zip(by, keys, strict=False):
        theirs, kind = spine.column(key).type, column_of(table, mine, name).type
        if pa.types.is_null(kind) or pa.types.is_null(theirs):
            continue  # nulls match nothing, whatever their type
        if key_kind(kind, mine) != key_kind(theirs, key):
            raise SchemaError(
                f"key column {mine!r} of {name} is {kind}, where {key!r} of {spine_name} is {theirs}",
                hint="cast one of them: keys of different kinds are never equal",
                column=mine,
            )


_Sides = list[tuple[Rows, Rows, int]]


def _sides(
    spine: pa.Table, on: str, keys: tuple[str, ...], plans: Sequence[_Stream], threads: int | None
) -> _Sides:
    """Read keys and times: per stream the spine's side, the stream's, and how many entities there are."""
    keyed = [plan for plan in plans if plan.by]
    codes: dict[str, Int32Array] = {}
    spine_codes, entities = _one_entity(len(spine)), 1
    if keyed:
        tables = [(spine, keys), *((plan.table, plan.by) for plan in keyed)]
        coded = code_keys([[t.column(k) for k in names] for t, names in tables], keys, threads=threads)
        spine_codes, entities = coded.codes[0], coded.entities
        codes = {plan.name: part for plan, part in zip(keyed, coded.codes[1:], strict=True)}
    time, null = times_ns(spine.column(on), on)
    events = [times_ns(plan.table.column(plan.on), plan.on) for plan in plans]
    # Rows with a created time are sorted in any case.
    looked_at = [e for plan, (e, _) in zip(plans, events, strict=True) if plan.rule.created_on is None]
    in_order, *ordered = are_ascending([(times, NO_INT64) for times in (time, *looked_at)], threads=threads)
    rises = iter(ordered)
    keyed_spine = Rows(_masked(spine_codes, null), time, in_order=in_order)
    plain_spine = Rows(_masked(_one_entity(len(spine)), null), time, in_order=in_order)
    sides: _Sides = []
    for plan, (event, null) in zip(plans, events, strict=True):
        mine = codes[plan.name] if plan.by else _one_entity(len(plan.table))
        known = _known(plan)
        right = Rows(_masked(mine, null), event, known, in_order=known is None and next(rises))
        sides.append((keyed_spine, right, entities) if plan.by else (plain_spine, right, 1))
    return sides


def _one_entity(rows: int) -> Int32Array:
    return np.broadcast_to(np.int32(0), rows)


def _masked(codes: Int32Array, null: BoolArray | None) -> Int32Array:
    if null is None:
        return codes
    codes = codes if codes.flags.writeable else codes.copy()
    codes[null] = -1
    return codes


def _known(plan: _Stream) -> Int64Array | None:
    """When each row could have been known; never, where the created time is null."""
    if plan.rule.created_on is None:
        return None
    known, null = times_ns(plan.table.column(plan.rule.created_on), plan.rule.created_on)
    return known if null is None else np.where(null, np.int64(INT64_MAX), known)


def _joined(
    plans: Sequence[_Stream], sides: _Sides, *, count: bool, threads: int | None
) -> list[tuple[list[pa.Array], JoinStatistics | None]]:
    """Join every stream: its output columns, and its statistics where they are asked for.

    Two streams side by side leave no thread waiting at the end of each step; more would hold more memory.
    """
    found: dict[int, tuple[list[pa.Array], JoinStatistics | None]] = {}

    def join(place: int, threads: int | None) -> None:
        found[place] = _join(plans[place], *sides[place], count=count, threads=threads)

    wide = thread_count(threads, sum(len(left) + len(right) for left, right, _ in sides))
    in_pairs = len(plans) // 2 * 2 if wide > 1 else 0
    run_in_turn([partial(join, place, wide // 2) for place in range(in_pairs)], 2)
    for place in range(in_pairs, len(plans)):
        join(place, threads)
    return [found[place] for place in range(len(plans))]


def _join(
    plan: _Stream, left: Rows, right: Rows, entities: int, *, count: bool, threads: int | None
) -> tuple[list[pa.Array], JoinStatistics | None]:
    statistics = None
    if count:
        free = _choose(plan, left, right, entities, None, threads)
        statistics = join_statistics(left, right, free, entities=entities, tolerance_ns=plan.tolerance_ns)
    return _columns(plan, left, right, entities, threads), statistics


def _choose(
    plan: _Stream, left: Rows, right: Rows, entities: int, tolerance_ns: int | None, threads: int | None
) -> Int32Array:
    return chosen_rows(
        left,
        right,
        entities=entities,
        direction=plan.rule.direction,
        tolerance_ns=tolerance_ns,
        boundary=plan.rule.boundary,
        threads=threads,
    )


def _columns(plan: _Stream, left: Rows, right: Rows, entities: int, threads: int | None) -> list[pa.Array]:
    """Return the stream's output columns in the order of their fields."""
    rule, table = plan.rule, plan.table
    columns: list[pa.Array] = []
    chosen: Int32Array | None = None
    if rule.nulls == "keep" or rule.matched_timestamp is not None or rule.age is not None:
        chosen = _choose(plan, left, right, entities, plan.tolerance_ns, threads)
    if rule.nulls == "keep" and chosen is not None:
        columns += [gather(table.column(name), chosen, threads=threads, name=name) for name in plan.columns]
    else:
        found = last_known_indices(
            left,
            right,
            [valid_mask(table.column(name)) for name in plan.columns],
            entities=entities,
            tolerance_ns=plan.tolerance_ns,
            boundary=rule.boundary,
            threads=threads,
        )
        pairs = zip(plan.columns, found, strict=True)
        columns += [gather(table.column(name), rows, threads=threads, name=name) for name, rows in pairs]
    if rule.matched_timestamp is not None and chosen is not None:
        columns.append(gather(table.column(plan.on), chosen, threads=threads))
    if rule.age is not None and chosen is not None:
        columns.append(_ages(plan, left, right, chosen))
    return columns


def _ages(plan: _Stream, left: Rows, right: Rows, chosen: Int32Array) -> pa.Array:
    # The spine's time minus the matched row's, null where there is none.
    if len(right) == 0:
        return pa.nulls(len(chosen), pa.duration("ns"))
    missing = chosen < 0
    then = right.event_ns[np.where(missing, 0, chosen)]
    ages = left.event_ns - then
    wrapped = ((left.event_ns ^ then) & (left.event_ns ^ ages)) < 0
    if bool((wrapped & ~missing).any()):
        row = int(np.flatnonzero(wrapped & ~missing)[0])
        raise TimeOverflowError(
            f"age column {plan.rule.age!r}: {int(left.event_ns[row])} ns minus {int(then[row])} ns does not "
            "fit int64 nanoseconds",
            column=plan.rule.age,
        )
    return pa.array(ages, mask=missing).view(pa.duration("ns"))
