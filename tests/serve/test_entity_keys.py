"""Keys of entities in the store: the same bytes whichever form they came in, and numbers in their order."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import SchemaError
from featurestore.serve.entity_keys import (
    decoded_part,
    joined_parts,
    part_encoder,
    split_parts,
    stored_keys,
)

SIGNED, UNSIGNED = st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**64 - 1)


@given(st.lists(st.one_of(st.none(), SIGNED)), st.lists(st.one_of(st.none(), st.text()), max_size=50))
def test_arrays_and_values_are_written_alike_and_read_back(numbers: list[int], texts: list[str]) -> None:
    rows = min(len(numbers), len(texts))
    columns = [pa.array(numbers[:rows], pa.int64()), pa.array(texts[:rows], pa.string())]
    encoders = [part_encoder("n", pa.int64()), part_encoder("t", pa.string())]
    listed = [
        [None if v is None else e(v) for v in c.to_pylist()] for e, c in zip(encoders, columns, strict=True)
    ]
    assert stored_keys(columns) == joined_parts(listed)
    assert stored_keys(columns[:1]) == listed[0]
    assert stored_keys([pa.chunked_array([columns[1]])]) == listed[1]
    assert stored_keys([columns[0].dictionary_encode()]) == listed[0]
    for key, wanted in zip(stored_keys(columns), zip(numbers, texts, strict=False), strict=False):
        if key is not None:
            kinds = (pa.int64(), pa.string())
            parts = [decoded_part(k, p) for k, p in zip(kinds, split_parts(key, 2), strict=True)]
            assert tuple(parts) == wanted


@given(st.lists(UNSIGNED, min_size=2, unique=True))
def test_numbers_lie_in_their_order(numbers: list[int]) -> None:
    keys = stored_keys([pa.array(sorted(numbers), pa.uint64())])
    assert keys == sorted(k for k in keys if k is not None)
    assert [decoded_part(pa.uint64(), k) for k in keys if k is not None] == sorted(numbers)


@pytest.mark.parametrize("value", [True, 1.5, "1", 2**64, -(2**63) - 1, b"2"])
def test_what_is_no_integer_key_is_refused(value: object) -> None:
    with pytest.raises(SchemaError, match="'n'"):
        part_encoder("n", pa.int64())(value)
