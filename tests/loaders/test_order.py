"""The order: a pure function that covers every sample once, whatever the world size."""

import hashlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import DefinitionError
from featurestore.loaders import gather
from featurestore.loaders.order import Order, Shuffle, chunk_of, permutation, random_keys, stream_segments

PINNED_BLOCKS = [9, 0, 8, 3, 7, 1, 10, 2, 6, 4, 11, 5]
PINNED_FULL = [11, 5, 1, 10, 2, 9, 8, 6, 7, 4, 3, 0]


def whole(order: Order, epoch: int = 0) -> npt.NDArray[np.int64]:
    return np.concatenate([chunk_of(order, epoch=epoch, chunk=c).samples for c in range(order.chunks)])


def make(
    samples: int, shuffle: Shuffle = "blocks", streams: int = 8, block_rows: int = 4, blocks: int = 3
) -> Order:
    return Order(
        fingerprint="f",
        seed=7,
        samples=samples,
        shuffle=shuffle,
        streams=streams,
        block_rows=block_rows,
        blocks=blocks,
    )


orders = st.builds(
    make,
    samples=st.integers(1, 700),
    shuffle=st.sampled_from(["blocks", "full", "none"]),
    streams=st.sampled_from([1, 2, 8, 12, 64]),
    block_rows=st.integers(1, 40),
    blocks=st.integers(1, 5),
)


@given(orders, st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_an_epoch_holds_every_sample_once(order: Order, epoch: int) -> None:
    assert np.array_equal(np.sort(whole(order, epoch)), np.arange(order.samples))


@given(orders, st.data())
@settings(max_examples=150, deadline=None)
def test_rank_r_of_w_serves_the_positions_congruent_to_r(order: Order, data: st.DataObject) -> None:
    world = data.draw(st.sampled_from([w for w in range(1, 13) if order.streams % w == 0]))
    alone = whole(order)
    for rank in range(world):
        mine = np.concatenate(
            [chunk_of(order, epoch=0, chunk=c, rank=rank, world=world).samples for c in range(order.chunks)]
        )
        assert np.array_equal(mine, alone[rank::world])


def test_a_chunk_is_the_same_whether_or_not_the_chunks_before_it_were_made() -> None:
    order = make(1000)
    last = order.chunks - 1
    alone = chunk_of(order, epoch=2, chunk=last).samples
    assert np.array_equal(whole(order, 2)[last * order.chunk_positions :], alone)


def test_the_order_is_pinned_for_ever() -> None:
    # These numbers are a promise to every saved loader state: a change of them is a change of ORDER_VERSION.
    assert whole(make(12, streams=2, block_rows=2, blocks=2)).tolist() == PINNED_BLOCKS
    assert whole(make(12, "full")).tolist() == PINNED_FULL
    assert whole(make(5, "none")).tolist() == [0, 1, 2, 3, 4]


def test_seed_epoch_fingerprint_and_streams_each_change_the_order() -> None:
    base = make(500)
    first = whole(base)
    others = [
        whole(base, 1),
        whole(
            Order(fingerprint="g", seed=7, samples=500, shuffle="blocks", streams=8, block_rows=4, blocks=3)
        ),
        whole(
            Order(fingerprint="f", seed=8, samples=500, shuffle="blocks", streams=8, block_rows=4, blocks=3)
        ),
        whole(make(500, streams=4)),
    ]
    assert all(not np.array_equal(first, other) for other in others)


def test_streams_own_contiguous_segments_whose_lengths_differ_by_at_most_one() -> None:
    starts, lengths = stream_segments(make(701))
    order = np.argsort(starts)
    assert starts[order].tolist() == [0, *np.cumsum(lengths[order])[:-1].tolist()]
    assert set(lengths.tolist()) == {87, 88}
    assert lengths.sum() == 701


@given(orders, st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_without_numba_the_order_is_the_same(order: Order, epoch: int) -> None:
    compiled_order = whole(order, epoch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gather, "compiled", lambda: None)
        assert np.array_equal(whole(order, epoch), compiled_order)


def test_long_permutations_are_the_same_without_numba() -> None:
    compiled_order = permutation(make(10), epoch=0, label="x", parts=(), count=70_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gather, "compiled", lambda: None)
        assert np.array_equal(
            permutation(make(10), epoch=0, label="x", parts=(), count=70_000), compiled_order
        )


def test_a_chunk_reads_whole_runs_of_block_rows() -> None:
    order = make(64_000, streams=8, block_rows=100, blocks=4)
    fetch = chunk_of(order, epoch=0, chunk=0).fetch
    runs = np.count_nonzero(np.diff(fetch) != 1) + 1
    # 8 streams of 4 blocks; a block that wraps around its segment's end is cut in two.
    assert fetch.size == 3200
    assert runs <= 8 * 4 + 8


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000, 70_000])
def test_permutations_hold_every_number_once(count: int) -> None:
    found = permutation(make(10), epoch=0, label="x", parts=(1,), count=count)
    assert np.array_equal(np.sort(found), np.arange(count))


