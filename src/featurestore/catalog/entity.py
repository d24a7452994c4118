"""Entity: the thing that features describe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from featurestore.catalog.definition import Definition, metadata_spec
from featurestore.core.names import check_feature_name, check_name
from featurestore.errors import DefinitionError


@dataclass(frozen=True, slots=True, eq=False, repr=False, init=False)
class Entity(Definition):
    """The thing described, and the columns that identify it.

    Attributes:
        join_keys: One or several columns, strings or integers; their order is part of the meaning.
    """

    kind: ClassVar[str] = "entity"

    join_keys: tuple[str, ...]
    owner: str
    description: str
    tags: Mapping[str, str]

    def __init__(
        self,
        name: str,
        *,
        join_keys: Sequence[str] | None = None,
        owner: str = "",
        description: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Validate and freeze.

        Raises:
            DefinitionError: a bad name, no join key, or one given twice.
        """
        keys = (name,) if join_keys is None else _key_columns(name, join_keys)
        object.__setattr__(self, "name", check_name(name, "entity"))
        object.__setattr__(self, "join_keys", keys)
        object.__setattr__(self, "owner", owner)
        object.__setattr__(self, "description", description)
        object.__setattr__(self, "tags", dict(tags or {}))

    def spec(self) -> dict[str, Any]:
        """Return the entity as plain JSON values."""
        return {
            "kind": self.kind,
            "name": self.name,
            "join_keys": list(self.join_keys),
            **metadata_spec(self.owner, self.description, self.tags),
        }


def _key_columns(name: str, join_keys: Sequence[str]) -> tuple[str, ...]:
    keys = (join_keys,) if isinstance(join_keys, str) else tuple(join_keys)
    if not keys or len(set(keys)) != len(keys):
        raise DefinitionError(
            f"entity {name!r} has join keys {list(keys)}",
            hint="give at least one join key, each once",
            entity=name,
        )
    return tuple(check_feature_name(key, "join key") for key in keys)


def entity_names(what: str, entities: "Sequence[Entity | str]") -> tuple[str, ...]:
    """Return the names of entities given as objects or by name.

    Raises:
        DefinitionError: one entity where a list of them is meant, or a bad name.
    """
    if isinstance(entities, (str, Entity)):
        raise DefinitionError(f"{what} has entities={entities!r}", hint="give a list of entities")
    return tuple(e.name if isinstance(e, Entity) else check_name(e, "entity") for e in entities)
