"""Entity: the thing that features describe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from featurestore.catalog.definition import Definition
from featurestore.core.arguments import listed
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
        self._put(name=check_name(name, "entity"))
        self._put(join_keys=(name,) if join_keys is None else _key_columns(name, join_keys))
        self._describe(owner, description, tags)

    def spec(self) -> dict[str, Any]:
        """Return the entity as plain JSON values."""
        return {
            "kind": self.kind,
            "name": self.name,
            "join_keys": list(self.join_keys),
            **self.about(),
        }


def _key_columns(name: str, join_keys: Sequence[str]) -> tuple[str, ...]:
    what = f"entity {name!r}"
    keys = (join_keys,) if isinstance(join_keys, str) else listed(what, "join_keys", join_keys, "columns")
    checked = tuple(check_feature_name(key, "join key") for key in keys)
    if not checked or len(set(checked)) != len(checked):
        raise DefinitionError(
            f"{what} has join keys {list(checked)}",
            hint="give at least one join key, each once",
            entity=name,
        )
    return checked


def entity_names(what: str, entities: Any) -> tuple[tuple[str, ...], tuple[Entity, ...]]:
    """Return the names of entities given as objects or by name, and the objects among them.

    Raises:
        DefinitionError: one entity where a list of them is meant, or a bad name.
    """
    given = listed(what, "entities", entities, "entities")
    names = tuple(e.name if isinstance(e, Entity) else check_name(e, "entity") for e in given)
    return names, tuple(e for e in given if isinstance(e, Entity))
