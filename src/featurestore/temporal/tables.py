"""Tables as they come in, and the checks that name a column before any work is done."""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from featurestore.core.names import near
from featurestore.errors import DefinitionError, SchemaError, StorageError

_UNNAMED_INDEX: Final = re.compile(r"__index_level_\d+__")  # as pyarrow names it


def as_table(value: Any, what: str) -> pa.Table:
    """Read anything that speaks the Arrow PyCapsule protocol as a table whose column names differ.

    Raises:
        SchemaError: it does not, or two of its columns have the same name.
        StorageError: the stream behind it failed.
    """
    table = read_table(value, what)
    check_unique(table.column_names, f"{what} has two columns named")
    return table


def read_table(value: Any, what: str) -> pa.Table:
    """Read anything that speaks the Arrow PyCapsule protocol as a table; Arrow itself is not copied.

    A mapping of columns is a table, too. The index of a pandas frame is a column where it has a name.

    Raises:
        SchemaError: it does not.
        StorageError: the stream behind it failed.
    """
    if isinstance(value, pa.Table):
        return value
    if isinstance(value, pa.RecordBatch):
        return pa.Table.from_batches([value])
    if (
        isinstance(value, Mapping)
        or hasattr(value, "__arrow_c_stream__")
        or hasattr(value, "__arrow_c_array__")
    ):
        return _converted(value, what)
    raise SchemaError(
        f"{what} is a {type(value).__name__}, which is not a table",
        hint="pass an Arrow, Polars, pandas or DuckDB table: anything with __arrow_c_stream__",
    )


def _converted(value: Any, what: str) -> pa.Table:
    try:
        return _arrow(value)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise SchemaError(
            f"{what} cannot be read as an Arrow table: {error}",
            hint="pass a table of Arrow, Polars, pandas or DuckDB, or a mapping of columns",
        ) from error
    except OSError as error:
        raise StorageError(f"{what} stopped while it was read: {error}") from error


def _arrow(value: Any) -> pa.Table:
    pandas = sys.modules.get("pandas")  # whoever holds a frame has imported it
    if pandas is None or not isinstance(value, pandas.DataFrame):
        return pa.table(value)
    # An index that nobody named only numbers rows: what stays behind when pandas filters or sorts a frame.
    named = any(name is not None for name in value.index.names)
    table = pa.Table.from_pandas(value, preserve_index=named)
    return table.drop_columns([name for name in table.column_names if _UNNAMED_INDEX.fullmatch(name)])


def check_unique(names: Iterable[str], problem: str, hint: str = "") -> None:
    """Check that no name comes twice.

    Raises:
        SchemaError: one does; the message is `problem` and the name.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise SchemaError(f"{problem} {name!r}", hint=hint, column=name)
        seen.add(name)


def column_of(table: pa.Table, name: str, what: str) -> pa.ChunkedArray:
    """Return a column by name.

    Raises:
        SchemaError: there is none; the hint lists near names.
    """
    if name not in table.column_names:
        raise SchemaError(
            f"{what} has no column {name!r}", hint=near(str(name), table.column_names), column=name
        )
    return table.column(name)


def names_of(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return one name, several or none as a tuple.

    Raises:
        DefinitionError: something else than names.
    """
    if value is None:
        return ()
    names = (value,) if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)
    for name in names:
        check_text(name, "a column name")
    return names


def check_text(value: object, what: str) -> None:
    """Check that a name is text.

    Raises:
        DefinitionError: it is not.
    """
    if not isinstance(value, str):
        raise DefinitionError(
            f"{what} is {value!r}, which is not text",
            hint="names of columns, prefixes and streams are text",
            value=value,
        )
