"""Rows as bytes: every Arrow type survives, and bytes that are not ours are refused."""

import datetime as dt
import decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import CorruptDataError, SchemaError
from featurestore.serve.codec import Block, RowCodec

KINDS: list[tuple[pa.DataType, list[Any]]] = [
    (pa.null(), [None]),
    (pa.bool_(), [True, False]),
    (pa.int8(), [-128, 127]),
    (pa.uint16(), [0, 65535]),
    (pa.int64(), [-(2**63), 2**63 - 1]),
    (pa.uint64(), [0, 2**64 - 1]),
    (pa.float16(), [np.float16(0.5), np.float16("inf")]),
    (pa.float32(), [0.1, float("nan"), -0.0]),
    (pa.float64(), [1e-310, float("nan"), -0.0]),
    (pa.timestamp("ns", "UTC"), [0, -1, 2**62]),
    (pa.timestamp("s"), [0, 1]),
    (pa.date32(), [dt.date(1969, 12, 31)]),
    (pa.date64(), [dt.date(2024, 2, 29)]),
    (pa.time64("ns"), [1]),
    (pa.duration("us"), [-1]),
    (pa.decimal128(38, 9), [decimal.Decimal("12345678901234567890.123456789")]),
    (pa.decimal256(50, 0), [decimal.Decimal(10) ** 49]),
    (pa.binary(3), [b"\0\xff1"]),
    (pa.string(), ["", "é", "x" * 300]),
    (pa.large_string(), ["a"]),
    (pa.string_view(), ["b", "long enough to leave the view"]),
    (pa.binary(), [b"", b"\0" * 20]),
    (pa.large_binary(), [b"a"]),
    (pa.dictionary(pa.int32(), pa.string()), ["p", "q"]),
    (pa.list_(pa.float32()), [[], [1.5, None]]),
    (pa.list_(pa.float32(), 3), [[1.0, 2.0, 3.0], [0.0, None, 1.0]]),
    (pa.large_list(pa.string()), [["a", None], []]),
    (
        pa.struct([("a", pa.int32()), ("b", pa.list_(pa.string()))]),
        [{"a": 1, "b": ["x"]}, {"a": None, "b": None}],
    ),
    (pa.map_(pa.string(), pa.int64()), [[("k", 1)]]),
    (pa.dictionary(pa.int32(), pa.int64()), [2**40, -1]),
    (pa.list_(pa.dictionary(pa.int8(), pa.string())), [[], ["p", None, "q"]]),
    (pa.struct([("a", pa.dictionary(pa.int8(), pa.string()))]), [{"a": "p"}, {"a": None}]),
    (pa.list_(pa.string_view()), [[], ["long enough to leave the view", None]]),
]


def array(kind: pa.DataType, values: list[Any]) -> pa.Array:
    if pa.types.is_timestamp(kind):
        return pa.array(values, pa.int64()).cast(kind)
    return pa.array(values, kind)


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=12))
    rows = draw(st.integers(0, 6))
    columns = [
        array(kind, [draw(st.sampled_from([None, *values])) for _ in range(rows)]) for kind, values in kinds
    ]
    if rows and draw(st.booleans()):
        columns = [pa.concat_arrays([column, column]).slice(1, rows) for column in columns]
    return pa.table(columns, names=[f"c{at}" for at in range(len(kinds))])


@settings(max_examples=200, deadline=None)
@given(tables(), st.data())
def test_rows_of_every_type_survive_sorted_into_keys(table: pa.Table, data: st.DataObject) -> None:
    codec = RowCodec(table.schema)
    rows = table.num_rows
    clock = np.arange(rows, dtype=np.int64)
    flat = [column.combine_chunks() for column in table.columns]
    block = codec.encode(clock, clock + 1, clock * 2, flat)
    order = np.array(data.draw(st.permutations(range(rows))), np.int64)
    keys = data.draw(st.integers(1, 4))
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), min_size=keys - 1, max_size=keys - 1)))
    counts = np.diff([0, *cuts, rows]).astype(np.int64)
    values = codec.values(block.take(order), counts)
    assert [v is None for v in values] == [n == 0 for n in counts]
    stored = codec.decode([None, *values])
    assert stored.counts.tolist() == [0, *counts.tolist()]
    found = codec.table(stored.block)
    assert found.schema == table.schema
    for name in table.column_names:
        listed = table[name].to_pylist()
        assert repr(found[name].to_pylist()) == repr([listed[at] for at in order])
    assert stored.block.clock("known").tolist() == (order + 1).tolist()


def test_equal_rows_are_equal_bytes_whatever_lies_under_a_null() -> None:
    codec = RowCodec(pa.schema([("x", pa.float64())]))
    zero = np.zeros(1, np.int64)
    under = pa.Array.from_buffers(pa.float64(), 1, [pa.py_buffer(b"\0"), pa.py_buffer(np.array([5.0]))])
    made = [
        codec.encode(zero, zero, zero, [column]).records.tobytes()
        for column in (under, pa.nulls(1, pa.float64()))
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda v: v[:-1], id="cut short"),
        pytest.param(lambda v: b"\0\0\0\0" + v[4:], id="another layout"),
        pytest.param(lambda v: v + b"x", id="too long"),
        pytest.param(lambda v: v[:3], id="no header"),
    ],
)
def test_bytes_that_are_not_ours_are_refused(spoil: Any) -> None:
    codec = RowCodec(pa.schema([("x", pa.int64()), ("s", pa.string())]))
    one = np.ones(1, np.int64)
    block = codec.encode(one, one, one, [pa.array([1]), pa.array(["abc"])])
    (value,) = codec.values(block, one)
    with pytest.raises(CorruptDataError):
        codec.table(codec.decode([spoil(value)]).block)


def test_an_extension_type_is_refused_by_name() -> None:
    column = pa.array([b"0" * 16], pa.binary(16)).cast(pa.uuid())
    zero = np.zeros(1, np.int64)
    with pytest.raises(SchemaError, match="uuid"):
        RowCodec(pa.schema([("x", pa.uuid())])).encode(zero, zero, zero, [column])


def test_no_rows_at_all_decode_to_an_empty_table() -> None:
    codec = RowCodec(pa.schema([("x", pa.int64()), ("s", pa.string())]))
    stored = codec.decode([None, None])
    assert codec.table(stored.block).num_rows == 0
    assert isinstance(stored.block, Block)


def test_a_cell_takes_the_bytes_of_its_own_row_whatever_stands_beside_it() -> None:
    kind = pa.struct([("a", pa.list_(pa.string())), ("b", pa.list_(pa.float32(), 4))])
    cell: dict[str, Any] = {"a": [], "b": [0.0, 1.0, 2.0, 3.0]}
    full: dict[str, Any] = {"a": ["some", "words", "in", "it"], "b": [0.0, 1.0, 2.0, 3.0]}

    def bytes_of_first(beside: int) -> int:
        words = pa.list_(pa.string())
        schema = pa.schema([("c", kind), ("d", words)])
        rows = [cell, *[full] * beside]
        columns = [pa.array(rows, kind), pa.array([row["a"] for row in rows], words)]
        clock = np.zeros(len(rows), np.int64)
        return len(RowCodec(schema).lone_values(RowCodec(schema).encode(clock, clock, clock, columns))[0])

    assert bytes_of_first(2000) == bytes_of_first(0)
