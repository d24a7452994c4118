"""The streamed tier: a bounded ring of pinned slots, one packed copy for many batches.

    threads: fill slot ──► [pinned ring] ── copy on the side stream ──► [device buffers] ──► batches on the
    consumer's stream

Three rules keep the bytes right, and nothing else orders the two streams:

- a slot is filled again only after the copy out of it has happened (the filling thread waits for the copy's
  event);
- a device buffer is copied into only after the consumer's stream has done the last batch made from it;
- the consumer's stream reads a device buffer only after its copy.

Where files can be read straight into device memory, whole packs take that way and the rest goes through the
ring. A reader knows no streams, so a thread waits until the buffer's last batch has been done before it
reads, and the consumer waits for the thread.

Device calls are made from the consumer's thread, but for waits of a thread for an event. The consumer may
change streams between batches: each batch waits for the copy, and leaves an event, on the stream it is on.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, Final

import numpy as np

from featurestore.loaders.batch import Batch
from featurestore.loaders.device import Array, Device, Event
from featurestore.loaders.direct import (
    DeviceTier,
    DirectRead,
    DirectReader,
    direct_reads,
    has_long_runs,
    is_direct,
)
from featurestore.loaders.gather import UInt8Array
from featurestore.loaders.prefetch import delivered
from featurestore.loaders.prepare import Prepared
from featurestore.loaders.shipping import ALIGN, Region, Unit, unit_of
from featurestore.loaders.stats import Stats

SLOTS: Final = 3
DEVICE_BUFFERS: Final = 2
# Large enough that a copy runs at full rate, small enough that the first batch comes soon.
UNIT_BYTES: Final = 64 << 20


@dataclass(slots=True)
class _Slot:
    """A pinned buffer and the event of the last copy out of it."""

    memory: UInt8Array
    copied: Event | None = None


@dataclass(frozen=True, slots=True)
class _Filled:
    """A unit whose bytes lie in a slot."""

    unit: Unit
    slot: int
    size: int
    places_at: int
    copied_from: int
    reads: list[DirectRead]


@dataclass(slots=True)
class _Resident:
    """A unit on the device: its views, and its copy's event."""

    filled: _Filled
    views: dict[str, Array]
    places: Array
    own: Array
    copied: Event
    reading: Future[None] | None
    used: list[Event]


