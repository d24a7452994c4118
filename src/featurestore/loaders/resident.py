"""The resident tier: columns are loaded once, and batches are gathers in device memory."""

from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from featurestore.core.time import Int64Array
from featurestore.loaders.batch import Batch
from featurestore.loaders.device import Array, Device, Event
from featurestore.loaders.direct import DeviceTier, DirectReader, direct_reads, is_direct
from featurestore.loaders.prefetch import OrderedPrefetch
from featurestore.loaders.prepare import Prepared
from featurestore.loaders.shipping import Region
from featurestore.loaders.stats import Stats
from featurestore.loaders.steps import StepRows

# The rest stays for the model, its optimizer and activations.
FREE_SHARE: Final = 0.6
_SLOTS: Final = 3
_SLOT_BYTES: Final = 64 << 20


class ResidentTier(DeviceTier):
    """Holds the loader's columns in device memory and gathers every batch there.

    The order is computed on the host, as for every tier; 4 bytes per row travel for it.
    """

    def __init__(
        self, prepared: Prepared, device: Device, *, reason: str, direct: DirectReader | None = None
    ) -> None:
        super().__init__(prepared, device, reason=reason, direct=direct)
        self.rows = resident_rows(prepared)
        self._views: dict[str, Array] | None = None
        self._buffer: Any = None

    @property
    def needed_bytes(self) -> int:
        """Device memory that the columns take."""
        return self.shipment.offsets(self.rows.size)[""]

    def feed(self, epoch: int, step: int, stats: Stats) -> "ResidentFeed":
        """Begin an epoch at a step; the first call loads the columns."""
        if self._views is None:
            self._load()
        return ResidentFeed(self, self._views or {}, epoch, step, stats)

    def report(self) -> dict[str, Any]:
        """Say what is used and why."""
        return {
            "tier": "resident",
            "reason": self.reason,
            "device": self.device.name,
            "path": "columns loaded once "
            + (
                "through a pinned ring"
                if self.direct is None
                else "by GPUDirect where they lie whole in files"
            )
            + ", batches gathered in device memory",
            "device_bytes": self.needed_bytes,
            "loaded": self._views is not None,
        }

    def close(self) -> None:
        """Free the columns."""
        self._views, self._buffer = None, None

    def places_of(self, rows: Int64Array) -> npt.NDArray[Any]:
        """Say where rows lie in the loaded columns; 4 bytes each where that is enough."""
        every = self.rows.size == self.prepared.source.rows
        places = rows if every else np.searchsorted(self.rows, rows)
        return places.astype(np.int32 if self.rows.size < 2**31 else np.int64)

    def _load(self) -> None:
        """Copy every region piece by piece through pinned slots, in stored order."""
        device, shipment = self.device, self.shipment
        total = self.rows.size
        buffer = device.empty(max(1, self.needed_bytes))
        # The consumer's stream may still be using that memory for what it held before.
        device.side_wait(device.consumer_event())
        longest = max((total * region.row_bytes for region in shipment.regions), default=1)
        slot_bytes = max(1, min(_SLOT_BYTES, longest))
        slots = [device.pinned(slot_bytes) for _ in range(_SLOTS)]
        copied: list[Event | None] = [None] * _SLOTS
        offsets = shipment.offsets(total)
        turn = 0
        for region in shipment.regions:
            if self.direct is not None and is_direct(region, self.prepared.source):
                self._read_direct(self.direct, region, buffer, offsets[region.name])
                continue
            rows_per_slot = max(1, slot_bytes // max(1, region.row_bytes))
            for start in range(0, total, rows_per_slot):
                rows = self.rows[start : start + rows_per_slot]
                slot, event = slots[turn % _SLOTS], copied[turn % _SLOTS]
                if event is not None:
                    device.host_wait(event)
                shipment.gather.source.touch(rows)
                size = rows.size * region.row_bytes
                region.fill(rows, slot[:size])
                device.copy(buffer, offsets[region.name] + start * region.row_bytes, slot[:size])
                copied[turn % _SLOTS] = device.side_event()
                turn += 1
        device.consumer_wait(device.side_event())
        for event in copied:
            if event is not None:
                device.host_wait(event)
        self._buffer = buffer
        self._views = shipment.views(device, buffer, total)

    def _read_direct(self, reader: DirectReader, region: Region, buffer: Any, offset: int) -> None:
        """Read a region's rows straight from their files."""
        source = self.prepared.source
        source.touch(self.rows)
        # A reader knows no streams: whatever was queued on this memory before must have happened.
        self.device.host_wait(self.device.consumer_event())
        reader.read(direct_reads(source, region, self.rows, offset), buffer)


class ResidentFeed:
    """The batches of one epoch: places computed ahead by threads, gathered on the consumer's stream."""

    def __init__(
        self, tier: ResidentTier, views: dict[str, Array], epoch: int, step: int, stats: Stats
    ) -> None:
        self._tier = tier
        self._views = views
        prepared = tier.prepared
        walk = prepared.step_rows()
        build = partial(self._places, walk, epoch)
        self._ahead = OrderedPrefetch(
            build, step, prepared.plan.steps, threads=prepared.threads, ahead=prepared.prefetch, stats=stats
        )

    @property
    def depth(self) -> int:
        """Batches whose places are ready."""
        return self._ahead.depth

    def take(self) -> Batch | None:
        """Gather the next batch, None after the last."""
        found = self._ahead.take()
        if found is None:
            return None
        rows, real, places = found
        tier, device = self._tier, self._tier.device
        index = device.upload(places)
        own = index if places.size == rows.size else device.upload(tier.places_of(rows))
        padded = tier.prepared.plan.drop_last == "pad"
        return tier.shipment.batch(device, self._views, index, own, rows, real if padded else None)

    def close(self, *, wait: bool = True) -> None:
        """End the threads."""
        self._ahead.close(wait=wait)

    def _places(self, walk: StepRows, epoch: int, step: int) -> tuple[Int64Array, int, npt.NDArray[Any]]:
        rows, real = walk.rows(epoch, step)
        windows = self._tier.prepared.windows
        wanted = rows if windows is None else windows.rows_of(rows).reshape(-1)
        return rows, real, self._tier.places_of(wanted)


def resident_rows(prepared: Prepared) -> Int64Array:
    """Rows that must be on the device: the samples, ascending; with windows every row of the version."""
    if prepared.selection.rows is None or prepared.windows is not None:
        return np.arange(prepared.source.rows, dtype=np.int64)
    return np.sort(prepared.selection.rows).astype(np.int64)
