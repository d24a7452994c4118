"""Schemas as text, and the differences between them."""

import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.catalog.schemas import (
    check_schema,
    field_of,
    key_kind,
    schema_difference,
    schema_of_spec,
    schema_spec,
    type_of_text,
    type_text,
)
from featurestore.errors import SchemaError

SIMPLE = st.sampled_from(
    [pa.int8(), pa.uint64(), pa.float32(), pa.string(), pa.bool_(), pa.date32(), pa.binary()]
) | st.builds(
    pa.timestamp, st.sampled_from(["s", "ms", "us", "ns"]), st.sampled_from([None, "UTC", "Asia/Tokyo"])
)
TYPES = st.recursive(
    SIMPLE
    | st.builds(pa.decimal128, st.integers(5, 38), st.integers(0, 5))
    | st.builds(pa.binary, st.integers(1, 9)),
    lambda inner: st.one_of(
        st.builds(pa.list_, inner),
        st.builds(pa.large_list, inner),
        st.builds(pa.list_, inner, st.integers(1, 9)),
        st.builds(lambda t, n: pa.list_(pa.field(n, t, nullable=False)), inner, st.text(max_size=3)),
        st.builds(lambda a, b: pa.struct([("a", a), ("b", b)]), inner, inner),
        st.builds(lambda t: pa.map_(pa.string(), t), inner),
        st.just(pa.dictionary(pa.int8(), pa.string(), ordered=True)),
    ),
    max_leaves=4,
)


@settings(deadline=None)
@given(TYPES)
def test_a_type_reads_back_exactly(kind: pa.DataType) -> None:
    text = type_text(kind)
    json.dumps(text)
    assert type_of_text(text).equals(kind, check_metadata=True)
    assert text.startswith(str(kind))


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(max_size=6), TYPES), max_size=5))
def test_a_schema_reads_back_exactly(fields: list[tuple[str, pa.DataType]]) -> None:
    schema = pa.schema(fields)
    assert schema_of_spec(json.loads(json.dumps(schema_spec(schema)))).equals(schema, check_metadata=True)


def test_a_plain_type_is_written_as_people_write_it() -> None:
    assert type_text(pa.timestamp("ns", "UTC")) == "timestamp[ns, tz=UTC]"
    assert type_text(pa.float64()) == "double"


OLD = pa.schema([("a", pa.int64()), ("b", pa.string()), ("c", pa.float64())])


def test_a_difference_names_gone_changed_and_new_columns() -> None:
    new = pa.schema([("c", pa.float32()), ("d", pa.bool_()), ("a", pa.int64())])
    assert schema_difference(OLD, new) == ["b: string is gone", "c: double became float", "d: bool is new"]


def test_order_and_metadata_are_no_difference() -> None:
    other = pa.schema([("c", pa.float64()), ("a", pa.int64()), ("b", pa.string())], metadata={"x": "y"})
    assert schema_difference(OLD, other) == []


def test_drift_of_a_used_column_is_an_error_with_the_whole_difference() -> None:
    new = pa.schema([("a", pa.int32()), ("b", pa.string()), ("e", pa.int8())])
    with pytest.raises(SchemaError, match="a: int64 became int32\n    e: int8 is new") as raised:
        check_schema("source 'q'", OLD, new, ["a", "b"])
    assert raised.value.context["columns"] == ["a"]
    check_schema("source 'q'", OLD, new, ["b"])


def test_a_column_that_is_missing_or_repeated_is_told_apart() -> None:
    with pytest.raises(SchemaError, match=r"no column 'bb'.*\n.*did you mean 'b'"):
        field_of(OLD, "bb", "x")
    with pytest.raises(SchemaError, match="more than one column 'a'"):
        field_of(pa.schema([("a", pa.int8()), ("a", pa.int8())]), "a", "x")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (pa.string(), "string"),
        (pa.large_string(), "string"),
        (pa.string_view(), "string"),
        (pa.dictionary(pa.int8(), pa.string()), "string"),
        (pa.uint8(), "integer"),
        (pa.int64(), "integer"),
        (pa.float64(), None),
        (pa.binary(), None),
        (pa.timestamp("ns"), None),
    ],
)
def test_keys_are_strings_or_integers(kind: pa.DataType, expected: str | None) -> None:
    assert key_kind(kind) == expected