@pytest.mark.parametrize("name", ["streams", "block_rows", "blocks"])
def test_sizes_count_from_one(name: str) -> None:
    with pytest.raises(DefinitionError, match=name):
        Order(fingerprint="f", seed=0, samples=1, shuffle="blocks", **{name: 0})


def quality(shuffle: Shuffle, samples: int = 1 << 17, batch: int = 1024) -> tuple[float, float, float]:
    """Measure an order of time-ordered samples.

    Returns:
        Least entropy, over its maximum, of which 64th of time the rows of a batch come from; mean z score
        of a runs test (above or below the median) over each batch's rows in shuffled order; correlation of
        neighbours' times.
    """
    order = Order(fingerprint="q", seed=0, samples=samples, shuffle=shuffle, block_rows=256, blocks=4)
    found = whole(order)
    bins = found.reshape(-1, batch) * 64 // samples
    shares = np.stack([np.bincount(b, minlength=64) for b in bins]) / batch
    logs = np.log2(np.where(shares > 0, shares, 1.0))
    entropy = float((-(shares * logs).sum(axis=1) / 6).min())
    # Wald-Wolfowitz over batch means: are batches early and late by turns, as chance would have it?
    above = np.median(found.reshape(-1, batch), axis=1) >= np.median(found)
    n = above.size / 2
    runs = 1 + np.count_nonzero(above[1:] != above[:-1])
    z = (runs - (n + 1)) / np.sqrt(n * (n - 1) / (2 * n - 1))
    neighbours = float(np.corrcoef(found[1:], found[:-1])[0, 1])
    return entropy, float(z), neighbours


def test_block_shuffle_mixes_as_well_as_a_full_permutation() -> None:
    entropy, z, neighbours = quality("blocks")
    full_entropy, full_z, full_neighbours = quality("full")
    assert entropy >= full_entropy  # streams put every part of time into every batch
    assert abs(full_z) < 4
    assert abs(z) < 4
    assert abs(full_neighbours) < 0.02
    assert abs(neighbours) < 0.3


def test_without_shuffling_a_batch_comes_from_one_part_of_time() -> None:
    entropy, _, neighbours = quality("none")
    assert entropy == 0
    assert neighbours > 0.999


def test_random_keys_are_those_of_a_new_generator_whatever_was_drawn_before() -> None:
    order = make(100)
    drawn = []
    for label, count in (("a", 3), ("b", 70), ("a", 3), ("c", 1)):
        text = f"1|f|7|8|4|{label}|(1, 2)"
        key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
        expected = np.random.Philox(key=key).random_raw(count)
        found = random_keys(order, epoch=4, label=label, parts=(1, 2), count=count)
        assert found.tolist() == expected.tolist()
        drawn.append(found.tolist())
    assert drawn[0] == drawn[2]
