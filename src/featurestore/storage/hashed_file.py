"""A new file that is hashed while it is written: nothing has to be read again for its checksum."""

import os
from pathlib import Path


class HashedFile:
    """A file object for Arrow's writers: unbuffered, append-only, xxh3-128 of every byte.

    Attributes:
        position: Bytes written so far.

    Raises:
        OSError: the operating system's own errors; callers wrap uses in `storage_errors`.
    """

    def __init__(self, path: str | Path) -> None:
        import xxhash  # noqa: PLC0415 -- readers do not need it

        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._hasher = xxhash.xxh3_128()
        self.position = 0
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append bytes."""
        view = memoryview(data).cast("B")
        size = view.nbytes
        self._hasher.update(view)
        while view.nbytes:
            view = view[os.write(self._descriptor, view) :]
        self.position += size
        return size

    def hexdigest(self) -> str:
        """Return xxh3-128 of all bytes so far, 32 hex digits."""
        return str(self._hasher.hexdigest())

    def sync(self) -> None:
        """Force the bytes to the disk."""
        os.fsync(self._descriptor)

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
        """Do nothing: no byte is held back."""

    def close(self) -> None:
        """Close it; again is fine."""
        if not self.closed:
            self.closed = True
            os.close(self._descriptor)
