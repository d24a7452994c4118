"""What a materialization hands back."""

from dataclasses import asdict, dataclass
from typing import Any

from featurestore.storage.files import AnyPath


@dataclass(frozen=True, slots=True, kw_only=True)
class MaterializeResult:
    """A version, and what it took to make it.

    Attributes:
        name: The training set, or the view with its version.
        version: The Delta version that holds it.
        partitions: How many (event date, bucket) partitions it has; `written` of them were computed now.
        written_bytes: Bytes of the files written now, Parquet and Arrow.
        seconds: Wall time, commit and fsync included.
        created: Whether a new version was made; `False`: the inputs and definitions had not changed.
        folder: Where the version's Arrow files and manifest lie.
        dropped_rows: Rows of a view's source without an event timestamp, which no reader could see.
    """

    name: str
    kind: str
    version: int
    rows: int
    fingerprint: str
    partitions: int
    written: int
    written_bytes: int
    seconds: float
    created: bool
    folder: AnyPath
    dropped_rows: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "folder": str(self.folder)}
