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
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from featurestore.core.time import Int64Array
from featurestore.errors import DefinitionError
from featurestore.loaders.gather import permutation_of_keys

Shuffle = Literal["blocks", "full", "none"]
Int32Array = npt.NDArray[np.int32]

ORDER_VERSION: Final = 1
DEFAULT_STREAMS: Final = 64
DEFAULT_BLOCK_ROWS: Final = 1024
DEFAULT_BLOCKS: Final = 8
# Below this many elements 32 random bits per element make a permutation exact for every practical purpose
# (fewer than one tie is expected); above it 64 bits are drawn.
_WIDE_KEYS_FROM: Final = 1 << 16


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
        DefinitionError: a size that is not positive.
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
                raise DefinitionError(f"{name} is {value!r}: it must be a positive integer", value=value)

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
            `None`: the positions are `fetch` as it is.
    """

    fetch: Int64Array
    places: Int32Array | None

    @property
    def samples(self) -> Int64Array:
        """`(n,)` samples in the order in which the rank delivers them."""
        return self.fetch if self.places is None else self.fetch[self.places]


def random_keys(
    order: Order, *, epoch: int, label: str, parts: tuple[int, ...], count: int
) -> npt.NDArray[np.uint64]:
    """Draw `count` 64-bit numbers that depend on the order's identity, the epoch, `label` and `parts` only.

    Cost: a SHA-256 of a short text and a Philox counter block per four numbers; no state.
    """
    text = f"{ORDER_VERSION}|{order.fingerprint}|{order.seed}|{order.streams}|{epoch}|{label}|{parts}"
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    return np.asarray(np.random.Philox(key=key).random_raw(count), dtype=np.uint64)


def permutation(order: Order, *, epoch: int, label: str, parts: tuple[int, ...], count: int) -> Int64Array:
    """Permute `0 … count-1`: the stable order of `count` random keys.

    The definition (sort Philox numbers) uses nothing that a release of NumPy may change.
    """
    if count < 2:
        return np.zeros(count, np.int64)
    if count < _WIDE_KEYS_FROM:
        words = random_keys(order, epoch=epoch, label=label, parts=parts, count=(count + 1) // 2)
        return permutation_of_keys(words.astype("<u8", copy=False).view("<u4")[:count])
    return permutation_of_keys(random_keys(order, epoch=epoch, label=label, parts=parts, count=count))


def chunk_of(order: Order, *, epoch: int, chunk: int, rank: int = 0, world: int = 1) -> Chunk:
    """Compute one rank's part of chunk `chunk` of epoch `epoch`.

    Args:
        world: A divisor of `order.streams` (of anything, where nothing is shuffled by blocks).

    Returns:
        The positions `p ≡ rank (mod world)` of the chunk, ascending.

    Cost: O(rows of the chunk that the rank serves); about 15 ns per row.
    """
    start = chunk * order.chunk_positions
    stop = min(order.samples, start + order.chunk_positions)
    if order.shuffle == "none":
        first = start + (rank - start) % world
        return Chunk(np.arange(first, max(first, stop), world, dtype=np.int64), None)
    if order.shuffle == "full":
        whole = permutation(order, epoch=epoch, label="full", parts=(), count=order.samples)
        return Chunk(whole[rank::world], None)
    return _block_chunk(order, epoch=epoch, chunk=chunk, rank=rank, world=world)


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


def _block_chunk(order: Order, *, epoch: int, chunk: int, rank: int, world: int) -> Chunk:
    starts, lengths = stream_segments(order)
    fetches, columns = [], []
    longest, at = 0, 0
    for stream in range(rank, order.streams, world):
        segment = int(starts[stream]), int(lengths[stream])
        rows = _stream_chunk(order, epoch=epoch, chunk=chunk, stream=stream, segment=segment)
        inner = permutation(order, epoch=epoch, label="rows", parts=(stream, chunk), count=rows.size)
        fetches.append(rows)
        columns.append(inner + at)
        at += rows.size
        longest = max(longest, rows.size)
    places = np.full((longest, len(columns)), -1, np.int32)
    for number, column in enumerate(columns):
        places[: column.size, number] = column
    flat = places.reshape(-1)
    # Shorter streams come after the longer ones of the same rank, so the gaps are all in the last row.
    return Chunk(np.concatenate(fetches), flat if at == flat.size else flat[flat >= 0])


def _stream_chunk(
    order: Order, *, epoch: int, chunk: int, stream: int, segment: tuple[int, int]
) -> Int64Array:
    """Samples of one stream's chunk, before they are permuted: whole blocks, ascending."""
    start, length = segment
    span = order.block_rows * order.blocks
    wanted = min(length, (chunk + 1) * span) - chunk * span
    if wanted <= 0:
        return np.zeros(0, np.int64)
    whole = length // order.block_rows
    phase = int(
        random_keys(order, epoch=epoch, label="phase", parts=(stream,), count=1)[0] % np.uint64(length)
    )
    blocks = permutation(order, epoch=epoch, label="blocks", parts=(stream,), count=whole)
    chosen = np.sort(blocks[chunk * order.blocks : (chunk + 1) * order.blocks])
    rows = (chosen[:, None] * order.block_rows + np.arange(order.block_rows)).reshape(-1)
    if rows.size < wanted:
        rows = np.concatenate([rows, np.arange(whole * order.block_rows, length, dtype=np.int64)])
    return start + (rows + phase) % length
