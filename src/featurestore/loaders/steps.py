"""From a step's number to its rows: batches as slices of the order, chunk by chunk."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from featurestore.core.time import Int64Array
from featurestore.errors import DefinitionError
from featurestore.loaders.order import Order, chunk_of
from featurestore.loaders.selection import RowNumbers, Selection

Places = npt.NDArray[np.int32]
DropLast = bool | Literal["pad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """How an epoch is cut into steps. Pure.

    Attributes:
        samples: Samples in an epoch.
        batch: Rows of one rank's batch; a global batch is `batch * world` consecutive positions.
        rank: Serves the positions `p ≡ rank (mod world)`.
    """

    samples: int
    batch: int
    rank: int
    world: int
    drop_last: DropLast

    @property
    def global_batch(self) -> int:
        """Positions in one step of all ranks."""
        return self.batch * self.world

    @property
    def steps(self) -> int:
        """Steps in an epoch, the same on every rank."""
        if self.drop_last is True:
            return self.samples // self.global_batch
        return -(-self.samples // self.global_batch)

    @property
    def rank_rows(self) -> int:
        """Real rows that this rank serves in an epoch without dropping."""
        return max(0, (self.samples - self.rank + self.world - 1) // self.world)

    def rows_in(self, step: int) -> int:
        """Real rows of this rank in a step."""
        return max(0, min(self.batch, self.rank_rows - step * self.batch))

    def check(self, streams: int) -> None:
        """Refuse what cannot give every rank the same number of batches.

        Raises:
            DefinitionError: a size out of range, a world that does not divide the streams, an empty epoch,
            or a last
                step without rows for some rank.
        """
        if self.batch < 1 or self.world < 1 or not 0 <= self.rank < self.world:
            raise DefinitionError(
                f"batch size {self.batch}, rank {self.rank}, world size {self.world}",
                hint="batch size and world size from 1, rank from 0 to world size - 1",
            )
        if streams % self.world:
            raise DefinitionError(
                f"world size {self.world} does not divide the {streams} streams",
                hint=f"pass streams={self.world * max(1, streams // self.world)} (this is another order)",
            )
        if self.steps == 0:
            raise DefinitionError(
                f"{self.samples} samples make no global batch of {self.global_batch}",
                hint='a smaller batch_size, or drop_last=False or "pad"',
                samples=self.samples,
            )
        last = self.samples - (self.steps - 1) * self.global_batch
        if self.drop_last is False and last < self.world:
            raise DefinitionError(
                f"the last step has {last} rows for {self.world} ranks",
                hint='drop_last="pad" gives every rank a full batch with a mask; True drops the step',
            )


@dataclass(frozen=True, slots=True)
class ChunkRows:
    """One rank's rows of one chunk.

    Attributes:
        fetch: `(n,)` row numbers in the order that reads best.
        places: `(n,)` where each delivered row stands in `fetch`; None: in the same order.
        delivered: `(n,)` row numbers in the order of delivery.
        start: The first one's position in the rank's own sequence.
    """

    fetch: RowNumbers
    places: Places | None
    delivered: RowNumbers
    start: int

    def part(self, start: int, stop: int) -> tuple[RowNumbers, Places]:
        """Return the rows of positions `[start, stop)` in reading order, and each position's place in them.

        Cost: O(rows of the chunk), without sorting.
        """
        window = slice(start - self.start, stop - self.start)
        if self.places is None:
            rows = self.fetch[window]
            return rows, np.arange(rows.size, dtype=np.int32)
        if stop - start == self.fetch.size:
            return self.fetch, self.places
        mine = self.places[window]
        chosen = np.zeros(self.fetch.size, np.bool_)
        chosen[mine] = True
        rank = np.cumsum(chosen, dtype=np.int32)
        return self.fetch[chosen], rank[mine] - np.int32(1)

    def rows(self, start: int, stop: int) -> Int64Array:
        """Row numbers of the rank's positions `[start, stop)`, counted from its first."""
        return self.delivered[start - self.start : stop - self.start].astype(np.int64)


