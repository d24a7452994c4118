"""Arrow values as Python and JSON hold them: exact to the nanosecond, with pandas and without."""

import base64
import math
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from featurestore.core.time import format_instant, instant_ns
from featurestore.errors import MissingDependencyError, TimeOverflowError

if TYPE_CHECKING:
    import pandas as pd


def python_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return a column as Python objects.

    A time or duration in nanoseconds is a `pandas.Timestamp` or `Timedelta`; where pandas is not installed,
    and Arrow itself refuses, it is a `numpy.datetime64`, in UTC, or a `timedelta64`.
    """
    if _has_pandas() or not _has_nanoseconds(column.type):
        return list(column.to_pylist())
    return [_exact(value) for value in column]


def python_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a table as mappings of `python_values`."""
    if not table.num_columns:
        return [{} for _ in range(table.num_rows)]
    columns = [python_values(column) for column in table.columns]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def json_value(value: Any) -> Any:
    """Return a Python value as JSON holds it.

    Times are ISO 8601 with every digit they have, bytes base64; NaN and infinities, which JSON has not, are
    null; what it does not know is text.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {str(k): json_value(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(v) for v in value]
    return str(time_text(value))


def time_text(value: Any) -> Any:
    """Return a time as ISO 8601 with every digit it has, naive meaning UTC; anything else as it is."""
    if not isinstance(value, (datetime, np.datetime64)):
        return value
    try:
        return format_instant(instant_ns(value))
    except TimeOverflowError:  # years that nanoseconds do not reach
        return str(value)


def as_pandas(table: pa.Table) -> "pd.DataFrame":
    """Return a table as a pandas frame.

    Raises:
        MissingDependencyError: pandas is not installed.
    """
    if not _has_pandas():
        raise MissingDependencyError(
            "to_pandas needs pandas, which is not installed", hint="pip install pandas"
        )
    return table.to_pandas()


@cache
def _has_pandas() -> bool:
    return find_spec("pandas") is not None


def _has_nanoseconds(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _has_nanoseconds(kind.value_type)
    if kind.num_fields:
        return any(_has_nanoseconds(kind.field(at).type) for at in range(kind.num_fields))
    return pa.types.is_temporal(kind) and getattr(kind, "unit", "") == "ns"


def _exact(value: pa.Scalar) -> Any:
    if not value.is_valid:
        return None
    if isinstance(value, pa.DictionaryScalar):
        return _exact(value.value)
    if isinstance(value, pa.StructScalar):
        return {name: _exact(part) for name, part in value.items()}
    if isinstance(value, pa.ListScalar):  # every kind of list, and a map as its entries
        parts = [_exact(part) for part in value.values]
        return [tuple(p.values()) for p in parts] if isinstance(value, pa.MapScalar) else parts
    if getattr(value.type, "unit", "") != "ns":
        return value.as_py()
    exact = np.datetime64 if isinstance(value, pa.TimestampScalar) else np.timedelta64
    return exact(value.value, "ns")
