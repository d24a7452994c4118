"""SQL scalar expressions over one row: typed at plan, evaluated exactly, offline and online alike.

An expression is text that a definition can hold for years: it reads the columns of one row and nothing
else (see `parsing`). DuckDB types and evaluates it in a sandbox; plain arithmetic runs in NumPy.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from featurestore.catalog.arithmetic import Run, compile_arithmetic, read_column, write_column
from featurestore.catalog.nanoseconds import exact_node, text_of_node
from featurestore.catalog.parsing import (
    Expression,
    check_scalar,
    columns_of,
    expression_node,
    parse_expression,
    parse_many,
    remember,
)
from featurestore.core.names import near
from featurestore.errors import DefinitionError, ExpressionError
from featurestore.storage.duckdb_sql import quoted, sandbox

__all__ = [
    "Expression",
    "check_expression",
    "check_expressions",
    "check_scalar",
    "columns_of",
    "evaluate",
    "parse_expression",
    "parse_many",
]

_BATCH: Final = 200
_NANOS: Final = pa.timestamp("ns", "UTC")
_EXACT: dict[tuple[str, frozenset[tuple[str, ...]]], str] = {}


def _exact_sql(expression: Expression, schema: pa.Schema) -> str:
    """Return the text to run over a schema: nanosecond times are never rounded."""
    times = frozenset(path for path in expression.paths if _type_at(schema, path) == _NANOS)
    if not times and "_ns" not in expression.sql.lower():
        return expression.sql
    key = (expression.sql, times)
    known = _EXACT.get(key)
    if known is None:
        written = expression_node(expression.sql)
        node = exact_node(written, lambda path: path in times, expression.sql)
        known = remember(_EXACT, key, expression.sql if node is written else text_of_node(node))
    return known


def _type_at(schema: pa.Schema, path: Sequence[str]) -> pa.DataType:
    kind = schema.field(path[0]).type
    for part in path[1:]:
        kind = kind.field(part).type
    return kind


def check_expression(sql: str, schema: pa.Schema) -> pa.DataType:
    """Return the type an expression has over rows of a schema.

    Raises:
        DefinitionError: it is not a scalar expression over one row, names a column that is not there,
            or does not fit the columns' types.
    """
    return check_expressions({"expression": sql}, schema)["expression"]


_TYPES: dict[tuple[str, pa.Schema], pa.DataType] = {}
_TYPES_MAX: Final = 200_000


def check_expressions(expressions: Mapping[str, str], schema: pa.Schema) -> dict[str, pa.DataType]:
    """Return the types of many expressions over one schema; results are remembered.

    An expression that is only a column has that column's type, whatever it is: `evaluate` hands it on.

    Raises:
        DefinitionError: as `check_expression`, naming the expression.
    """
    known: dict[str, pa.DataType] = {}
    asked: dict[str, tuple[str, pa.Schema]] = {}
    for name, sql in expressions.items():
        expression = parse_expression(sql)
        if schema.names.count(expression.bare_column) == 1:
            known[name] = schema.field(expression.bare_column).type
            _check_result(sql, known[name])
            continue
        key = (sql, _read_schema(expression, schema))
        if key in _TYPES:
            known[name] = _TYPES[key]
        else:
            asked[name] = key
    names = list(asked)
    for start in range(0, len(names), _BATCH):
        known |= _infer({name: asked[name] for name in names[start : start + _BATCH]})
    return {name: known[name] for name in expressions}


def _infer(asked: Mapping[str, tuple[str, pa.Schema]]) -> dict[str, pa.DataType]:
    fields = {field.name: field for _, schema in asked.values() for field in schema}
    schema = pa.schema(list(fields.values()))
    try:
        types = _bound_types([parse_expression(sql) for sql, _ in asked.values()], schema)
    except (DefinitionError, ExpressionError):
        types = [_bound_types([parse_expression(sql)], read)[0] for sql, read in asked.values()]
    if len(_TYPES) > _TYPES_MAX:
        _TYPES.clear()
    found = dict(zip(asked, types, strict=True))
    for name, kind in found.items():
        _check_result(asked[name][0], kind)
        _TYPES[asked[name]] = kind
    return found


def _bound_types(expressions: Sequence[Expression], schema: pa.Schema) -> list[pa.DataType]:
    rows = _with_a_column(schema.empty_table())
    query = f"SELECT {_projection(expressions, schema)} FROM rows"  # noqa: S608 -- parsed and checked
    try:
        bound = sandbox().query(query, {"rows": rows})
    except (DefinitionError, ExpressionError) as error:
        sql = "; ".join(e.sql for e in expressions)
        shown = ", ".join(f"{f.name} {f.type}" for f in schema) or "no columns"
        raise DefinitionError(
            f"expression {sql!r} does not fit {shown}: {_said(error.message)}",
            hint="compute with epoch_ns(ts), or in microseconds after a cast: ts::TIMESTAMPTZ"
            if "TZ_NS" in error.message
            else "cast a column to the type that is meant",
            sql=sql,
        ) from error
    return list(bound.schema.types)


def _said(message: str) -> str:
    """Keep DuckDB's sentence and leave out its excerpt and its list of candidates."""
    told = message.rpartition(" is not valid here: ")[2].split("\n\nLINE")[0].split("\n\tCandidate")[0]
    return " ".join(told.removeprefix("Binder Error: ").split())


