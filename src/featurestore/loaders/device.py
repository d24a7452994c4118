"""What a loader needs of a device: buffers, one side stream for copies, events, and five array operations.

Two streams exist. The *side* stream carries host-to-device copies only; the *consumer's* stream carries
everything the trainer does and the batch operations below. Nothing is ordered between the two but by
events, and nothing on either is finished when a call returns. `featurestore.testing.fake_device` implements
exactly this much and no more ordering.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from featurestore.loaders.gather import AnyArray, UInt8Array

Buffer = Any
Array = Any
Event = Any


class Device(Protocol):
    """A device; called from the consumer's thread, but for `host_wait`."""

    @property
    def name(self) -> str:
        """Say which device, for reports."""
        ...

    def free_bytes(self) -> int:
        """Return the memory that could be allocated now."""
        ...

    def pinned(self, size: int) -> UInt8Array:
        """Allocate page-locked host memory, once per slot."""
        ...

    def empty(self, size: int) -> Buffer:
        """Allocate device bytes for the consumer's stream."""
        ...

    def copy(self, target: Buffer, offset: int, source: UInt8Array) -> None:
        """Enqueue a copy of pinned bytes to `target[offset:]` on the side stream; `source` is read later."""
        ...

    def side_event(self) -> Event:
        """Mark a point of the side stream."""
        ...

    def consumer_event(self) -> Event:
        """Mark a point of the consumer's stream."""
        ...

    def side_wait(self, event: Event) -> None:
        """Let the side stream go on only after the event."""
        ...

    def consumer_wait(self, event: Event) -> None:
        """Let the consumer's stream go on only after the event."""
        ...

    def host_wait(self, event: Event) -> None:
        """Block this thread until the event has happened. Safe for threads."""
        ...

    def upload(self, values: AnyArray) -> Array:
        """Copy a small host array; `values` may be changed when this returns."""
        ...

    def view(self, buffer: Buffer, offset: int, dtype: str, shape: tuple[int, ...]) -> Array:
        """See device bytes as an array; no copy."""
        ...

    def take(self, array: Array, index: Array) -> Array:
        """Return a new array of rows `array[index]`; a one-dimensional int32 or int64 index."""
        ...

    def cast(self, array: Array, dtype: str) -> Array:
        """Return values in another type, rounded to nearest even; the same array for the same type."""
        ...

    def where(self, mask: Array, array: Array, other: Array) -> Array:
        """Return `array` where the byte mask is not 0, else `other`; shapes broadcast."""
        ...

    def concat(self, arrays: Sequence[Array]) -> Array:
        """Join arrays along their last axis."""
        ...

    def reshape(self, array: Array, shape: tuple[int, ...]) -> Array:
        """See an array in another shape."""
        ...
