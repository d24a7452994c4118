"""Single edges of the design page that a newcomer would try first."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featurestore as fs

UTC = pa.timestamp("ns", "UTC")


def test_a_polars_right_side_with_strings_joins() -> None:
    right = pl.DataFrame({"t": [1], "s": ["a long string beside short ones"], "l": [["x"]], "b": [b"y"]})
    out = fs.asof_join(pl.DataFrame({"t": [1, 0]}), right, on="t")
    assert out.column("s").to_pylist() == ["a long string beside short ones", None]
    assert out.column("l").to_pylist() == [["x"], None]
    assert out.column("b").to_pylist() == [b"y", None]


def test_a_pandas_tolerance_keeps_its_nanoseconds() -> None:
    left, right = pa.table({"t": [501, 500]}), pa.table({"t": [0], "v": [7]})
    out = fs.asof_join(left, right, on="t", tolerance=pd.Timedelta("500ns"))
    assert out.column("v").to_pylist() == [None, 7]


def test_an_unsigned_key_never_meets_the_negative_number_of_its_bits() -> None:
    left = pa.table({"t": [5] * 3, "k": pa.array([2**64 - 1, 2**63, 7], pa.uint64())})
    right = pa.table({"t": [1] * 3, "k": pa.array([-1, -(2**63), 7], pa.int64()), "v": [1, 2, 3]})
    assert fs.asof_join(left, right, on="t", by="k").column("v").to_pylist() == [None, None, 3]


@pytest.mark.parametrize("parts", [([1, 12], [23, 3]), (["1", "12"], ["23", "3"])])
def test_composite_keys_never_collide(parts: tuple[list[Any], list[Any]]) -> None:
    left = pa.table({"t": [5, 5], "a": parts[0], "b": parts[1]})
    right = left.slice(1).append_column("v", pa.array([1]))
    assert fs.asof_join(left, right, on="t", by=["a", "b"]).column("v").to_pylist() == [None, 1]


def test_times_at_the_ends_of_int64_compare_exactly() -> None:
    ends = [-(2**63), 2**63 - 1]
    right = pa.table({"t": ends, "v": [1, 2]})
    out = fs.asof_join(pa.table({"t": [0, 1, -1, *ends]}), right, on="t", direction="nearest")
    assert out.column("v").to_pylist() == [2, 2, 1, 1, 2]


def test_the_last_microsecond_of_2262_meets_its_nanoseconds() -> None:
    micros = (2**63 - 1) // 1000
    left = pa.table({"t": pa.array([micros], pa.timestamp("us", "Asia/Tokyo"))})
    right = pa.table({"t": pa.array([micros * 1000, micros * 1000 + 1]), "v": [1, 2]})
    assert fs.asof_join(left, right, on="t").column("v").to_pylist() == [1]


def test_the_index_of_a_pandas_frame_is_a_column_where_it_has_a_name() -> None:
    left = pd.DataFrame({"t": [3, 1, 2], "x": [1, 2, 3]}, index=[7, 3, 11])
    right = pd.DataFrame({"t": [2, 1], "v": [1.0, 2.0]}, index=[9, 1])
    out = fs.asof_join(left, right, on="t")
    assert out.to_pydict() == {"t": [3, 1, 2], "x": [1, 2, 3], "v": [1.0, 2.0, 1.0]}
    assert out.to_pandas()["v"].tolist() == [1.0, 2.0, 1.0]
    named = fs.asof_join(left.rename_axis("row"), right.set_index("t"), on="t")
    assert named.column_names == ["t", "x", "row", "v"]
    stream = fs.StreamingJoin("t")
    stream.push_right(right)
    stream.push_left(left)
    stream.push_left(left.reset_index(drop=True))
    assert stream.flush().column_names == out.column_names


@pytest.mark.parametrize(
    "tolerance", [-1, "-5s", "5 parsecs", "", 1.5, True, "1mo", 2**63, np.timedelta64(1, "M"), "1.5s"]
)
def test_a_tolerance_that_cannot_be_exact_is_refused(tolerance: Any) -> None:
    table = pa.table({"t": [1]})
    with pytest.raises((fs.DefinitionError, fs.TimeOverflowError)):
        fs.asof_join(table, pa.table({"t": [1], "v": [1]}), on="t", tolerance=tolerance)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.int64(), pa.binary(4), pa.bool_(), pa.dictionary(pa.int8(), pa.string())]
)
def test_tables_without_a_single_chunk_join(kind: pa.DataType) -> None:
    schema = pa.schema([("t", pa.int64()), ("k", kind), ("j", pa.int8())])
    left = pa.table([pa.chunked_array([], f.type) for f in schema], schema=schema)
    right = left.append_column("v", pa.chunked_array([], pa.string_view()))
    out = fs.asof_join(left, right, on="t", by=["k", "j"])
    assert (out.num_rows, out.column_names) == (0, ["t", "k", "j", "v"])


@pytest.mark.parametrize("direction", ["backward", "forward", "nearest"])
@pytest.mark.parametrize("kind", [pa.string(), pa.int8(), pa.dictionary(pa.int8(), pa.string()), pa.null()])
def test_a_key_column_without_a_type_matches_nothing(kind: pa.DataType, direction: str) -> None:
    typed = pa.table({"t": [1, 2], "k": pa.nulls(2, kind), "j": [7, 7]})
    if not pa.types.is_null(kind):
        words = pa.array(["1", "2"]) if not pa.types.is_integer(kind) else pa.array([1, 2])
        typed = typed.set_column(1, "k", words.cast(kind))
    untyped = pa.table({"t": [1, 2], "k": pa.nulls(2), "j": [7, 7], "v": [1, 2]})
    for by in ("k", ["j", "k"]):
        out = fs.asof_join(typed, untyped, on="t", by=by, columns=["v"], direction=direction)
        assert out["v"].to_pylist() == [None, None]
        right = typed.rename_columns(["t", "k", "w"] if by == "k" else ["t", "k", "j"])
        out = fs.asof_join(untyped, right.append_column("x", pa.array([1, 2])), on="t", by=by, columns=["x"])
        assert out["x"].to_pylist() == [None, None]


@pytest.mark.parametrize(
    ("query", "error"),
    [
        (
            "select *, lead(bid) over (partition by symbol order by event_timestamp) nxt from source",
            fs.LeakageError,
        ),
        (
            "select symbol, max(event_timestamp) event_timestamp, avg(bid) bid from source group by 1",
            fs.LeakageError,
        ),
        ("select * exclude (bid), random() bid from source", fs.DefinitionError),
        ("select * from source where event_timestamp < now()", fs.DefinitionError),
        ("select * from read_parquet('quotes.parquet')", fs.DefinitionError),
        ("copy source to 'elsewhere.csv'", fs.DefinitionError),
    ],
)
def test_a_query_that_looks_ahead_or_elsewhere_is_refused(
    tmp_path: Path, query: str, error: type[Exception]
) -> None:
    table = pa.table({"symbol": ["A"], "event_timestamp": pa.array([1], UTC), "bid": [1.0]})
    pq.write_table(table, tmp_path / "quotes.parquet")

    def plan() -> None:
        symbol = fs.Entity("symbol")
        source = fs.Source("quotes", path="quotes.parquet", entities=[symbol], query=query)
        view = fs.FeatureView("quote", source=source, entities=[symbol], features=["bid"])
        fs.FeatureStore(tmp_path).plan([view])

    with pytest.raises(error):
        plan()
    assert [p.name for p in tmp_path.iterdir()] == ["quotes.parquet"]
