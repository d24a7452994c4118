"""A new file that is hashed while it is written: nothing has to be read again for its checksum."""

import os
from pathlib import Path
from typing import Final

# Every call of the system gives the interpreter away: a page's header of 28 bytes is not worth it.
_SHORT: Final = 1 << 15
_HELD: Final = 1 << 18


class HashedFile:
    """A file object for Arrow's writers: append-only, xxh3-128 of every byte; whole only after `finish`.

    Attributes:
        position: Bytes written so far.

    Raises:
        OSError: the operating system's own errors; callers wrap uses in `storage_errors`.
    """

    def __init__(self, path: str | Path) -> None:
        import xxhash  # noqa: PLC0415 -- readers do not need it

        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._hasher = xxhash.xxh3_128()
        self._held = bytearray()
        self.position = 0
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append bytes; short pieces are put together first."""
        view = memoryview(data).cast("B")
        self.position += view.nbytes
        if view.nbytes < _SHORT:
            self._held += view
            if len(self._held) >= _HELD:
                self._put_held()
        else:
            self._put_held()
            self._put(view)
        return view.nbytes

    def finish(self) -> str:
        """Hand everything to the operating system; returns xxh3-128 of all bytes, 32 hex digits."""
        self._put_held()
        return str(self._hasher.hexdigest())

    def sync(self) -> None:
        """Force the bytes to the disk, once it is finished."""
        os.fsync(self._descriptor)

    def _put_held(self) -> None:
        if self._held:
            self._put(memoryview(self._held))
            self._held = bytearray()

    def _put(self, view: memoryview) -> None:
        self._hasher.update(view)
        while view.nbytes:
            view = view[os.write(self._descriptor, view) :]

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self.position

    def readable(self) -> bool:
        """Say that it cannot be read: asked by Arrow."""
        return False

    def writable(self) -> bool:
        """Say that it can be written: asked by Arrow."""
        return True

    def seekable(self) -> bool:
        """Say that it only grows: asked by Arrow."""
        return False

    def flush(self) -> None:
        """Do nothing: `finish` does."""

    def close(self) -> None:
        """Close it, finished or not; again is fine."""
        if not self.closed:
            self.closed = True
            os.close(self._descriptor)
