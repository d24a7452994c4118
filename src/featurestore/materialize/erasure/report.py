"""What an erasure did: the report a caller gets, and the certificate that stays in the store."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from featurestore.core.canonical import canonical_json, digest_json
from featurestore.materialize.erasure.proof import Proof


@dataclass(frozen=True, slots=True, kw_only=True)
class EraseReport:
    """What an erasure did, and where rows of the keys still are.

    Attributes:
        entity: The entity; `keys` how many of its keys.
        entry: Number in the ledger of erasures; 0 for a dry run.
        dry_run: Whether nothing was changed: the counts then say what would be.
        online_rows: (view, key) pairs that were deleted online.
        erased: Rows taken out, by place: `dataset/name@version`, `source/name` for what the store appended,
            `answers/path` for logs of answers.
        rewritten: New version by old, by name.
        removed: Versions that are gone, by name.
        files_written: Files of versions and sources written; `files_removed` how many are gone.
        remaining: Rows that stay where the store owns nothing, by place: `source/name`. They count as absent
            in everything that is read or computed from here on.
        remaining_files: The same rows by file, for whoever may delete them there.
        unresolved: Values of others that may still be made from rows of the keys, by place, and why.
        proof: What the scan of every byte the store owns found; `None` where there was none.
    """

    entity: str
    keys: int
    entry: int
    dry_run: bool
    online_rows: int
    erased: Mapping[str, int]
    rewritten: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    removed: Mapping[str, list[int]] = field(default_factory=dict)
    files_written: int = 0
    files_removed: int = 0
    remaining: Mapping[str, int] = field(default_factory=dict)
    remaining_files: Mapping[str, int] = field(default_factory=dict)
    unresolved: Mapping[str, str] = field(default_factory=dict)
    proof: Proof | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing of the keys is left in what the store owns, as far as the scan proves."""
        return self.proof is not None and self.proof.clean and not self.unresolved

    def finished(self, *, erased: Mapping[str, int], files_written: int, proof: Proof) -> "EraseReport":
        """Return the report with what was done outside of versions, and the proof."""
        return replace(
            self,
            erased={**self.erased, **erased},
            files_written=self.files_written + files_written,
            proof=proof,
        )

    def spec(self) -> dict[str, Any]:
        """Return the report as plain JSON values; no key is in it."""
        out = asdict(self)
        out["rewritten"] = {
            name: {str(old): new for old, new in pairs.items()} for name, pairs in self.rewritten.items()
        }
        return {**out, "complete": self.complete}

    def to_json(self) -> bytes:
        """Write the certificate: canonical JSON that carries its own digest."""
        spec = self.spec()
        return canonical_json({**spec, "digest": digest_json(spec)}).encode() + b"\n"