def _check_result(sql: str, kind: pa.DataType) -> None:
    if pa.types.is_null(kind):
        raise DefinitionError(
            f"expression {sql!r} is always null, of no type",
            hint="cast it, such as NULL::DOUBLE",
            sql=sql,
        )
    if pa.types.is_interval(kind):
        raise DefinitionError(
            f"expression {sql!r} gives an SQL interval, which has no exact length",
            hint="subtract nanoseconds: epoch_ns(a) - epoch_ns(b)",
            sql=sql,
        )


def _read_schema(expression: Expression, schema: pa.Schema) -> pa.Schema:
    fields: list[pa.Field] = []
    for path in expression.paths:
        index = schema.get_field_index(path[0])
        if index < 0:
            raise DefinitionError(
                f"expression {expression.sql!r} reads column {path[0]!r}, which is not there"
                + (" exactly once" if path[0] in schema.names else ""),
                hint=_near_column(path[0], schema.names),
                column=path[0],
            )
        field = schema.field(index)
        _check_readable(expression.sql, field)
        _check_path(expression.sql, path, field)
        if field not in fields:
            fields.append(pa.field(field.name, _as_read(field.type)))
    lowered: dict[str, str] = {}
    for field in fields:
        other = lowered.setdefault(field.name.lower(), field.name)
        if other != field.name:
            raise DefinitionError(
                f"expression {expression.sql!r} reads {other!r} and {field.name!r}, one name in SQL",
                hint="rename one in the source's query",
            )
    return pa.schema(dict.fromkeys(fields))


def _as_read(kind: pa.DataType) -> pa.DataType:
    """Return the type a column has in SQL: float16 is float32, which holds each of its values.

    Naive nanoseconds are UTC, and so keep clear of silent casts.
    """
    if pa.types.is_float16(kind):
        return pa.float32()
    return _NANOS if pa.types.is_timestamp(kind) and kind.unit == "ns" else kind


def _near_column(column: str, names: Sequence[str]) -> str:
    same = [name for name in names if name.lower() == column.lower() and name != column]
    return f"upper and lower case count: did you mean {same[0]!r}?" if same else near(column, names)


def _check_readable(sql: str, field: pa.Field) -> None:
    packed = pa.types.is_dictionary(field.type)
    kind = field.type.value_type if packed else field.type
    unread = packed and pa.types.is_float16(kind)
    if pa.types.is_duration(kind) or pa.types.is_decimal256(kind) or unread:
        raise DefinitionError(
            f"expression {sql!r} reads {field.name!r} of type {field.type}, which SQL cannot hold exactly",
            hint="list the column as a plain feature, or convert it in the source",
            column=field.name,
        )


def _check_path(sql: str, path: Sequence[str], field: pa.Field) -> None:
    kind = field.type
    for depth, part in enumerate(path[1:], start=1):
        if not pa.types.is_struct(kind):
            raise DefinitionError(
                f"expression {sql!r}: {'.'.join(path[:depth])} is {kind} and has no field {part!r}",
                hint="write a column's plain name",
                column=path[0],
            )
        index = kind.get_field_index(part)
        if index < 0:
            names = [kind.field(i).name for i in range(kind.num_fields)]
            raise DefinitionError(
                f"expression {sql!r} reads {'.'.join(path[: depth + 1])}, which is not there",
                hint=near(part, names),
                column=path[0],
            )
        kind = kind.field(index).type


def _projection(expressions: Iterable[Expression], schema: pa.Schema) -> str:
    texts = (_exact_sql(expression, schema) for expression in expressions)
    return ", ".join(f"(\n{sql}\n) AS {quoted(str(i))}" for i, sql in enumerate(texts))


