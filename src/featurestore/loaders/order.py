"""The one order: which sample stands at which position of an epoch.

A pure function of (fingerprint, seed, epoch, position, streams). Nothing here knows ranks' speed, workers,
threads, tiers or what was delivered before, so any of them can change without changing a single batch.

Positions `0 … samples-1` of an epoch are dealt over the canonical streams like cards: position `p` belongs
to stream `p mod streams`. A stream owns one contiguous segment of the samples (in stored order) and walks
it in chunks:

- the segments lie in a random order, the same in every epoch;
- a segment is a ring, cut into blocks of `block_rows` from a phase drawn anew each epoch;
- the blocks are permuted; a chunk is the next `blocks` of them; the rest that fills no block ends the last
  chunk;
- inside a chunk the rows are permuted exactly.

Chunk `c` of all streams together covers the positions `[c·q·streams, (c+1)·q·streams)` with `q =
block_rows·blocks`, so any chunk is computed alone, in O(its rows), and a rank that serves the streams `s ≡
rank (mod world)` reads no row of another rank.
"""

import hashlib
import threading
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from featurestore.core.time import Int64Array
from featurestore.errors import DefinitionError
from featurestore.loaders.permutations import deal, fill_blocks, permutation_of_keys

Shuffle = Literal["blocks", "full", "none"]
Int32Array = npt.NDArray[np.int32]
# int32 where that numbers every sample, else int64.
Samples = npt.NDArray[Any]