class StepRows:
    """Rows of any step of any epoch; keeps the chunks in use. Safe for threads.

    Args:
        spans: Keep the reading order of chunks, for `span`; else rows come in the order of delivery alone.

    Memory: `keep` chunks of 4 bytes per row (12 with `spans`; from 2^31 rows on 8 and 20), plus what the
    selection holds.
    """

    def __init__(
        self, order: Order, selection: Selection, plan: StepPlan, *, keep: int = 3, spans: bool = False
    ) -> None:
        self.order = order
        self.selection = selection
        self.plan = plan
        self._keep = keep
        self._spans = spans
        self._chunks: dict[tuple[int, int], ChunkRows] = {}
        self._lock = threading.Lock()
        self._building: dict[tuple[int, int], threading.Lock] = {}

    @property
    def chunk_rows(self) -> int:
        """Rows of this rank in a whole chunk."""
        return max(1, self.order.chunk_positions // self.plan.world)

    def chunk(self, epoch: int, number: int) -> ChunkRows:
        """Return this rank's rows of a chunk; computed once while it is in use."""
        key = (epoch, number)
        with self._lock:
            found = self._chunks.get(key)
            gate = self._building.setdefault(key, threading.Lock())
        if found is not None:
            return found
        with gate:
            with self._lock:
                if key in self._chunks:
                    return self._chunks[key]
            plan = self.plan
            made = chunk_of(
                self.order,
                epoch=epoch,
                chunk=number,
                rank=plan.rank,
                world=plan.world,
                with_places=self._spans,
            )
            delivered = self.selection.rows_of(made.samples)
            if self._spans:
                fetch, places = self.selection.rows_of(made.fetch), made.places
            else:
                fetch, places = delivered, None
            rows = ChunkRows(fetch, places, delivered, self._start(number))
            with self._lock:
                self._chunks[key] = rows
                while len(self._chunks) > self._keep:
                    oldest = next(iter(self._chunks))
                    del self._chunks[oldest]
                    self._building.pop(oldest, None)
            return rows

    def _start(self, number: int) -> int:
        # Chunks begin at multiples of streams, and the world divides the streams.
        return number * self.order.chunk_positions // self.plan.world

    def chunk_at(self, step: int) -> int:
        """Return the number of the chunk that a step begins in."""
        return step * self.plan.batch // self.chunk_rows

    def rows(self, epoch: int, step: int) -> tuple[Int64Array, int]:
        """Return the row numbers of a step and how many of them are real (the rest is padding).

        Padding repeats the first sample's row, whatever the world size.
        """
        real = self.plan.rows_in(step)
        start = step * self.plan.batch
        if self.order.shuffle == "none":
            rank, world = self.plan.rank, self.plan.world
            stop = rank + (start + real - 1) * world + 1
            pieces = [self.selection.rows_in(range(rank + start * world, stop, world))] if real else []
        else:
            pieces = [chunk.rows(a, b) for chunk, a, b in self._pieces(epoch, start, start + real)]
        missing = self._missing(real)
        if missing:
            pieces.append(np.repeat(self._filler(), missing))
        if len(pieces) == 1:
            return pieces[0], real
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int64), real

    def span(self, epoch: int, first: int, last: int) -> tuple[Int64Array, Places]:
        """Return the rows of steps `[first, last)` in reading order, and each position's place in them."""
        plan = self.plan
        start = first * plan.batch
        stop = (last - 1) * plan.batch + plan.rows_in(last - 1)
        rows: list[RowNumbers] = []
        places: list[Places] = []
        at = 0
        for chunk, a, b in self._pieces(epoch, start, stop):
            some, where = chunk.part(a, b)
            rows.append(some)
            places.append(where + np.int32(at))
            at += some.size
        missing = self._missing(plan.rows_in(last - 1))
        if missing:
            rows.append(self._filler())
            places.append(np.full(missing, at, np.int32))
        return np.concatenate(rows).astype(np.int64, copy=False), np.concatenate(places)

    def _pieces(self, epoch: int, start: int, stop: int) -> Iterator[tuple[ChunkRows, int, int]]:
        while start < stop:
            chunk = self.chunk(epoch, start // self.chunk_rows)
            until = min(stop, chunk.start + chunk.fetch.size)
            yield chunk, start, until
            start = until

    def _missing(self, real: int) -> int:
        return self.plan.batch - real if self.plan.drop_last == "pad" else 0

    def _filler(self) -> Int64Array:
        return self.selection.rows_of(np.zeros(1, np.int64)).astype(np.int64)
