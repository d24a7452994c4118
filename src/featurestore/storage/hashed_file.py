"""A new file that is hashed while it is written: nothing has to be read again for its checksum."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# How many pieces the system takes in one call.
_PIECES_MAX: Final = 1024


class HashedFile:
    """A file object for Arrow's writers: append-only, xxh3-128 of every byte.

    Every piece is a call of the system: short ones are to be put together first, for Arrow's writers by a
    `pa.BufferedOutputStream`. Such a stream lets go of what it still holds when it is collected, behind a
    failure, too: once the file is closed, what comes is dropped.

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
        if not self.closed:
            self.write_all([view])
        return view.nbytes

    def write_all(self, pieces: Sequence[bytes | bytearray | memoryview]) -> None:
        """Append pieces, one after the other, in one call of the system where it takes them all."""
        for piece in pieces:
            self._hasher.update(piece)
        left, size = list(pieces), sum(map(len, pieces))
        self.position += size
        while size:
            done = os.writev(self._descriptor, left[:_PIECES_MAX])
            size -= done
            if size:
                left = _behind(left, done)

    def digest(self) -> str:
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
        """Do nothing: nothing is held."""

    def close(self) -> None:
        """Close it; again is fine."""
        if not self.closed:
            self.closed = True
            os.close(self._descriptor)


def _behind(pieces: list[bytes | bytearray | memoryview], done: int) -> list[bytes | bytearray | memoryview]:
    """Return what is left of pieces behind so many bytes."""
    whole = 0
    while whole < len(pieces) and done >= len(pieces[whole]):
        done -= len(pieces[whole])
        whole += 1
    left = pieces[whole:]
    return [memoryview(left[0])[done:], *left[1:]] if done else left
