"""Arrow values as Python and JSON hold them, with pandas and without."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from featurestore.core import python_values as module
from featurestore.core.python_values import as_pandas, json_value, python_rows, python_values
from featurestore.errors import MissingDependencyError

NS = pa.timestamp("ns", "UTC")
SPAN = pa.duration("ns")


@pytest.fixture(params=[True, False], ids=["with pandas", "without pandas"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_has_pandas", lambda: request.param)


def _nanos(value: Any) -> Any:
    """Times of either library as their nanoseconds, to the depth they are in."""
    if isinstance(value, (pd.Timestamp, pd.Timedelta)):
        return value.value
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return int(value.astype(np.int64))
    if isinstance(value, dict):
        return {k: _nanos(v) for k, v in value.items()}
    return type(value)(map(_nanos, value)) if isinstance(value, (list, tuple)) else value


def _times(values: list[int | None], kind: pa.DataType) -> pa.Array:
    return pa.array(values, pa.int64()).cast(kind)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(
    ("column", "expected"),
    [
        pytest.param(_times([1, None, -1], NS), [1, None, -1], id="times"),
        pytest.param(_times([1, None], SPAN), [1, None], id="durations"),
        pytest.param(_times([7, 7], NS).dictionary_encode(), [7, 7], id="a dictionary"),
        pytest.param(
            pa.ListArray.from_arrays([0, 2, 3], _times([1, None, 3], NS)), [[1, None], [3]], id="lists"
        ),
        pytest.param(
            pa.FixedSizeListArray.from_arrays(_times([1, 2], SPAN), 2), [[1, 2]], id="lists of a fixed size"
        ),
        pytest.param(
            pa.StructArray.from_arrays([_times([1], NS), pa.array(["x"])], ["t", "s"]),
            [{"t": 1, "s": "x"}],
            id="structs",
        ),
        pytest.param(
            pa.MapArray.from_arrays([0, 1], pa.array(["k"]), _times([5], NS)), [[("k", 5)]], id="maps"
        ),
        pytest.param(pa.array([1, None]), [1, None], id="integers"),
        pytest.param(pa.chunked_array([_times([3], NS), _times([4], NS)]), [3, 4], id="chunks"),
    ],
)
def test_values_are_exact_to_the_nanosecond(column: pa.Array, expected: Any) -> None:
    assert _nanos(python_values(column)) == expected
    assert _nanos(python_rows(pa.table({"c": column}))) == [{"c": value} for value in expected]


@pytest.mark.usefixtures("either_way")
def test_coarser_times_are_datetimes() -> None:
    column = _times([1], pa.timestamp("us", "UTC"))
    assert python_values(column) == [datetime(1970, 1, 1, microsecond=1, tzinfo=UTC)]


@pytest.mark.usefixtures("either_way")
def test_json_has_every_digit_of_a_time_and_no_number_that_json_has_not() -> None:
    at = python_values(_times([1_700_000_000_000_000_001], NS))[0]
    row = {"t": [at], "f": (1.5, float("nan"), float("-inf")), "b": b"\x00\xff", 3: True}
    assert json_value(row) == {
        "t": ["2023-11-14T22:13:20.000000001Z"],
        "f": [1.5, None, None],
        "b": "AP8=",
        "3": True,
    }
    assert json_value(datetime(3000, 1, 1, tzinfo=UTC)) == "3000-01-01 00:00:00+00:00"


def test_a_frame_without_pandas_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_has_pandas", lambda: False)
    with pytest.raises(MissingDependencyError, match="pip install pandas"):
        as_pandas(pa.table({"a": [1]}))
