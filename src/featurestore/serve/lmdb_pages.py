"""The raw pages of an LMDB file: which bytes are live, and overwriting all that are not.

LMDB never overwrites: what was deleted stays in freed pages, in the unused middle of live ones, and as a
separator in branch pages. The layout is that of LMDB 0.9 on 64-bit machines (MDB_page, MDB_node, MDB_meta).
"""

import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from featurestore.errors import CorruptDataError

_MAGIC: Final = 0xBEEFC0DE
_HEADER: Final = 16  # bytes of a page's header
_NODE: Final = 8  # bytes of a node's header
_BRANCH, _LEAF = 0x01, 0x02
_BIG_DATA: Final = 0x01  # of a leaf's node: the value lies in pages of its own
# Within a meta page: magic, version, address, map size; two trees of 48 bytes, free pages and data; then the
# last page and the transaction.
_META_TREES: Final = _HEADER + 24
_TREE: Final = 48
_ROOT: Final = 40
_PAGE_SIZE_AT: Final = _META_TREES
_NO_ROOT: Final = 2**64 - 1


@dataclass(slots=True)
class Live:
    """What of a file is live, as of its newest transaction.

    Attributes:
        pages: One flag per page of the file.
        gaps: Bytes of live pages that hold nothing: from, to.
        separators: Keys in branch pages, each a copy of some leaf's key at some time.
    """

    pages: np.ndarray
    gaps: list[tuple[int, int]] = field(default_factory=list)
    separators: set[bytes] = field(default_factory=set)


class PageFile:
    """An LMDB data file, mapped for reading; a context manager."""

    def __init__(self, path: Path) -> None:
        """Map the file.

        Raises:
            CorruptDataError: it is not an LMDB file of this layout.
        """
        self._path = path
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(self._map) < 2 * 512 or self._number(_HEADER, 4) != _MAGIC:
            self._map.close()
            raise CorruptDataError(f"{str(path)!r} is not an LMDB file", path=str(path))
        self.page_size = self._number(_PAGE_SIZE_AT, 4)

    def __enter__(self) -> "PageFile":
        return self

    def __exit__(self, *exc: object) -> None:
        self._map.close()

    def live(self) -> Live:
        """Walk both trees of the newest transaction.

        Cost:
            Reads the header of every live page and the node headers of every leaf.
        """
        found = Live(np.zeros(-(-len(self._map) // self.page_size), np.bool_))
        found.pages[:2] = True
        meta = max(
            (0, 1), key=lambda page: self._number(page * self.page_size + _META_TREES + 2 * _TREE + 8, 8)
        )
        for tree in (0, 1):
            root = self._number(meta * self.page_size + _META_TREES + tree * _TREE + _ROOT, 8)
            if root != _NO_ROOT:
                self._walk(root, found)
        return found

    def dead_spans(self, live: Live) -> Iterator[tuple[int, int]]:
        """Yield the bytes that nothing refers to, from and to: free pages in runs, and gaps."""
        edges = np.flatnonzero(np.diff(np.concatenate([[True], live.pages, [True]])))
        for first, last in edges.reshape(-1, 2).tolist():
            yield first * self.page_size, min(last * self.page_size, len(self._map))
        yield from live.gaps

    def holds_data(self, start: int, end: int) -> bool:
        """Say whether some byte of a span is not zero."""
        return self._map[start:end].count(0) != end - start

    def bytes_of(self, span: tuple[int, int]) -> bytes:
        """Return the bytes of a span."""
        return self._map[slice(*span)]

    def _number(self, at: int, size: int) -> int:
        return int.from_bytes(self._map[at : at + size], "little")

    def _walk(self, root: int, found: Live) -> None:
        todo = [root]
        while todo:
            page = todo.pop()
            at = page * self.page_size
            flags, lower, upper = np.frombuffer(self._map, "<u2", 3, at + 10).tolist()
            if not flags & (_BRANCH | _LEAF) or found.pages[page]:
                raise CorruptDataError(f"page {page} of {str(self._path)!r} is not a page of a tree")
            found.pages[page] = True
            found.gaps.append((at + lower, at + upper))
            starts = (
                np.frombuffer(self._map, "<u2", (lower - _HEADER) // 2, at + _HEADER).astype(np.int64) + at
            )
            nodes = self._nodes(starts)
            if flags & _BRANCH:
                todo += (nodes[:, 0] | nodes[:, 1] << 16 | nodes[:, 2] << 32).tolist()
                found.separators |= {
                    self._map[start + _NODE : start + _NODE + size]
                    for start, size in zip(starts.tolist(), nodes[:, 3].tolist(), strict=True)
                }
            else:
                big = np.flatnonzero(nodes[:, 2] & _BIG_DATA)
                for start, node in zip(starts[big].tolist(), nodes[big].tolist(), strict=True):
                    self._overflow(start + _NODE + node[3], node[0] | node[1] << 16, found)

    def _nodes(self, starts: np.ndarray) -> np.ndarray:
        """Return low, high, flags and key size of nodes; `(n, 4)`."""
        halves = np.frombuffer(self._map, "<u2", len(self._map) // 2)
        # Nodes lie at even offsets.
        return halves[(starts // 2)[:, None] + np.arange(4)].astype(np.int64)

    def _overflow(self, reference: int, size: int, found: Live) -> None:
        """Mark the pages of a value that does not fit a leaf; behind its end they hold nothing."""
        page = self._number(reference, 8)
        pages = -(-(_HEADER + size) // self.page_size)
        found.pages[page : page + pages] = True
        end = (page + pages) * self.page_size
        found.gaps.append((page * self.page_size + _HEADER + size, end))


def overwrite_dead(path: Path) -> int:
    """Overwrite every byte that nothing refers to with zeros, durably; returns how many bytes were.

    The caller holds the writer's lock, and no reader looks at an older transaction.
    """
    wiped = 0
    with PageFile(path) as file:
        spans = [span for span in file.dead_spans(file.live()) if file.holds_data(*span)]
    with path.open("r+b", buffering=0) as target:
        for start, end in spans:
            for at in range(start, end, 1 << 20):
                wiped += os.pwrite(target.fileno(), bytes(min(1 << 20, end - at)), at)
        os.fsync(target.fileno())
    return wiped


def residue(path: Path, keys: Sequence[bytes]) -> dict[str, int]:
    """Count keys whose bytes are in a file although they were deleted, by where: dead bytes, separators."""
    with PageFile(path) as file:
        live = file.live()
        # Live bytes lie between dead spans: what begins in one span does not go on in the next.
        dead = b"\xff".join(file.bytes_of(span) for span in file.dead_spans(live) if file.holds_data(*span))
        return {
            "dead": sum(key in dead for key in keys),
            "separators": sum(key in live.separators for key in keys),
        }