def _with_a_column(table: pa.Table) -> pa.Table:
    # A table without columns has no rows either, in DuckDB.
    return table if table.num_columns else table.append_column("", pa.nulls(table.num_rows, pa.int8()))


def evaluate(expressions: Mapping[str, str], table: pa.Table) -> dict[str, pa.Array]:
    """Compute expressions for each row, in the rows' order.

    Values keep their exactness: timestamps their nanoseconds, decimals their digits, NaN stays NaN. An
    expression that is only a column gives that column unchanged, whatever its type.

    Raises:
        DefinitionError: an expression does not fit the table.
        ExpressionError: an expression failed on a value, such as an integer overflow; it is named.

    Cost: microseconds for arithmetic (see `arithmetic`); anything else half a millisecond for a small table
    (the query is bound once per schema), then DuckDB's speed.
    """
    out: dict[str, pa.Array] = {}
    computed: dict[str, Expression] = {}
    arithmetic: dict[str, Program] = {}
    for name, sql in expressions.items():
        expression = parse_expression(sql)
        program = _program(expression, table.schema)
        if expression.bare_column is not None and expression.bare_column in table.column_names:
            out[name] = _one_array(table.column(expression.bare_column))
        elif program is not None:
            arithmetic[name] = program
        else:
            computed[name] = expression
    if arithmetic:
        out |= _run_arithmetic(arithmetic, table)
    if computed:
        out |= _compute(computed, table)
    return {name: out[name] for name in expressions}


@dataclass(frozen=True, slots=True)
class Program:
    """An expression that is arithmetic over columns of known types, ready to run."""

    columns: tuple[str, ...]
    type: pa.DataType
    run: Run


_PROGRAMS: dict[tuple[str, tuple[pa.DataType | None, ...]], Program | None] = {}


def _program(expression: Expression, schema: pa.Schema) -> Program | None:
    """Return the NumPy program of an expression, `None` where DuckDB is needed; decided once per types."""
    columns = expression.columns
    types = tuple(schema.field(c).type if schema.get_field_index(c) >= 0 else None for c in columns)
    key = (expression.sql, types)
    if key in _PROGRAMS:
        return _PROGRAMS[key]
    known = {c: kind for c, kind in zip(columns, types, strict=True) if kind is not None}
    made = compile_arithmetic(expression_node(expression.sql), known) if len(known) == len(types) else None
    program = None
    if made is not None and check_expression(expression.sql, schema) == made[0]:
        program = Program(columns, *made)
    return remember(_PROGRAMS, key, program)


def _run_arithmetic(programs: Mapping[str, Program], table: pa.Table) -> dict[str, pa.Array]:
    names = dict.fromkeys(c for program in programs.values() for c in program.columns)
    columns = {name: read_column(_one_array(table.column(name))) for name in names}
    with np.errstate(all="ignore"):
        return {
            name: write_column(program.run(columns), table.num_rows, program.type)
            for name, program in programs.items()
        }


def _compute(expressions: Mapping[str, Expression], table: pa.Table) -> dict[str, pa.Array]:
    for expression in expressions.values():
        _read_schema(expression, table.schema)
    read = dict.fromkeys(column for e in expressions.values() for column in e.columns)
    rows = _rows_as_read(table.select(list(read)))
    if not read:
        rows = pa.table({"": pa.nulls(table.num_rows, pa.int8())})
    try:
        result = sandbox().select(_projection(expressions.values(), rows.schema), rows)
    except ExpressionError:
        _name_the_failing(expressions, rows)
        raise
    except DefinitionError:
        check_expressions({name: e.sql for name, e in expressions.items()}, rows.schema)
        raise
    return {name: _one_array(result.column(i)) for i, name in enumerate(expressions)}


def _rows_as_read(rows: pa.Table) -> pa.Table:
    schema = pa.schema([pa.field(f.name, _as_read(f.type)) for f in rows.schema])
    return rows.cast(schema) if schema != rows.schema else rows.replace_schema_metadata(None)


def _name_the_failing(expressions: Mapping[str, Expression], rows: pa.Table) -> None:
    for name, expression in expressions.items():
        try:
            sandbox().select(_projection([expression], rows.schema), rows)
        except ExpressionError as error:
            raise ExpressionError(
                f"{name} = {expression.sql!r} failed: {_said(error.message)}",
                hint="TRY(expression) gives null where a row fails",
                sql=expression.sql,
                name=name,
            ) from error


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
