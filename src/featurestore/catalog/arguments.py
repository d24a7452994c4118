"""Arguments of definitions, checked before anything is made of them; a message names what was given."""

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from featurestore.catalog.refs import Ref, parse_ref
from featurestore.errors import DefinitionError


def refuse(what: str, field: str, value: object, hint: str) -> NoReturn:
    """Refuse an argument that cannot be right.

    Raises:
        DefinitionError: always; the hint says what to give.
    """
    raise DefinitionError(f"{what} has {field}={value!r}", hint=hint)


def listed(what: str, field: str, value: Any, of: str) -> tuple[Any, ...]:
    """Return a list of anything as a tuple, read once.

    Raises:
        DefinitionError: one thing where a list is meant, or nothing that can be read one by one.
    """
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping)):
        refuse(what, field, value, f"give a list of {of}")
    return tuple(value)


def reference(what: str, field: str, value: Any, kinds: tuple[type[Any], ...]) -> Ref:
    """Return the reference to a definition that is given as an object or as text.

    Raises:
        DefinitionError: a definition of another kind, anything else, or text that is no reference.
    """
    if isinstance(value, kinds):
        return Ref(value.name)
    if not isinstance(value, str):
        names = " or ".join(kind.kind.replace("_", " ") for kind in kinds)
        refuse(what, field, value, f"give a {names}, or its name")
    return parse_ref(value)


def text(what: str, field: str, value: object) -> str:
    """Return an argument that is text.

    Raises:
        DefinitionError: it is not.
    """
    if not isinstance(value, str):
        refuse(what, field, value, "give text")
    return value


def mapped(what: str, field: str, value: Any, of: str) -> dict[str, Any]:
    """Return a mapping from text as a dictionary; `None` is an empty one.

    Raises:
        DefinitionError: no mapping, or a key that is not text.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        refuse(what, field, value, f"give a mapping: {of}")
    return dict(value)


def flag(what: str, field: str, value: object) -> bool:
    """Return an argument that is True or False.

    Raises:
        DefinitionError: it is neither.
    """
    if not isinstance(value, bool):
        refuse(what, field, value, "give True or False")
    return value
