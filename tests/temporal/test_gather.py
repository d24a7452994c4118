"""Values at positions: every Arrow type unchanged, bit for bit."""

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import SchemaError
from featurestore.temporal import threads
from featurestore.temporal.gather import gather
from featurestore.temporal.gather_types import check_takeable
from featurestore.testing.strategies import chunked

BIG = 2**63 - 1
COLUMNS: dict[str, tuple[list[Any], pa.DataType]] = {
    "bool": ([True, None, False], pa.bool_()),
    "int8": ([-128, None, 127], pa.int8()),
    "uint16": ([0, None, 65535], pa.uint16()),
    "int32": ([-(2**31), None, 2**31 - 1], pa.int32()),
    "int64 extremes": ([-BIG - 1, None, BIG], pa.int64()),
    "uint64": ([2**64 - 1, None, 2**53 + 1], pa.uint64()),
    "half": ([np.float16(1.5), None, np.float16(-0.0)], pa.float16()),
    "float": ([1.5, None, float("inf")], pa.float32()),
    "double without nulls": ([1.5, 0.1, float("-inf")], pa.float64()),
    "date": ([1, None, -1], pa.date32()),
    "timestamp": ([1, None, -1], pa.timestamp("us", "Europe/Paris")),
    "duration": ([1, None, -1], pa.duration("ms")),
    "time": ([1, None, 2], pa.time32("s")),
    "decimal": ([Decimal("1.23"), None, Decimal("-9.99")], pa.decimal128(12, 2)),
    "wide decimal": ([Decimal("1.23"), None, Decimal("-9.99")], pa.decimal256(50, 2)),
    "string": (["a", None, ""], pa.string()),
    "large string": (["a", None, ""], pa.large_string()),
    "string view": (["a", None, "longer than twelve bytes"], pa.string_view()),
    "binary": ([b"a", None, b""], pa.binary()),
    "fixed binary": ([b"ab", None, b"cd"], pa.binary(2)),
    "list": ([[1, None], None, []], pa.list_(pa.int64())),
    "large list": ([[1, None], None, []], pa.large_list(pa.int64())),
    "embedding": ([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2)),
    "struct": (
        [{"a": 1, "b": "x"}, None, {"a": None, "b": None}],
        pa.struct([("a", pa.int8()), ("b", pa.string())]),
    ),
    "map": ([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
    "dictionary": (["x", None, "y"], pa.dictionary(pa.int8(), pa.string())),
    "ordered dictionary": (["x", None, "y"], pa.dictionary(pa.int32(), pa.string(), ordered=True)),
    "null": ([None, None, None], pa.null()),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("repeat", [1, 600], ids=["few rows", "many rows"])
def test_every_type_comes_through_unchanged(name: str, repeat: int) -> None:
    values, kind = COLUMNS[name]
    array = pa.array([*values, *values], pa.string() if "ordered" in name else kind).cast(kind)
    column = chunked(array, [1, 1, 4])
    positions = np.array([5, -1, 0, 1, 2, -1, 4] * repeat)
    taken = gather(column, positions)
    taken.validate(full=True)
    assert taken.type == kind
    expected = [None if p < 0 else column[int(p)].as_py() for p in positions[:7]] * repeat
    assert taken.to_pylist() == expected


def test_nan_payloads_and_signed_zeros_keep_their_bits() -> None:
    bits = np.array([0x7FF8000000000001, 0xFFF8000000000002, 0x8000000000000000, 1], np.uint64)
    taken = gather(pa.array(bits.view(np.float64)), np.arange(4).repeat(300))
    assert np.array_equal(taken.to_numpy().view(np.uint64), bits.repeat(300))


def test_a_null_slot_holds_no_value_of_another_row() -> None:
    taken = gather(pa.array([7, 8]), np.array([-1, 1] * 400))
    raw = np.frombuffer(taken.buffers()[1], np.int64)
    assert raw[::2].tolist() == [0] * 400


def test_an_output_without_nulls_has_no_bitmap() -> None:
    column = pa.array([1, None, 3])
    assert gather(column, np.array([0, 2] * 300)).buffers()[0] is None
    assert gather(column, np.array([0, 1] * 300)).null_count == 300


def test_an_extension_type_stays_one() -> None:
    class Money(pa.ExtensionType):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(pa.int64(), "test.money")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

    column = pa.ExtensionArray.from_storage(Money(), pa.array([1, 2, 3]))
    taken = gather(column, np.array([2, -1]))
    assert taken.type == Money()
    assert taken.storage.to_pylist() == [3, None]


@pytest.mark.parametrize("kind", [pa.int64(), pa.string(), pa.list_(pa.int8())], ids=str)
def test_empty_columns_give_nulls_and_empty_indices_nothing(kind: pa.DataType) -> None:
    assert gather(pa.chunked_array([], kind), np.array([-1, -1])).to_pylist() == [None, None]
    assert gather(pa.array([None], kind), np.array([], np.int64)).to_pylist() == []


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.string_view()),
        pa.large_list(pa.binary_view()),
    ],
    ids=str,
)
def test_views_inside_lists_come_through_as_polars_writes_them(kind: pa.DataType) -> None:
    plain = pa.list_(pa.binary() if "binary" in str(kind) else pa.string())
    column = pa.array([["longer than twelve bytes"], None, ["b"]], plain).cast(kind)
    for repeat in (1, 600):
        taken = gather(column, np.array([2, -1, 0, 1] * repeat))
        assert taken.type == kind
        assert taken.to_pylist() == [column[2].as_py(), None, column[0].as_py(), None] * repeat


