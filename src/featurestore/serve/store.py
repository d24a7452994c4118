"""OnlineStore: bytes by table and key, changed atomically. Knows no features."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Merge = Callable[[Sequence[bytes | None], int], Sequence[bytes | None]]


@dataclass(frozen=True, slots=True)
class Edit:
    """A change to some keys of one table.

    Attributes:
        table: Where.
        keys: Which, each once.
        merge: Gets what the keys hold now and the table's floor; returns what they hold afterwards, `None`
            for nothing. May be called more than once.
        floor: Gets the floor so far (`INT64_MIN` at first) and returns the new one; floors never go back.
    """

    table: str
    keys: Sequence[bytes]
    merge: Merge
    floor: Callable[[int], int]


@dataclass(frozen=True, slots=True)
class Delivery:
    """A producer's numbered delivery: applied once, however often it comes.

    Attributes:
        producer: Who sends; numbers grow within a producer.
        sequence: Its number; one that is not above the last applied is a repetition.
    """

    producer: str
    sequence: int


class OnlineStore(Protocol):
    """Where rows are kept by table and key.

    `featurestore.testing.online_conformance` holds the rules that every implementation keeps. Errors are
    `OnlineStoreError` and its kinds; an instance may be shared by threads, but never crosses a fork.
    """

    def open_table(self, name: str, fingerprint: str) -> None:
        """Create a table, or check that it is there with the same layout.

        Raises:
            SchemaError: the table was written in another layout.
        """
        ...

    def tables(self) -> dict[str, str]:
        """Return the fingerprint of each table."""
        ...

    def read(self, requests: Sequence[tuple[str, Sequence[bytes]]]) -> list[list[bytes | None]]:
        """Return what keys hold, table by table, all as of one moment.

        A table that does not exist holds nothing.
        """
        ...

    def floor_ns(self, table: str) -> int:
        """Return the earliest instant a table answers exactly for; `INT64_MIN` before the first write."""
        ...

    def update(self, edits: Sequence[Edit], delivery: Delivery | None = None) -> bool:
        """Apply edits; they are durable when this returns.

        Returns:
            False if the delivery was applied before and nothing was done.
        """
        ...

    def scan(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """Yield every key of a table with what it holds, as of one moment or better, in key order or none."""
        ...

    def purge(self, keys: Mapping[str, Sequence[bytes]]) -> int:
        """Delete keys, by table, so that none of their bytes stay in what the store itself keeps.

        Returns:
            How many there were.
        """
        ...

    def residue(self, keys: Mapping[str, Sequence[bytes]]) -> dict[str, int]:
        """Count purged keys of which something is still there, by where it is."""
        ...

    def close(self) -> None:
        """Let go of files and connections; closing twice is fine."""
        ...
