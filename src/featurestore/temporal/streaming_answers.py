"""What a stream says of left rows: the right row that each takes, whether that is final, and the table."""

from typing import Final

import numpy as np
import pyarrow as pa

from featurestore.core.time import BoolArray, Int64Array
from featurestore.temporal.asof import asof_indices
from featurestore.temporal.gather import gather
from featurestore.temporal.rows import Int32Array, frozen
from featurestore.temporal.sealing import prefix_length, sealed_backward, sealed_reach
from featurestore.temporal.streaming_options import Options
from featurestore.temporal.streaming_side import Batch
from featurestore.temporal.windows import window_aggregate

NO_CODES: Final[Int32Array] = frozen(np.zeros(0, np.int32))
NO_TIMES: Final[Int64Array] = frozen(np.zeros(0, np.int64))


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


def found_rows(
    options: Options, left: Batch, right: Batch | None, *, entities: int, threads: int | None
) -> Int32Array:
    """Return the right row that each left row takes by what is known now, -1 for none."""
    if right is None:
        return np.full(len(left), -1, np.int32)
    return asof_indices(
        left.rows,
        right.rows,
        entities=entities,
        direction=options.direction,
        tolerance_ns=options.tolerance_ns,
        boundary=options.boundary,
        threads=threads,
    )


def sealed_rows(
    options: Options,
    left: Batch,
    right: Batch | None,
    *,
    bound_ns: int,
    entities: int,
    threads: int | None,
) -> tuple[Int32Array, int]:
    """Return the answers of the rows that can come out, and how many those are.

    Args:
        bound_ns: no right row with an older event is accepted any more.
    """
    count = prefix_length(sealed_backward(left.codes, left.event_ns, bound_ns))
    found = found_rows(options, left.slice(0, count), right, entities=entities, threads=threads)
    if options.direction == "backward" or count == 0:
        return found, count
    times = NO_TIMES if right is None else right.event_ns
    sealed: BoolArray = sealed_reach(
        left.codes[:count], left.event_ns[:count], found, times, options.tolerance_ns, bound_ns
    )
    count = prefix_length(sealed)
    return found[:count], count


def answer_table(
    options: Options,
    left: Batch,
    found: Int32Array,
    right: Batch,
    *,
    entities: int,
    threads: int | None,
) -> pa.Table:
    """Return left rows with the right rows they take and their aggregates.

    Args:
        found: `(n,)` positions in `right`.

    Raises:
        ExpressionError: an aggregate that does not fit its type.
    """
    source = right.table
    names = right_columns(options, source.schema)
    columns = [*left.table.columns, *(gather(source.column(n), found) for n in names)]
    if options.matched_timestamp is not None:
        columns.append(gather(source.column(options.right_on), found))
    fields = [*left.table.schema, *right_fields(options, source.schema)]
    if options.aggregations:
        aggregates = window_aggregate(
            left.rows,
            right.rows,
            {name: source.column(name) for name in source.column_names},
            options.aggregations,
            entities=entities,
            threads=threads,
        )
        columns += aggregates.values()
        fields += [pa.field(name, column.type) for name, column in aggregates.items()]
    return pa.table(columns, schema=pa.schema(fields, left.table.schema.metadata))
