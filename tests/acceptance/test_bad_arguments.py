"""Arguments of the engine's plain functions, given what they cannot be: a typed error before any work."""

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import featurestore as fs
from featurestore.core.time import instant_ns

LEFT = pa.table({"t": [1, 2], "k": ["a", "b"]})
RIGHT = pa.table({"t": [1, 2], "k": ["a", "b"], "v": [1.0, 2.0]})
RULE: dict[str, Any] = {
    "on": "t", "by": "k", "direction": "backward", "tolerance": "5s", "boundary": "inclusive",
    "created_on": "t", "columns": ["v"], "prefix": "p", "matched_timestamp": "m",
}  # fmt: skip
JOIN = {**RULE, "right_on": "t", "right_by": "k"}
STREAM = {**JOIN, "lateness": "1s", "late": "drop", "max_pending_rows": 9, "aggregations": []}
WRONG: list[Any] = [
    *(0, -1, 1.5, True, 2**70, float("nan"), b"x", "", "zz", [], {}, (), [None], [1], ["zz"], ["t", "t"]),
    *({"t": "k"}, object(), pd.NaT, timedelta(-1), np.timedelta64("NaT"), pd.Timestamp("2020"), "1mo", "-5s"),
    *(datetime(2020, 1, 1), fs.Entity("x"), pa.int64(), LEFT, lambda: 1, [["t"]], None),  # noqa: DTZ001
]


def _asof(**given: Any) -> None:
    fs.asof_join(LEFT, RIGHT, **given)


def _align(**given: Any) -> None:
    fs.align(LEFT, {"right": fs.AsOf(RIGHT, **given)}, on="t", by="k")


def _stream(**given: Any) -> None:
    join = fs.StreamingJoin(**given)
    join.push_right(RIGHT)
    join.push_left(LEFT)
    join.advance_watermark(10**10)
    join.flush()


@pytest.mark.parametrize(
    ("call", "good", "argument"),
    [
        *((_asof, JOIN, argument) for argument in JOIN),
        *((_align, {**RULE, "nulls": "keep", "age": "a"}, argument) for argument in [*RULE, "nulls", "age"]),
        *((_stream, STREAM, argument) for argument in STREAM),
    ],
)
def test_a_rule_that_cannot_be_right_is_refused_by_a_typed_error(
    call: Any, good: dict[str, Any], argument: str
) -> None:
    refused = 0
    for value in WRONG:
        try:
            call(**{**good, argument: value})
        except fs.FeatureStoreError:
            refused += 1
    assert refused >= 10


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_a_number_of_threads_is_a_positive_integer(threads: Any) -> None:
    with pytest.raises(fs.DefinitionError, match="threads is"):
        fs.align(LEFT, {"right": fs.AsOf(RIGHT)}, on="t", by="k", threads=threads)


@pytest.mark.parametrize(
    "value", [pd.NaT, np.timedelta64("NaT"), np.timedelta64(5, "s"), np.datetime64("NaT")]
)
def test_what_is_no_time_is_no_instant(value: Any) -> None:
    with pytest.raises(fs.DefinitionError, match=r"now is .*not a"):
        instant_ns(value, what="now")
