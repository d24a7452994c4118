"""Key columns as codes: equal keys equal codes, across every Arrow layout, and never by accident."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import SchemaError
from featurestore.temporal import threads
from featurestore.temporal.keys import KeyCodes, code_keys
from featurestore.testing.strategies import chunked

Column: TypeAlias = pa.Array | pa.ChunkedArray


def check(*sides: Sequence[Column], count: int | None = None) -> KeyCodes:
    """Hold the codes against Python's own equality of the values."""
    names = [f"k{place}" for place in range(len(sides[0]))]
    coded = code_keys(sides, names, threads=count)
    by_key: dict[Any, int] = {}
    by_code: dict[int, Any] = {}
    for columns, codes in zip(sides, coded.codes, strict=True):
        rows = list(zip(*(column.to_pylist() for column in columns), strict=True))
        assert codes.dtype == np.int32
        assert len(codes) == len(rows)
        for row, code in zip(rows, codes.tolist(), strict=True):
            if any(part is None for part in row):
                assert code == -1
                continue
            assert 0 <= code < coded.entities
            assert by_key.setdefault(row, code) == code
            assert by_code.setdefault(code, row) == row
    return coded


WORDS = ["", "a", "ab", "\0", "a\0", "1234567", "12345678", "123456789", "12345678\0", "é" * 9, None, "a"]
STRINGS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]


@pytest.mark.parametrize("left", STRINGS, ids=str)
@pytest.mark.parametrize("right", STRINGS, ids=str)
def test_strings_of_every_layout_are_equal_by_value(left: pa.DataType, right: pa.DataType) -> None:
    one, other = pa.array(WORDS).cast(left), pa.array([*reversed(WORDS), "new"]).cast(right)
    assert check([one], [other]).entities == len(set(WORDS) - {None}) + 1


@pytest.mark.parametrize("left", [pa.int8(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()], ids=str)
@pytest.mark.parametrize("right", [pa.uint8(), pa.int16(), pa.int64(), pa.uint64()], ids=str)
@pytest.mark.parametrize("scale", [1, 10**12])
def test_integers_of_every_width_are_equal_by_value(
    left: pa.DataType, right: pa.DataType, scale: int
) -> None:
    wide = scale if left.bit_width == right.bit_width == 64 else 1
    one, other = pa.array([1, 0, 2, None, 1], pa.int64()), pa.array([2, 3, None, 1], pa.int64())
    scaled = [pa.array([None if v is None else v * wide for v in a.to_pylist()]) for a in (one, other)]
    assert check([scaled[0].cast(left)], [scaled[1].cast(right)]).entities == 4


def test_a_large_uint64_is_not_the_negative_number_of_the_same_bits() -> None:
    large = pa.array([2**64 - 1, 2**63, 5, None], pa.uint64())
    negative = pa.array([-1, -(2**63), 5, 7], pa.int64())
    check([large], [negative])


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([True, None, False, True], pa.bool_()),
        ([b"", b"ab", None, b"\0"], pa.binary()),
        ([b"ab", b"cd", None, b"ab"], pa.binary(2)),
        ([b"0123456789abcdef", b"0123456789abcdeF", None], pa.binary(16)),
        ([b"x", None, b"0123456789"], pa.binary_view()),
        ([Decimal("1.50"), None, Decimal("-1.50")], pa.decimal128(9, 2)),
        ([1, None, 2], pa.date32()),
        ([1, None, 2], pa.timestamp("us", "UTC")),
        ([1000, None, 2000], pa.time64("ns")),
    ],
    ids=lambda value: str(value) if isinstance(value, pa.DataType) else "",
)
def test_other_types_that_can_be_keys(values: list[Any], kind: pa.DataType) -> None:
    check([pa.array(values, kind)], [pa.array(values[::-1], kind).slice(1)])


def test_binary_of_every_layout_is_one_kind() -> None:
    kinds = [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2)]
    sides = [[pa.array([b"ab", None, b"cd"], kind)] for kind in kinds]
    assert check(*sides).entities == 2


def test_composite_keys_do_not_collide() -> None:
    left = [pa.array([1, 12, 1, None]), pa.array([23, 3, None, 1])]
    coded = check(left, [pa.array([12, 1]), pa.array([3, 23])])
    assert coded.codes[0][0] == coded.codes[1][1] != coded.codes[0][1] == coded.codes[1][0]
    check([pa.array(["ab", "a"]), pa.array(["c", "bc"]), pa.array([1, 1])])


