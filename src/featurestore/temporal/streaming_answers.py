"""What a stream says of left rows: the right row that each takes, whether that is final, and the table."""

import numpy as np
import pyarrow as pa

from featurestore.core.time import Int64Array
from featurestore.temporal.asof import chosen_rows
from featurestore.temporal.retain import retained_indices
from featurestore.temporal.rows import Int32Array, Rows, frozen
from featurestore.temporal.sealing import prefix_length, sealed_reach
from featurestore.temporal.streaming_keys import KeyNumbers
from featurestore.temporal.streaming_merge import CarriedMerge
from featurestore.temporal.streaming_options import Options
from featurestore.temporal.streaming_side import LeftSide, RightSide
from featurestore.temporal.windows import window_aggregate


def right_columns(options: Options, schema: pa.Schema) -> list[str]:
    """Return which of the right side's columns come out."""
    if options.columns is not None:
        return list(options.columns)
    return [n for n in schema.names if n != options.right_on and n not in options.right_by]


def right_fields(options: Options, schema: pa.Schema) -> list[pa.Field]:
    """Return the fields of the right side's columns as they come out, the matched timestamp last."""
    fields = [
        schema.field(n).with_name(options.prefix + n).with_nullable(True)
        for n in right_columns(options, schema)
    ]
    if options.matched_timestamp is not None:
        fields.append(schema.field(options.right_on).with_name(options.matched_timestamp).with_nullable(True))
    return fields


class Answers:
    """The answers of left rows, from the rows that a stream holds."""

    def __init__(
        self, options: Options, left: LeftSide, right: RightSide, keys: KeyNumbers, threads: int | None
    ) -> None:
        self._options, self._left, self._right, self._keys = options, left, right, keys
        self._threads = threads
        self._carried: CarriedMerge | None = None
        if options.direction == "backward" and options.created_on is None:
            self._carried = CarriedMerge(options.tolerance_ns, options.boundary, threads)
        self._aggregated = list(dict.fromkeys(w.column for w in options.aggregations if w.column != "*"))
        self.forget()

    def forget(self) -> None:
        """Begin anew: keys, rows or schemas are not those they were."""
        self._schema: pa.Schema | None = None
        self._names: list[str] = []
        if self._carried is not None:
            self._carried.forget()

    def retained(self, at_ns: int) -> Int64Array:
        """Return the places of right rows that a reader at `at_ns` or later may still use."""
        right, options = self._right.rows, self._options
        if self._carried is not None and not options.aggregations:
            kept = self._carried.retained(right, at_ns)
            if kept is not None:
                return kept
        return retained_indices(
            right.view(0, len(right)),
            entities=len(self._keys),
            at_ns=at_ns,
            ttl_ns=options.tolerance_ns,
            newest=options.direction != "forward",
            last_known=[],
            window_ns=max(options.look_back_ns, 1),
        )

    def keep(self, places: Int64Array, held: int) -> None:
        """Follow the right rows that stay, at these ascending places of those `held`."""
        if self._carried is not None:
            self._carried.keep(places, held)

    def found(self, count: int) -> Int32Array:
        """Return the right row that each of the first left rows takes by what is known now, -1 for none."""
        right, options = self._right.rows, self._options
        if count == 0 or len(right) == 0:
            return np.full(count, -1, np.int32)
        left, entities = self._left.rows.view(0, count), len(self._keys)
        found = None if self._carried is None else self._carried.answers(left, right, entities)
        if found is not None:
            return found
        return chosen_rows(
            left,
            right.view(0, len(right)),
            entities=entities,
            direction=options.direction,
            tolerance_ns=options.tolerance_ns,
            boundary=options.boundary,
            threads=self._threads,
        )

    def sealed(self, bound_ns: int) -> Int32Array:
        """Return the answers of the left rows that can come out.

        Args:
            bound_ns: no right row with an older event is accepted any more.
        """
        count = self._left.rows.sealed(bound_ns)
        found = self.found(count)
        if self._options.direction == "backward" or count == 0:
            return found
        left = self._left.rows.view(0, count)
        right = self._right.rows.view(0, len(self._right.rows))
        sealed = sealed_reach(
            left.codes, left.event_ns, found, right.event_ns, self._options.tolerance_ns, bound_ns
        )
        return found[: prefix_length(sealed)]

    def table(self, found: Int32Array) -> pa.Table:
        """Return the first left rows with the right rows they take and their aggregates.

        Raises:
            ExpressionError: an aggregate that does not fit its type.
            SchemaError: a right column whose values cannot be brought into one array.
        """
        left, options = self._left.first(len(found)), self._options
        source, values = self._right.schema, self._right.values
        if self._schema is None:
            self._names = right_columns(options, source)
            if options.matched_timestamp is not None:
                self._names.append(options.right_on)
            fields = [*left.schema, *right_fields(options, source)]
            self._schema = pa.schema(fields, left.schema.metadata)
        columns, found = left.columns, frozen(found)
        for name in self._names:
            if values is None:
                columns.append(pa.nulls(len(found), source.field(name).type))
            else:
                columns.append(values.gather(name, found, self._threads))
        if not options.aggregations:
            return pa.Table.from_arrays(columns, schema=self._schema)
        aggregates = self._aggregates(len(found))
        schema = self._schema
        for name, column in aggregates.items():
            schema = schema.append(pa.field(name, column.type))
        return pa.Table.from_arrays([*columns, *aggregates.values()], schema=schema)

    def _aggregates(self, count: int) -> dict[str, pa.Array]:
        right, names = self._right, self._aggregated
        empty = {name: pa.nulls(0, right.schema.field(name).type) for name in names}
        view: Rows = right.rows.view(0, len(right.rows))
        return window_aggregate(
            self._left.rows.view(0, count),
            view,
            empty if right.values is None else right.values.arrays(names),
            self._options.aggregations,
            entities=len(self._keys),
            threads=self._threads,
        )
