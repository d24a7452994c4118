"""Hashes of keys are xxh64 of their bytes, whatever Arrow type they come in."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.core.keys import buckets_of, key_bytes, key_hashes

SEEDS = st.integers(0, 2**64 - 1)
TEXT = st.none() | st.text(max_size=90) | st.text("ab", min_size=30, max_size=70)
TEXTS = st.lists(TEXT, max_size=9)
NUMBERS = st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), max_size=9)
LAYOUTS = [
    pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(),
    pa.dictionary(pa.int8(), pa.string()),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    key_hashes([pa.array([1])], 0)
    key_hashes([pa.array(["a"])], 0)


def check(columns: list[Any], seed: int, buckets: int) -> None:
    """Compare with the library, key by key; a slice behind a row of another kind of length counts alike."""
    keys = key_bytes(columns)
    expected = [0 if key is None else xxhash.xxh64_intdigest(key, seed) for key in keys]
    found = key_hashes(columns, seed).tolist()
    assert [f for f, key in zip(found, keys, strict=True) if key is not None] == [
        e for e, key in zip(expected, keys, strict=True) if key is not None
    ]
    plain = [0 if key is None else xxhash.xxh64_intdigest(key) % buckets for key in keys]
    assert buckets_of(columns, buckets).tolist() == plain


@settings(deadline=None)
@given(texts=TEXTS, seed=SEEDS, buckets=st.integers(1, 9999), kind=st.sampled_from(LAYOUTS))
def test_texts_of_any_length_and_layout(texts: list[str | None], seed: int, buckets: int, kind: Any) -> None:
    whole = pa.array(["before", *texts]).cast(pa.binary() if "binary" in str(kind) else pa.string())
    whole = whole.dictionary_encode() if pa.types.is_dictionary(kind) else whole.cast(kind)
    check([whole.slice(1)], seed, buckets)
    check([pa.chunked_array([whole.slice(1), whole])], seed, buckets)


@settings(deadline=None)
@given(numbers=NUMBERS, seed=SEEDS, buckets=st.sampled_from([1, 2, 3, 8, 9999]))
def test_integers(numbers: list[int | None], seed: int, buckets: int) -> None:
    check([pa.array([7, *numbers], pa.int64()).slice(1)], seed, buckets)
    small = pa.array([None if n is None else n % 100 for n in numbers], pa.int64())
    for kind in (pa.int8(), pa.uint16(), pa.int32(), pa.uint64()):
        check([small.cast(kind)], seed, buckets)
    check([small.dictionary_encode()], seed, buckets)


PAIR = st.tuples(st.none() | st.text(max_size=40), st.none() | st.integers(0, 300))


@settings(deadline=None)
@given(pairs=st.lists(PAIR, max_size=9))
def test_composite_keys(pairs: list[tuple[str | None, int | None]]) -> None:
    texts = pa.array([p[0] for p in pairs], pa.string())
    numbers = pa.array([p[1] for p in pairs], pa.int32())
    check([texts, numbers], 5, 7)
    check([numbers, texts.dictionary_encode(), texts.cast(pa.string_view())], 0, 8)


def test_a_null_inside_a_dictionary_is_a_null() -> None:
    coded = pa.DictionaryArray.from_arrays(pa.array([0, 1, None], pa.int8()), pa.array([None, "a"]))
    assert buckets_of([coded], 1000).tolist() == [0, xxhash.xxh64_intdigest(b"a") % 1000, 0]


def test_no_keys_at_all() -> None:
    assert key_hashes([pa.array([], pa.string())], 0).tolist() == []
    assert buckets_of([pa.nulls(3)], 5).tolist() == [0, 0, 0]


@pytest.mark.parametrize("rows", [1, 100_000])
def test_equal_keys_of_different_columns_hash_alike(rows: int) -> None:
    numbers = pa.array(np.arange(rows) - rows // 2)
    assert np.array_equal(key_hashes([numbers], 3), key_hashes([numbers.dictionary_encode()], 3))
