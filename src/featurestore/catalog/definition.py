"""What all definitions share: frozen, compared by meaning, written as canonical JSON."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from featurestore.core.arguments import mapped, text
from featurestore.core.canonical import canonical_json, digest_json

METADATA_FIELDS = ("owner", "description", "tags")


@dataclass(frozen=True, slots=True, eq=False)
class Definition(ABC):
    """Something a catalog can hold.

    Two definitions are equal when they mean the same: references count by name and version, so a view that
    holds its source and one that names it are equal; owner, description and tags are no part of the meaning.
    """

    kind: ClassVar[str]

    name: str
    owner: str
    description: str
    tags: Mapping[str, str]

    def _put(self, **fields: Any) -> None:
        # Frozen for everyone but its own constructor.
        for field, value in fields.items():
            object.__setattr__(self, field, value)

    def _describe(self, owner: object, description: object, tags: object) -> None:
        """Set what describes the definition without changing what it means.

        Raises:
            DefinitionError: owner or description is no text, or the tags are no mapping of texts.
        """
        what = f"{self.kind.replace('_', ' ')} {self.name!r}"
        pairs = mapped(what, "tags", tags, '{"team": "risk"}')
        self._put(
            owner=text(what, "owner", owner),
            description=text(what, "description", description),
            tags={key: text(what, f"tags: {key}", value) for key, value in pairs.items()},
        )

    def about(self) -> dict[str, Any]:
        """Return owner, description and tags as plain JSON values."""
        return {"owner": self.owner, "description": self.description, "tags": dict(sorted(self.tags.items()))}

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Return the definition as plain JSON values; `definition_from_spec` reads it back."""

    def meaning(self) -> dict[str, Any]:
        """Return the spec without owner, description and tags: what a version number stands for."""
        return {k: v for k, v in self.spec().items() if k not in METADATA_FIELDS}

    def digest(self) -> str:
        """Return the xxh3-128 of the meaning, 32 hex digits."""
        return digest_json(self.meaning())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Definition) and self.meaning() == other.meaning()

    def __hash__(self) -> int:
        return hash(canonical_json(self.meaning()))

    def __repr__(self) -> str:
        fields = ", ".join(
            f"{key}={value!r}"
            for key, value in self.spec().items()
            if key not in {"kind", "name"} and value not in (None, "", [], {})
        )
        return f"{type(self).__name__}({self.name!r}{', ' + fields if fields else ''})"