ORDER_VERSION: Final = 1
DEFAULT_STREAMS: Final = 64
DEFAULT_BLOCK_ROWS: Final = 1024
DEFAULT_BLOCKS: Final = 8
# Below this many elements 22 random bits decide an element's place (of 8,192 elements some 8 pairs tie, and
# keep their order); above it 48 bits do.
_WIDE_KEYS_FROM: Final = 1 << 15
_LONGEST_CHUNK: Final = 1 << 15
_local: Final = threading.local()
_FRESH: Final = {
    "bit_generator": "Philox",
    "buffer": np.zeros(4, np.uint64),
    "buffer_pos": 4,
    "has_uint32": 0,
    "uinteger": 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The order of one loader's samples, for every epoch.

    Attributes:
        fingerprint: Of the dataset and the selection; another dataset has another order.
        samples: Samples in an epoch.
        shuffle: `blocks` (block shuffle over streams), `full` (one exact permutation; 8 bytes of index per
            sample while an epoch runs) or `none` (positions are samples).
        streams: Canonical streams; world sizes that divide it give the same batches.
        block_rows: Consecutive samples that stay in one read.
        blocks: Blocks mixed in one chunk of one stream.

    Raises:
        DefinitionError: a size that is not positive, or a chunk of more than 32,768 rows in a stream.
    """

    fingerprint: str
    seed: int
    samples: int
    shuffle: Shuffle
    streams: int = DEFAULT_STREAMS
    block_rows: int = DEFAULT_BLOCK_ROWS
    blocks: int = DEFAULT_BLOCKS

    def __post_init__(self) -> None:
        for name in ("streams", "block_rows", "blocks"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise DefinitionError(
                    f"{name} is {value!r}: it must be a positive integer",
                    hint="leave it out for the default",
                    value=value,
                )
        if self.block_rows * self.blocks > _LONGEST_CHUNK:
            raise DefinitionError(
                f"{self.blocks} blocks of {self.block_rows} rows: more than {_LONGEST_CHUNK} in a chunk",
                hint="smaller blocks, or fewer of them",
            )

    @property
    def chunk_positions(self) -> int:
        """Positions in one chunk of all streams (the last chunk may be shorter)."""
        if self.shuffle == "full":
            # Rounded up, so that chunks begin where every rank's turn begins.
            return max(1, -(-self.samples // self.streams)) * self.streams
        return self.block_rows * self.blocks * self.streams

    @property
    def chunks(self) -> int:
        """Chunks in an epoch."""
        return -(-self.samples // self.chunk_positions)


@dataclass(frozen=True, slots=True)
class Chunk:
    """One rank's part of one chunk.

    Attributes:
        fetch: `(n,)` samples in the order that reads best (by stream, then ascending runs).
        places: `(n,)` for each of the rank's positions, where its sample stands in `fetch`.
            `None`: the positions are `fetch` as it is, or places were not asked for.
        samples: `(n,)` samples in the order in which the rank delivers them.
    """

    fetch: Samples
    places: Int32Array | None
    samples: Samples


def random_keys(
    order: Order, *, epoch: int, label: str, parts: tuple[int, ...], count: int
) -> npt.NDArray[np.uint64]:
    """Draw `count` 64-bit numbers that depend on the order's identity, the epoch, `label` and `parts` only.

    Cost: a SHA-256 of a short text and a Philox counter block per four numbers; no state.
    """
    text = f"{ORDER_VERSION}|{order.fingerprint}|{order.seed}|{order.streams}|{epoch}|{label}|{parts}"
    key = np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], "<u8").astype(np.uint64)
    generator = getattr(_local, "philox", None)
    if generator is None:
        generator = _local.philox = np.random.Philox(key=0)
    # A new generator would ask the system for entropy first, only to throw it away.
    generator.state = {**_FRESH, "state": {"counter": np.zeros(4, np.uint64), "key": key}}
    return np.asarray(generator.random_raw(count), dtype=np.uint64)


def permutation(order: Order, *, epoch: int, label: str, parts: tuple[int, ...], count: int) -> Int64Array:
    """Permute `0 … count-1`: the stable order of `count` random keys.

    The definition (sort Philox numbers) uses nothing that a release of NumPy may change.
    """
    if count < 2:
        return np.zeros(count, np.int64)
    if count < _WIDE_KEYS_FROM:
        return permutation_of_keys(_short_keys(order, epoch=epoch, label=label, parts=parts, count=count))
    return permutation_of_keys(random_keys(order, epoch=epoch, label=label, parts=parts, count=count))


def _short_keys(
    order: Order, *, epoch: int, label: str, parts: tuple[int, ...], count: int
) -> npt.NDArray[np.uint32]:
    words = random_keys(order, epoch=epoch, label=label, parts=parts, count=(count + 1) // 2)
    return words.astype("<u8", copy=False).view("<u4")[:count]


def chunk_of(
    order: Order, *, epoch: int, chunk: int, rank: int = 0, world: int = 1, with_places: bool = True
) -> Chunk:
    """Compute one rank's part of chunk `chunk` of epoch `epoch`.

    Args:
        world: A divisor of `order.streams` (of anything, where nothing is shuffled by blocks).
        with_places: Also say where each position stands in `fetch`; without, `places` may be None although
            they differ.

    Returns:
        The positions `p ≡ rank (mod world)` of the chunk, ascending.

    Cost: O(rows of the chunk that the rank serves); about 15 ns per row.
    """
    start = chunk * order.chunk_positions
    stop = min(order.samples, start + order.chunk_positions)
    if order.shuffle == "none":
        first = start + (rank - start) % world
        rows = np.arange(first, max(first, stop), world, dtype=np.int64)
        return Chunk(rows, None, rows)
    if order.shuffle == "full":
        whole = permutation(order, epoch=epoch, label="full", parts=(), count=order.samples)
        return Chunk(whole[rank::world], None, whole[rank::world])
    return _block_chunk(order, epoch=epoch, chunk=chunk, rank=rank, world=world, with_places=with_places)


def stream_segments(order: Order) -> tuple[Int64Array, Int64Array]:
    """Give the first sample and the length of the segment that each stream owns.

    Segments lie in a random order, the same in every epoch: positions that follow one another come from all
    over the dataset, and a rank reads the same part of it each time. Lengths differ by at most one.
    """
    streams = np.arange(order.streams)
    lengths = (order.samples - streams + order.streams - 1) // order.streams
    places = permutation(order, epoch=-1, label="segments", parts=(), count=order.streams)
    starts = np.empty(order.streams, np.int64)
    starts[places] = np.cumsum(lengths[places]) - lengths[places]
    return starts, lengths


def _block_chunk(order: Order, *, epoch: int, chunk: int, rank: int, world: int, with_places: bool) -> Chunk:
    starts, lengths = stream_segments(order)
    span = order.block_rows * order.blocks
    streams = np.arange(rank, order.streams, world)
    sizes = np.clip(lengths[streams] - chunk * span, 0, span)
    edges = np.concatenate([[0], np.cumsum(sizes)])
    # Half the memory, and half the traffic, wherever 4 bytes number every sample.
    fetch = np.empty(int(edges[-1]), np.int32 if order.samples < 2**31 else np.int64)
    keys = np.empty(fetch.size, np.uint32)
    for stream, (at, end) in zip(streams.tolist(), pairwise(edges.tolist()), strict=True):
        length = int(lengths[stream])
        if at == end:
            continue
        phase, blocks = _blocks(order, epoch, stream, length)
        chosen = np.sort(blocks[chunk * order.blocks : (chunk + 1) * order.blocks])
        fill_blocks(
            chosen,
            block_rows=order.block_rows,
            phase=phase,
            start=int(starts[stream]),
            length=length,
            out=fetch[at:end],
        )
        keys[at:end] = _short_keys(order, epoch=epoch, label="rows", parts=(stream, chunk), count=end - at)
    places, samples = deal(fetch, keys, edges, with_places=with_places)
    return Chunk(fetch, places, samples)


@lru_cache(maxsize=4 * DEFAULT_STREAMS)
def _blocks(order: Order, epoch: int, stream: int, length: int) -> tuple[int, Int64Array]:
    """Draw a stream's phase and the order of its blocks; kept, since every chunk of an epoch needs them."""
    phase = random_keys(order, epoch=epoch, label="phase", parts=(stream,), count=1)[0]
    blocks = permutation(
        order, epoch=epoch, label="blocks", parts=(stream,), count=length // order.block_rows
    )
    return int(phase % np.uint64(length)), blocks
