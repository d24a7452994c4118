"""Snapshots: what exactly a source held when it was read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featurestore.core.canonical import digest_json


@dataclass(frozen=True, slots=True, order=True)
class PinnedFile:
    """A file by name, size and xxh3-128 of its content."""

    path: str
    size: int
    xxh3: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A source's content, pinned: a Delta version, or files by their hashes.

    Attributes:
        source: The source's name.
        kind: `delta` or `files`.
        version: The Delta version; `None` for files.
        table_id: The Delta table's id, which tells a recreated table from the old one.
        files: The pinned files, ordered by name; empty for Delta.
        schema: Digest of the column names and types.
    """

    source: str
    kind: str
    version: int | None = None
    table_id: str = ""
    files: tuple[PinnedFile, ...] = ()
    schema: str = ""

    def spec(self) -> dict[str, Any]:
        """Return the snapshot as plain JSON values, as manifests record it."""
        out: dict[str, Any] = {"source": self.source, "kind": self.kind, "schema": self.schema}
        if self.kind == "delta":
            return {**out, "version": self.version, "table_id": self.table_id}
        return {**out, "files": [{"path": f.path, "size": f.size, "xxh3": f.xxh3} for f in self.files]}

    def digest(self) -> str:
        """Return the xxh3-128 of the snapshot's content."""
        return digest_json(self.spec())


def snapshot_from_spec(spec: Mapping[str, Any]) -> Snapshot:
    """Read back what `Snapshot.spec` wrote."""
    return Snapshot(
        source=spec["source"],
        kind=spec["kind"],
        version=spec.get("version"),
        table_id=spec.get("table_id", ""),
        files=tuple(PinnedFile(f["path"], f["size"], f["xxh3"]) for f in spec.get("files", ())),
        schema=spec.get("schema", ""),
    )