def test_composite_keys_of_many_values_stay_exact() -> None:
    rng = np.random.default_rng(0)
    parts = [pa.array(rng.integers(0, 700, 1500)) for _ in range(4)]
    assert check(parts, [part.slice(3, 700) for part in parts]).entities == 1500


def test_dictionaries_with_repeated_null_and_unused_values() -> None:
    odd = pa.DictionaryArray.from_arrays(
        pa.array([0, 1, 2, 3, None], pa.int16()), pa.array(["a", "b", "a", None, "unused"])
    )
    codes = check([odd], [pa.array(["b", "a", None])]).codes[0]
    assert codes[0] == codes[2]
    assert codes[3] == codes[4] == -1


def test_chunks_with_different_dictionaries_and_offsets() -> None:
    one = pa.array(["a", "b", "c", "a"]).dictionary_encode()
    other = pa.array(["c", "z", "a"]).dictionary_encode()
    column = pa.chunked_array([one, other.slice(1), one.slice(2, 1), one])
    check([column], [pa.array(["z", "c", "q"])])


@pytest.mark.parametrize("kind", [pa.string(), pa.int64(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_empty_columns_and_columns_without_chunks(kind: pa.DataType) -> None:
    empty, none = pa.array([], kind), pa.chunked_array([], kind)
    full = pa.array([None, None], kind)
    assert check([empty], [none]).entities == 0
    assert check([none], [full]).entities == 0


def test_growing_tables_keep_every_key_apart() -> None:
    count = 60_000
    names = pa.array([f"user-{k}-{'x' * (k % 11)}" for k in range(count)])
    assert check([names], [names.take(pa.array(np.arange(count)[::-3]))]).entities == count
    wide = pa.array((np.arange(count) * 0x9E3779B97F4A7C1) - 2**62)
    assert check([wide], [wide.slice(7)]).entities == count


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_threads_do_not_change_which_keys_are_equal(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MIN_ROWS", 10)
    rng = np.random.default_rng(count)
    words = pa.array([f"k{v}" if v % 7 else None for v in rng.integers(0, 90, 1000)])
    numbers = pa.array(rng.integers(0, 90, 1000) * 10**15)
    narrow = pa.array(rng.integers(0, 90, 1000).astype(np.int16))
    for column in (words, numbers, narrow, words.dictionary_encode()):
        check([column], [column.slice(11, 301)], count=count)
    check([words, numbers, narrow], [words, narrow, numbers], count=count)


_keys = st.lists(st.one_of(st.none(), st.text(alphabet="ab\0é", max_size=10)), max_size=30)


@settings(max_examples=300, deadline=None)
@given(_keys, _keys, st.sampled_from(STRINGS), st.lists(st.integers(0, 30), max_size=4))
def test_generated_strings_in_random_chunks(
    left: list[str | None], right: list[str | None], kind: pa.DataType, cuts: list[int]
) -> None:
    check([chunked(pa.array(left, pa.string()).cast(kind), cuts)], [pa.array(right, pa.large_string())])


_numbers = st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.integers(-2, 2)), max_size=30)


@settings(max_examples=300, deadline=None)
@given(_numbers, _numbers, st.lists(st.integers(0, 30), max_size=4))
def test_generated_integers_in_random_chunks(
    left: list[int | None], right: list[int | None], cuts: list[int]
) -> None:
    check([chunked(pa.array(left, pa.int64()), cuts)], [pa.array(right, pa.int64())])


@pytest.mark.parametrize("kind", [pa.float64(), pa.list_(pa.int64()), pa.struct([("a", pa.int8())])], ids=str)
def test_a_type_that_cannot_be_a_key_is_refused_by_name(kind: pa.DataType) -> None:
    with pytest.raises(SchemaError, match="key column 'k'"):
        code_keys([[pa.array([], kind)]], ["k"])


def test_keys_of_different_kinds_are_refused_by_name() -> None:
    with pytest.raises(SchemaError, match="key column 'k' is int64 on one side and string on another"):
        code_keys([[pa.array([1])], [pa.array(["1"])]], ["k"])
    with pytest.raises(SchemaError, match="date32"):
        code_keys([[pa.array([1], pa.date32())], [pa.array([1])]], ["k"])
    with pytest.raises(SchemaError, match="without a key column"):
        code_keys([[], []], [])