def test_views_inside_fixed_lists_come_through() -> None:
    values = pa.array(["longer than twelve bytes", "b"], pa.string_view())
    column = pa.FixedSizeListArray.from_arrays(values, 1)
    taken = gather(column, np.array([1, -1, 0]))
    assert taken.type == column.type
    assert taken.to_pylist() == [["b"], None, ["longer than twelve bytes"]]


def test_views_inside_structs_and_maps_come_through() -> None:
    kind = pa.struct([("a", pa.string_view()), ("b", pa.int8())])
    column = pa.array([{"a": "x", "b": 1}, None, {"a": None, "b": 2}], kind)
    assert gather(column, np.array([2, 0, -1])).to_pylist() == [{"a": None, "b": 2}, {"a": "x", "b": 1}, None]


def test_run_ends_are_decoded_and_encoded_again() -> None:
    column = pa.RunEndEncodedArray.from_arrays([2, 3], [1, 2])
    taken = gather(column, np.array([2, -1, 0, 0]))
    assert taken.type == column.type
    assert taken.to_pylist() == [2, None, 1, 1]


def test_dictionaries_too_many_for_their_index_type_are_refused_by_name() -> None:
    chunks = [pa.array([f"{k}{v}" for v in range(100)]).dictionary_encode() for k in "ab"]
    narrow = pa.dictionary(pa.int8(), pa.string())
    column = pa.chunked_array([chunk.cast(narrow) for chunk in chunks])
    with pytest.raises(SchemaError, match="chunks of column 'v'"):
        gather(column, np.array([150, 0]), name="v")


def test_unions_without_chunks() -> None:
    kind = pa.dense_union([pa.field("a", pa.int8())])
    assert len(gather(pa.chunked_array([], kind), np.array([-1, -1]))) == 2


def test_a_type_that_cannot_be_taken_is_a_typed_error() -> None:
    odd = pa.StructArray.from_arrays([pa.RunEndEncodedArray.from_arrays([2, 3], [1, 2])], ["a"])
    with pytest.raises(SchemaError, match="column 'v' is of type struct<a: run_end_encoded"):
        gather(odd, np.array([0, 2]), name="v")
    with pytest.raises(SchemaError, match="column 'v'"):
        check_takeable(odd.type, "v")


@pytest.mark.parametrize("name", COLUMNS)
def test_every_type_that_can_be_taken_is_said_to_be(name: str) -> None:
    check_takeable(COLUMNS[name][1], name)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_random_positions_chunks_and_threads(data: st.DataObject) -> None:
    values = data.draw(st.lists(st.one_of(st.none(), st.integers(-5, 5)), min_size=1, max_size=40))
    cuts = data.draw(st.lists(st.integers(0, 40), max_size=4))
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    positions = rng.integers(-1, len(values), int(rng.integers(512, 700)))
    column = chunked(pa.array(values, pa.int16()), cuts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "MIN_ROWS", 1)
        taken = gather(column, positions, threads=data.draw(st.integers(1, 4)))
    taken.validate(full=True)
    assert taken.to_pylist() == [None if p < 0 else values[p] for p in positions.tolist()]
