"""Rows read straight from their files into device memory: which can be, and by which reads.

A region can be where it lies in the shards as it travels: a whole pack, in its stored type.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from featurestore.core.time import Int64Array
from featurestore.loaders.buffers import BufferPool
from featurestore.loaders.device import Device
from featurestore.loaders.host import host_gather
from featurestore.loaders.prepare import Prepared
from featurestore.loaders.shipping import Region, Shipment
from featurestore.loaders.source import DatasetRows

# Shorter reads cost more than a copy through the pinned ring; GPUDirect's libraries use the CPU for them too.
SHORTEST_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class DirectRead:
    """`size` bytes of a file from `file_offset` on, to go to `offset` of a device buffer."""

    path: Path
    file_offset: int
    size: int
    offset: int


class DirectReader(Protocol):
    """Reads files straight into device memory. Safe for threads; knows nothing of streams."""

    def read(self, reads: Sequence[DirectRead], target: Any) -> None:
        """Do all reads into a device buffer; the bytes are there when this returns."""
        ...


class DeviceTier:
    """What the tiers of a device have in common.

    Attributes:
        reason: Why this tier, for reports.
        direct: Reads files into device memory; None: everything goes through pinned memory.
    """

    def __init__(
        self, prepared: Prepared, device: Device, *, reason: str, direct: DirectReader | None
    ) -> None:
        self.prepared = prepared
        self.device = device
        self.reason = reason
        self.direct = direct
        self.shipment = Shipment(host_gather(prepared, BufferPool(idle=8)))


def is_direct(region: Region, source: DatasetRows) -> bool:
    """Say whether a region lies in the shards' files as it travels."""
    column = region.column
    whole = region.columns == tuple(range(column.width))
    named = column.name is not None and source.is_pack(column.name)
    return named and whole and not region.mask and region.dtype == str(column.dtype)


def has_long_runs(prepared: Prepared, region: Region) -> bool:
    """Say whether the order reads rows in runs that are worth a read of their own, on average.

    Cost: one pass over the selection's index.
    """
    order, rows = prepared.order, prepared.selection.rows
    if prepared.windows is not None or order.shuffle == "full":
        return False
    longest = order.block_rows if order.shuffle == "blocks" else prepared.plan.batch
    run = longest if rows is None else min(longest, rows.size / (np.count_nonzero(np.diff(rows) != 1) + 1))
    return bool(run * region.row_bytes >= SHORTEST_BYTES)


def direct_reads(source: DatasetRows, region: Region, rows: Int64Array, offset: int) -> list[DirectRead]:
    """Plan the reads that put a region's `rows` at `offset` of a buffer: one for each run within a shard.

    The parts must be open: what is read was verified before.
    """
    name = region.column.name
    assert name is not None  # noqa: S101 - is_direct was asked before
    parts = source.index.parts_of(rows)
    cuts = np.flatnonzero((np.diff(rows) != 1) | (np.diff(parts) != 0)) + 1
    first = np.concatenate([[0], cuts]) if rows.size else cuts
    last = np.concatenate([cuts, [rows.size]]) if rows.size else cuts
    size = region.row_bytes
    places = rows[first] - source.index.starts[parts[first]]
    return [
        DirectRead(
            source.shards.path(part),
            source.file_offset(part, name) + place * size,
            (b - a) * size,
            offset + a * size,
        )
        for part, place, a, b in zip(
            parts[first].tolist(), places.tolist(), first.tolist(), last.tolist(), strict=True
        )
    ]
