"""The as-of join of tables: shape, types and messages, and generated tables against the oracle."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.core.time import INT64_MAX, UNIT_NS
from featurestore.errors import (
    DefinitionError,
    FeatureStoreError,
    SchemaError,
    StorageError,
    TimeOverflowError,
)
from featurestore.temporal.join import asof_join
from featurestore.temporal.rows import BOUNDARIES, DIRECTIONS
from featurestore.testing.oracle import asof_oracle
from featurestore.testing.strategies import chunked

LEFT = pa.table({"ts": [10, 30, 20, 20], "k": ["a", "a", "b", None], "x": [1, 2, 3, 4]})
RIGHT = pa.table({"ts": [9, 25, 20, 31], "k": ["a", "a", "b", "a"], "v": [1.0, None, 3.0, 4.0]})


def test_one_row_per_left_row_in_order_left_columns_first() -> None:
    joined = asof_join(LEFT, RIGHT, on="ts", by="k", prefix="r_", matched_timestamp="seen")
    assert joined.column_names == ["ts", "k", "x", "r_v", "seen"]
    assert joined.select(["ts", "k", "x"]).equals(LEFT)
    assert joined["r_v"].to_pylist() == [1.0, None, 3.0, None]
    assert joined["seen"].to_pylist() == [9, 25, 20, None]


def test_a_null_in_the_chosen_row_stays_null_though_an_older_row_has_a_value() -> None:
    joined = asof_join(LEFT, RIGHT, on="ts", by="k", matched_timestamp="seen")
    assert (joined["v"][1].as_py(), joined["seen"][1].as_py()) == (None, 25)


def test_duplicates_neither_fan_out_nor_vanish() -> None:
    left = pa.concat_tables([LEFT, LEFT])
    right = pa.concat_tables([RIGHT, RIGHT])
    joined = asof_join(left, right, on="ts", by="k")
    assert joined["x"].to_pylist() == LEFT["x"].to_pylist() * 2
    assert joined["v"].to_pylist() == [1.0, None, 3.0, None] * 2


def test_columns_and_names_of_the_right_side() -> None:
    right = RIGHT.rename_columns(["when", "who", "v"]).append_column("w", pa.array([1, 2, 3, 4], pa.int8()))
    joined = asof_join(LEFT, right, on="ts", right_on="when", by="k", right_by="who", columns=["w"])
    assert joined.column_names == ["ts", "k", "x", "w"]
    assert joined["w"].to_pylist() == [1, 2, 3, None]
    assert joined.schema.field("w").type == pa.int8()
    everything = asof_join(LEFT, right, on="ts", right_on="when", by="k", right_by="who")
    assert everything.column_names == ["ts", "k", "x", "v", "w"]
    none = asof_join(LEFT, right, on="ts", right_on="when", by="k", right_by="who", columns=[])
    assert none.equals(LEFT)


def test_metadata_of_left_and_of_columns_is_kept_and_not_null_is_not_claimed() -> None:
    left = LEFT.replace_schema_metadata({"a": "b"})
    field = pa.field("v", pa.float64(), nullable=False, metadata={"unit": "usd"})
    right = pa.table([[1], ["a"], [2.0]], schema=pa.schema([("ts", pa.int64()), ("k", pa.string()), field]))
    joined = asof_join(left, right, on="ts", by="k")
    assert joined.schema.metadata == {b"a": b"b"}
    assert joined.schema.field("v").metadata == {b"unit": b"usd"}
    assert joined.schema.field("v").nullable


def test_created_times_hide_a_backfill_until_it_was_there() -> None:
    right = pa.table({"ts": [5, 6, 7], "made": [5, 50, None], "v": [1, 2, 3]})
    left = pa.table({"ts": [10, 49, 50]})
    joined = asof_join(left, right, on="ts", created_on="made", columns=["v"])
    assert joined["v"].to_pylist() == [1, 1, 2]


def test_units_zones_dates_and_integers_mix_exactly() -> None:
    left = pa.table({"ts": pa.array([1_000_000_000, 999_999_999], pa.timestamp("ns", "Asia/Tokyo"))})
    for right_time in (
        pa.array([1], pa.timestamp("s", "America/New_York")),
        pa.array([1_000], pa.timestamp("ms")),
        pa.array([1_000_000_000], pa.int64()),
    ):
        joined = asof_join(left, pa.table({"t": right_time, "v": [7]}), on="ts", right_on="t")
        assert joined["v"].to_pylist() == [7, None]
    dates = pa.table({"t": pa.array([0], pa.date32()), "v": [7]})
    assert asof_join(left, dates, on="ts", right_on="t")["v"].to_pylist() == [7, 7]


@pytest.mark.parametrize("tolerance", ["5us", 5000, timedelta(microseconds=5), np.timedelta64(5, "us")])
def test_every_way_to_write_a_tolerance(tolerance: Any) -> None:
    right = pa.table({"ts": [0], "v": [1]})
    left = pa.table({"ts": [5000, 5001]})
    assert asof_join(left, right, on="ts", tolerance=tolerance)["v"].to_pylist() == [1, None]


def test_tables_of_every_library_join_each_other() -> None:
    polars_left: Any = pl.from_arrow(LEFT)
    relation = duckdb.from_arrow(RIGHT)
    for left in (LEFT, polars_left, LEFT.to_batches()[0], LEFT.to_pydict()):
        for right in (RIGHT, pl.from_arrow(RIGHT), relation, RIGHT.to_pandas(), RIGHT.to_reader()):
            joined = asof_join(left, right, on="ts", by="k", matched_timestamp="seen")
            assert joined["seen"].to_pylist() == [9, 25, 20, None]
    frame = asof_join(LEFT.to_pandas(), RIGHT, on="ts", by="k", columns=[]).to_pandas()
    pd.testing.assert_frame_equal(frame, LEFT.to_pandas())


def test_slices_and_chunks_are_read_where_they_are() -> None:
    left = pa.concat_tables([LEFT.slice(1, 2), LEFT.slice(0, 0), LEFT.slice(3)])
    right = pa.concat_tables([RIGHT.slice(0, 1), RIGHT.slice(1)])
    assert asof_join(left, right, on="ts", by="k", matched_timestamp="m")["m"].to_pylist() == [25, 20, None]


def test_empty_tables() -> None:
    assert asof_join(LEFT.slice(0, 0), RIGHT, on="ts", by="k").num_rows == 0
    joined = asof_join(LEFT, RIGHT.slice(0, 0), on="ts", by="k", matched_timestamp="m")
    assert joined["v"].to_pylist() == joined["m"].to_pylist() == [None] * 4
    assert joined.schema.field("v").type == pa.float64()
    assert asof_join(LEFT, RIGHT.schema.empty_table(), on="ts", by="k").num_rows == 4


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"on": "tz"}, SchemaError, "left has no column 'tz'"),
        ({"right_on": "tz"}, SchemaError, "right has no column 'tz'"),
        ({"by": "kk"}, SchemaError, "left has no column 'kk'"),
        ({"right_by": "kk"}, SchemaError, "right has no column 'kk'"),
        ({"by": ["k", "x"]}, SchemaError, "right has no column 'x'"),
        ({"right_by": ["k", "v"]}, DefinitionError, r"right is joined by \['k', 'v'\], left by \['k'\]"),
        ({"by": None, "right_by": "k"}, DefinitionError, "without by"),
        ({"on": "k"}, SchemaError, "time column 'k' of left is of type string"),
        ({"right_on": "v"}, SchemaError, "time column 'v' of right is of type double"),
        ({"created_on": "made"}, SchemaError, "right has no column 'made'"),
        ({"created_on": "v"}, SchemaError, "time column 'v' of right is of type double"),
        ({"by": "x", "right_by": "k"}, SchemaError, "key column 'k' of right is string, where 'x' of left"),
        ({"by": "x", "right_by": "v"}, SchemaError, "key column 'v' is of type double"),
        ({"columns": ["w"]}, SchemaError, "right has no column 'w'"),
        ({"columns": ["v", "v"]}, SchemaError, "two columns named 'v'"),
        ({"columns": ["ts"]}, SchemaError, "two columns named 'ts'"),
        ({"matched_timestamp": "x"}, SchemaError, "two columns named 'x'"),
        ({"matched_timestamp": "v"}, SchemaError, "two columns named 'v'"),
        ({"direction": "back"}, DefinitionError, "direction of 'right' is 'back'"),
        ({"boundary": "left"}, DefinitionError, "boundary of 'right' is 'left'"),
        ({"tolerance": -1}, DefinitionError, "tolerance of 'right' is -1"),
        ({"tolerance": "1 month"}, DefinitionError, "tolerance of 'right' is '1 month'"),
        ({"tolerance": np.timedelta64(1, "M")}, DefinitionError, "no exact length"),
        ({"tolerance": 1.5}, DefinitionError, "tolerance of 'right' is 1.5"),
        ({"tolerance": "300000d"}, TimeOverflowError, "longer than int64"),
    ],
)
def test_bad_input_is_refused_by_name_before_any_work(
    change: dict[str, Any], error: type[FeatureStoreError], message: str
) -> None:
    with pytest.raises(error, match=message):
        asof_join(LEFT, RIGHT, **({"on": "ts", "by": "k"} | change))


def test_tables_that_are_none_are_refused() -> None:
    with pytest.raises(SchemaError, match="left is a int"):
        asof_join(3, RIGHT, on="ts")
    with pytest.raises(SchemaError, match="right is a NoneType"):
        asof_join(LEFT, None, on="ts")
    twice = pa.table([[1], [2]], names=["ts", "ts"])
    with pytest.raises(SchemaError, match="left has two columns named 'ts'"):
        asof_join(twice, RIGHT, on="ts")
    with pytest.raises(SchemaError, match="right cannot be read as an Arrow table"):
        asof_join(LEFT, {"ts": [1, "x"]}, on="ts")
    with pytest.raises(DefinitionError, match="a column name is 1"):
        asof_join(LEFT, RIGHT, on="ts", by=1)  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="a name or prefix of 'right' is None"):
        asof_join(LEFT, RIGHT, on="ts", by="k", prefix=None)  # type: ignore[arg-type]


def test_a_stream_that_fails_is_a_typed_error_that_names_the_side() -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        yield RIGHT.to_batches()[0]
        raise OSError("gone")

    reader = pa.RecordBatchReader.from_batches(RIGHT.schema, batches())
    with pytest.raises(StorageError, match=r"right stopped while it was read: .*gone"):
        asof_join(LEFT, reader, on="ts", by="k")


def test_a_column_that_cannot_be_joined_is_refused_by_name_before_any_work() -> None:
    odd = pa.StructArray.from_arrays([pa.RunEndEncodedArray.from_arrays([2, 4], [1, 2])], ["a"])
    with pytest.raises(SchemaError, match="column 'odd' is of type struct"):
        asof_join(LEFT, RIGHT.append_column("odd", odd), on="ts", by="k")


def test_strings_of_polars_come_through_as_they_are() -> None:
    left = pl.DataFrame({"t": [1, 2]})
    right = pl.DataFrame(
        {"t": [1], "s": ["a value longer than twelve"], "l": [["x", "another one quite long"]]}
    )
    joined = asof_join(left, right, on="t")
    assert joined.schema.field("s").type == pa.table(right).schema.field("s").type
    assert joined["s"].to_pylist() == ["a value longer than twelve"] * 2
    assert joined["l"].to_pylist() == [["x", "another one quite long"]] * 2


def test_a_time_beyond_int64_is_an_overflow_and_not_a_wrap() -> None:
    right = pa.table({"ts": pa.array([2**40], pa.timestamp("s")), "v": [1]})
    with pytest.raises(TimeOverflowError, match=f"time column 'ts' holds {2**40} s"):
        asof_join(LEFT, right, on="ts")


def test_int64_extremes_come_through() -> None:
    left = pa.table({"ts": [-(2**63), INT64_MAX]})
    joined = asof_join(left, left.append_column("v", left["ts"]), on="ts", tolerance=0)
    assert joined["v"].to_pylist() == [-(2**63), INT64_MAX]


KEY_TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int16(), pa.string()),
]


def check_tables(seed: int) -> None:
    """Join two random tables of random layout and hold every output value against the oracle."""
    rng = np.random.default_rng(seed)
    key_count = int(rng.integers(0, 3))
    names = [f"k{place}" for place in range(key_count)]
    unit, other_unit = (str(u) for u in rng.choice(list(UNIT_NS), 2))
    sides = []
    for most, side_unit in ((20, unit), (35, other_unit)):
        count = int(rng.integers(0, most))
        keys = [[None if v < 0 else f"{v:x}" * int(v) for v in rng.integers(-1, 4, count)] for _ in names]
        ticks = rng.integers(0, 6, count) * (10**9 // UNIT_NS[side_unit]) + rng.integers(-1, 2, count)
        times = [None if rng.random() < 0.1 else int(v) for v in ticks]
        sides.append((keys, times, side_unit))
    tables = []
    for keys, times, side_unit in sides:
        zone = [None, "UTC", "Asia/Kolkata"][int(rng.integers(3))]
        cuts = rng.integers(0, 35, int(rng.integers(0, 4))).tolist()
        columns = {
            name: pa.array(values, pa.string()).cast(KEY_TYPES[int(rng.integers(len(KEY_TYPES)))])
            for name, values in zip(names, keys, strict=True)
        }
        columns["ts"] = pa.array(times, pa.timestamp(side_unit, zone))
        columns["made"] = pa.array(
            [None if t is None or rng.random() < 0.1 else t + int(rng.integers(0, 3)) for t in times],
            pa.timestamp(side_unit, zone),
        )
        columns["row"] = pa.array(np.arange(len(times)), pa.int32())
        tables.append(pa.table({name: chunked(column, cuts) for name, column in columns.items()}))
    left, right = tables[0].drop_columns(["made"]).rename_columns([*names, "ts", "x"]), tables[1]
    direction, boundary = str(rng.choice(DIRECTIONS)), str(rng.choice(BOUNDARIES))
    tolerance = None if rng.random() < 0.5 else int(rng.integers(0, 4)) * 10**9
    created = "made" if rng.random() < 0.4 else None
    joined = asof_join(
        left,
        right,
        on="ts",
        by=names,
        direction=direction,
        boundary=boundary,
        tolerance=tolerance,
        created_on=created,
        columns=["row"],
        matched_timestamp="seen",
    )
    expected = asof_oracle(
        *_keys_and_times(left, names, unit),
        *_keys_and_times(right, names, other_unit),
        direction=direction,
        boundary=boundary,
        tolerance_ns=tolerance,
        row_known=None if created is None else _nanos(right["made"], other_unit),
    )
    joined.validate(full=True)
    assert joined.select(left.column_names).equals(left)
    assert [-1 if row is None else row for row in joined["row"].to_pylist()] == expected
    seen = right["ts"].cast(pa.int64()).to_pylist()
    assert joined["seen"].cast(pa.int64()).to_pylist() == [None if r < 0 else seen[r] for r in expected]


def _keys_and_times(table: pa.Table, names: list[str], unit: str) -> tuple[list[Any], list[int | None]]:
    parts = [table[name].to_pylist() for name in names]
    rows = list(zip(*parts, strict=True)) if names else [()] * len(table)
    return [None if None in row else row for row in rows], _nanos(table["ts"], unit)


def _nanos(column: pa.ChunkedArray, unit: str) -> list[int | None]:
    return [None if v is None else v * UNIT_NS[unit] for v in column.cast(pa.int64()).to_pylist()]


@settings(max_examples=900, deadline=None)
@given(st.integers(0, 2**40))
def test_tables_of_any_layout_agree_with_the_oracle(seed: int) -> None:
    check_tables(seed)


@pytest.mark.soak
@pytest.mark.parametrize("block", range(20))
def test_ten_thousand_tables_agree_with_the_oracle(block: int) -> None:
    for seed in range(500):
        check_tables(2**41 + 500 * block + seed)
