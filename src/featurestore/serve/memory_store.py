"""An online store in this process's memory: for tests, notebooks and replays. Nothing survives it."""

import threading
from collections.abc import Iterator, Mapping, Sequence

from featurestore.core.time import INT64_MIN
from featurestore.errors import OnlineStoreError, SchemaError
from featurestore.serve.store import Delivery, Edit


class MemoryStore:
    """An `OnlineStore` of dictionaries, one lock around all of them."""

    def __init__(self) -> None:
        """Hold nothing."""
        self._lock = threading.Lock()
        self._rows: dict[str, dict[bytes, bytes]] = {}
        self._fingerprints: dict[str, str] = {}
        self._floors: dict[str, int] = {}
        self._delivered: dict[str, int] = {}
        self._closed = False

    def open_table(self, name: str, fingerprint: str) -> None:
        """Create a table, or check that it is there with the same layout.

        Raises:
            SchemaError: the table was written in another layout.
        """
        with self._lock:
            if self._fingerprints.setdefault(name, fingerprint) != fingerprint:
                raise SchemaError(f"online table {name} was written in another layout", table=name)
            self._rows.setdefault(name, {})

    def tables(self) -> dict[str, str]:
        """Return the fingerprint of each table."""
        with self._lock:
            return dict(self._fingerprints)

    def read(self, requests: Sequence[tuple[str, Sequence[bytes]]]) -> list[list[bytes | None]]:
        """Return what keys hold, table by table, all as of one moment."""
        with self._lock:
            self._check_open()
            none: dict[bytes, bytes] = {}
            return [[self._rows.get(table, none).get(k) for k in keys] for table, keys in requests]

    def floor_ns(self, table: str) -> int:
        """Return the earliest instant a table answers exactly for."""
        return self._floors.get(table, INT64_MIN)

    def update(self, edits: Sequence[Edit], delivery: Delivery | None = None) -> bool:
        """Apply edits at once.

        Raises:
            OnlineStoreError: a table does not exist.
        """
        with self._lock:
            self._check_open()
            if delivery is not None and self._delivered.get(delivery.producer, 0) >= delivery.sequence:
                return False
            changes = [self._changed(edit) for edit in edits]
            for edit, (floor, values) in zip(edits, changes, strict=True):
                self._floors[edit.table] = floor
                rows = self._rows[edit.table]
                for key, value in zip(edit.keys, values, strict=True):
                    if value is None:
                        rows.pop(key, None)
                    else:
                        rows[key] = value
            if delivery is not None:
                self._delivered[delivery.producer] = delivery.sequence
            return True

    def scan(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """Yield every key of a table with what it holds, as of one moment."""
        with self._lock:
            yield from list(self._rows.get(table, {}).items())

    def purge(self, keys: Mapping[str, Sequence[bytes]]) -> int:
        """Delete keys, by table; returns how many there were."""
        with self._lock:
            gone = [self._rows[t].pop(key, None) for t, wanted in keys.items() for key in wanted]
        return sum(value is not None for value in gone)

    def residue(self, keys: Mapping[str, Sequence[bytes]]) -> dict[str, int]:
        """Count purged keys that are there again."""
        with self._lock:
            return {"keys": sum(key in self._rows[t] for t, wanted in keys.items() for key in wanted)}

    def close(self) -> None:
        """Refuse further use; closing twice is fine."""
        self._closed = True

    def _changed(self, edit: Edit) -> tuple[int, Sequence[bytes | None]]:
        rows = self._rows.get(edit.table)
        if rows is None:
            raise OnlineStoreError(f"there is no online table {edit.table}", table=edit.table)
        before = self._floors.get(edit.table, INT64_MIN)
        floor = max(before, edit.floor(before))
        return floor, edit.merge([rows.get(key) for key in edit.keys], floor)

    def _check_open(self) -> None:
        if self._closed:
            raise OnlineStoreError("the online store is closed", hint="open it again")