class StreamedTier(DeviceTier):
    """Feeds batches to a device through a pinned ring.

    Whole packs are read by GPUDirect where there is a reader and the order has long enough runs of rows.

    Memory: 3 pinned slots and 2 device buffers of `unit_bytes` each.
    """

    def __init__(
        self, prepared: Prepared, device: Device, *, reason: str, direct: DirectReader | None = None
    ) -> None:
        super().__init__(prepared, device, reason=reason, direct=direct)
        self.direct_regions: list[Region] = []
        if direct is not None:
            self.direct_regions = [
                r
                for r in self.shipment.regions
                if is_direct(r, prepared.source) and has_long_runs(prepared, r)
            ]
            # They come first, so that the rest is still one copy.
            self.shipment.put_first(self.direct_regions)
        self.unit_steps = self._unit_steps()
        self.slot_bytes = self._slot_bytes(self.unit_steps)
        self._ring: list[_Slot] = []
        self._buffers: list[Any] = []
        # Left on the consumer's streams by the pass before, where its batches were made from these buffers.
        self.busy: list[Event] = []

    def feed(self, epoch: int, step: int, stats: Stats) -> "StreamedFeed":
        """Begin an epoch at a step; the ring is allocated once."""
        if not self._ring:
            self._ring = [_Slot(self.device.pinned(self.slot_bytes)) for _ in range(SLOTS)]
            self._buffers = [self.device.empty(self.slot_bytes) for _ in range(DEVICE_BUFFERS)]
        return StreamedFeed(self, epoch, step, stats)

    def report(self) -> dict[str, Any]:
        """Say what is used and why."""
        return {
            "tier": "streamed",
            "reason": self.reason,
            "device": self.device.name,
            "path": f"{SLOTS} pinned slots of {self.slot_bytes} bytes, {self.unit_steps} batches in one copy"
            + "".join(f"; {r.name} by GPUDirect" for r in self.direct_regions),
            "pinned_bytes": SLOTS * self.slot_bytes,
            "device_bytes": DEVICE_BUFFERS * self.slot_bytes,
        }

    def close(self) -> None:
        """Free the ring once the copies out of it have happened."""
        for slot in self._ring:
            if slot.copied is not None:
                self.device.host_wait(slot.copied)
        self._ring, self._buffers = [], []

    def _step_bytes(self) -> int:
        plan, windows = self.prepared.plan, self.prepared.windows
        length = 1 if windows is None else windows.window.lookback
        return max(1, plan.batch * length * (self.shipment.row_bytes + 4) + plan.batch * 4)

    def _unit_steps(self) -> int:
        room = min(UNIT_BYTES, self.prepared.options.memory_bytes // SLOTS)
        return max(1, min(self.prepared.plan.steps, room // self._step_bytes()))

    def _slot_bytes(self, steps: int) -> int:
        slack = ALIGN * (len(self.shipment.regions) + 4) + self.shipment.row_bytes
        return -(-(steps * self._step_bytes() + slack) // 4096) * 4096


class StreamedFeed:
    """The batches of one epoch from one step on."""

    def __init__(self, tier: StreamedTier, epoch: int, step: int, stats: Stats) -> None:
        self._tier = tier
        self._stats = stats
        plan = tier.prepared.plan
        edges = [*range(step, plan.steps, tier.unit_steps), plan.steps]
        self._spans = list(pairwise(edges))
        self._epoch = epoch
        self._walk = tier.prepared.step_rows(spans=True)
        threads = max(1, min(SLOTS, tier.prepared.threads))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="featurestore-fill")
        self._filling: deque[Future[_Filled]] = deque()
        self._there: deque[_Resident] = deque()
        self._asked = self._copied = self._done = 0
        self._reader = (
            ThreadPoolExecutor(1, thread_name_prefix="featurestore-direct") if tier.direct_regions else None
        )
        self._batch = 0
        self._closed = False
        # Whatever the consumer's stream still does with these buffers comes first.
        for event in (*tier.busy, tier.device.consumer_event()):
            tier.device.side_wait(event)
        begun = tier.device.side_event()  # and so after all of them
        self._freed: dict[int, list[Event]] = {place: [begun] for place in range(DEVICE_BUFFERS)}
        self._fill_slots()

    @property
    def depth(self) -> int:
        """Batches whose copy has been enqueued, or whose slot is filled."""
        return (len(self._there) + sum(1 for f in self._filling if f.done())) * self._tier.unit_steps

    def take(self) -> Batch | None:
        """Make the next batch on the consumer's stream, None after the last.

        Raises:
            FeatureStoreError: what went wrong while a slot was filled.
            StorageError: the same, where it was an `OSError`.
        """
        if self._closed:
            return None
        return delivered(self._take, self.close)

    def close(self, *, wait: bool = True) -> None:
        """End the threads; with `wait`, return when no copy reads a slot any more."""
        if not self._closed:
            self._tier.busy = [*chain(*self._freed.values()), *chain(*(r.used for r in self._there))]
        self._closed = True
        for future in self._filling:
            future.cancel()
        for pool in (self._pool, self._reader):
            if pool is not None:
                pool.shutdown(wait=wait, cancel_futures=True)
        self._filling.clear()
        self._there.clear()
        for slot in self._tier._ring if wait else ():
            if slot.copied is not None:
                self._tier.device.host_wait(slot.copied)

    def _take(self) -> Batch | None:
        self._advance(wait=False)
        if not self._there:
            if self._done == len(self._spans):
                self.close()
                return None
            self._advance(wait=True)
        return self._cut()

    def _fill_slots(self) -> None:
        """Let threads fill every slot whose last unit has been handed to the side stream."""
        while self._asked < len(self._spans) and self._asked - self._copied < SLOTS:
            self._filling.append(self._pool.submit(self._fill, self._asked))
            self._asked += 1

    def _fill(self, number: int) -> _Filled:
        tier = self._tier
        first, last = self._spans[number]
        unit = unit_of(self._walk, self._epoch, first, last, tier.prepared.windows)
        slot = tier._ring[number % SLOTS]
        if slot.copied is not None:
            tier.device.host_wait(slot.copied)
        rows = unit.fetch.size
        direct = tier.direct_regions
        tier.shipment.fill(unit.fetch, slot.memory, skip=len(direct))
        offsets, source = tier.shipment.offsets(rows), tier.prepared.source
        reads = [
            read
            for region in direct
            for read in direct_reads(source, region, unit.fetch, offsets[region.name])
        ]
        rest = [region.name for region in tier.shipment.regions[len(direct) :]]
        begin = offsets[rest[0] if rest else ""]
        at = offsets[""]
        end = at + unit.places.nbytes + unit.own.nbytes
        slot.memory[at : at + unit.places.nbytes] = unit.places.view(np.uint8)
        slot.memory[at + unit.places.nbytes : end] = unit.own.view(np.uint8)
        return _Filled(unit, number % SLOTS, end, at, begin, reads)

    def _advance(self, *, wait: bool) -> None:
        """Hand filled slots to the side stream, as far as device buffers are free."""
        while self._filling and self._copied - self._done < DEVICE_BUFFERS:
            head = self._filling[0]
            if not (wait or head.done()):
                return
            if self._there and head.done() and head.exception() is not None:
                return  # what is on the device comes first, the error at its own batch
            filled = self._filling.popleft().result()
            self._copy(filled)
            self._fill_slots()
            wait = False

    def _copy(self, filled: _Filled) -> None:
        tier, device = self._tier, self._tier.device
        place = self._copied % DEVICE_BUFFERS
        buffer, slot = tier._buffers[place], tier._ring[filled.slot]
        freed = self._freed[place]
        for event in freed:
            device.side_wait(event)
        device.copy(buffer, filled.copied_from, slot.memory[filled.copied_from : filled.size])
        slot.copied = device.side_event()
        reading = None
        if self._reader is not None:
            reading = self._reader.submit(self._read, filled.reads, buffer, freed)
        unit = filled.unit
        views = tier.shipment.views(device, buffer, unit.fetch.size)
        places = device.view(buffer, filled.places_at, "int32", (unit.places.size,))
        own = device.view(buffer, filled.places_at + unit.places.nbytes, "int32", (unit.own.size,))
        self._there.append(_Resident(filled, views, places, own, slot.copied, reading, []))
        self._copied += 1

    def _read(self, reads: list[DirectRead], buffer: Any, freed: list[Event]) -> None:
        """Read into a device buffer once the consumer's stream has done the last batch made from it."""
        tier = self._tier
        assert tier.direct is not None  # noqa: S101 - there are regions for it
        for event in freed:
            tier.device.host_wait(event)
        tier.direct.read(reads, buffer)

    def _cut(self) -> Batch:
        """Make the next batch of the oldest unit on the device."""
        tier, device, resident = self._tier, self._tier.device, self._there[0]
        unit, number = resident.filled.unit, self._batch
        if resident.reading is not None:
            resident.reading.result()
        device.consumer_wait(resident.copied)
        start, stop = unit.bounds[number], unit.bounds[number + 1]
        length = unit.places.size // max(1, unit.own.size)
        padded = tier.prepared.plan.drop_last == "pad"
        batch = tier.shipment.batch(
            device,
            resident.views,
            resident.places[start * length : stop * length],
            resident.own[start:stop],
            unit.fetch[unit.own[start:stop]],
            unit.reals[number] if padded else None,
        )
        self._batch += 1
        resident.used.append(device.consumer_event())
        if self._batch == unit.last - unit.first:
            self._there.popleft()
            self._freed[self._done % DEVICE_BUFFERS] = resident.used
            self._done += 1
            self._batch = 0
        return batch
