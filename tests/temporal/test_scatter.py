"""Values written to places part by part: what `gather` would have given, for every Arrow type."""

from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.temporal.test_gather import COLUMNS

from featurestore.temporal.rows import Int32Array
from featurestore.temporal.scatter import Scattered
from featurestore.temporal.threads import run_in_turn
from featurestore.testing.strategies import chunked


def dealt(seed: int, count: int, parts: int) -> list[Int32Array]:
    """Deal places to parts; one hand more stays out: nobody writes there."""
    rng = np.random.default_rng(seed)
    hands = rng.integers(0, parts + 1, count)
    order = rng.permutation(count).astype(np.int32)
    return [order[hands[order] == part] for part in range(parts)]


def scattered(sources: list[pa.ChunkedArray], hands: list[Int32Array], count: int, threads: int) -> pa.Array:
    """Write row k of each source to the k-th place of its hand, rows from back to front."""
    column = Scattered(sources[0].type, count, name="x")
    tasks = []
    for source, hand in zip(sources, hands, strict=True):
        rows = np.arange(len(hand), dtype=np.int64)[::-1] % max(len(source), 1)
        tasks.append(partial(column.put, source, rows, hand))
    run_in_turn(tasks, threads)
    written = np.zeros(count, np.bool_)
    written[np.concatenate(hands)] = True
    out = column.finish(np.flatnonzero(~written))
    out.validate(full=True)
    return out


def check(out: pa.Array, sources: list[pa.ChunkedArray], hands: list[Int32Array]) -> None:
    assert out.type == sources[0].type
    found = out.to_pylist()
    assert out.null_count == found.count(None)
    for place in set(range(len(out))) - set(np.concatenate(hands).tolist()):
        assert found[place] is None
    for source, hand in zip(sources, hands, strict=True):
        wanted = [source[(len(hand) - 1 - k) % len(source)].as_py() for k in range(len(hand))]
        assert [found[place] for place in hand] == wanted


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_type_comes_through_unchanged(name: str, threads: int) -> None:
    values, kind = COLUMNS[name]
    array = pa.array([*values, *values], pa.string() if "ordered" in name else kind).cast(kind)
    sources = [chunked(array, [1, 1, 4]), chunked(array.slice(1), []), chunked(array.slice(2, 1), [])]
    hands = dealt(len(name), 700, 3)
    check(scattered(sources, hands, 700, threads), sources, hands)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.none() | st.integers(-5, 5), min_size=1, max_size=9), min_size=1, max_size=4),
    st.integers(0, 99),
    st.integers(0, 60),
)
def test_parts_with_and_without_nulls_lie_where_they_belong(
    parts: list[list[int | None]], seed: int, count: int
) -> None:
    for kind in (pa.int8(), pa.int16(), pa.float32(), pa.int64()):
        sources = [chunked(pa.array([None, *part], kind).slice(1), []) for part in parts]
        hands = dealt(seed, count, len(parts))
        check(scattered(sources, hands, count, 2), sources, hands)


def test_under_a_null_and_where_nobody_wrote_no_value_lingers() -> None:
    source = chunked(pa.array([7, None, 9], pa.int32()), [])
    out = scattered([source], [np.array([4, 2, 0], np.int32)], 6, 1)
    assert np.frombuffer(out.buffers()[1], np.int32).tolist() == [7, 0, 0, 0, 9, 0]
    assert out.is_null().to_pylist() == [False, True, True, True, False, True]


def test_dictionaries_of_the_parts_may_differ() -> None:
    sources = [chunked(pa.array(words).dictionary_encode(), []) for words in (["a", "b"], ["b", "c", None])]
    hands = dealt(1, 40, 2)
    check(scattered(sources, hands, 40, 2), sources, hands)


def test_a_column_that_nobody_wrote_to_is_null_throughout() -> None:
    for kind in (pa.int64(), pa.string(), pa.list_(pa.int8())):
        out = Scattered(kind, 3).finish(np.arange(3))
        assert (out.type, out.to_pylist()) == (kind, [None] * 3)
