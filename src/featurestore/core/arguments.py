"""Arguments, checked before anything is made of them: a message names what was given and what to give."""

import math
from collections.abc import Callable, Iterable, Mapping
from operator import index
from typing import Any, NoReturn, SupportsIndex

import numpy as np

from featurestore.errors import DefinitionError

# Takes who was given the argument, its name and its value; returns the value, or one like it.
Check = Callable[[str, str, Any], Any]


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


def whole(what: str, field: str, value: object, *, least: int) -> int:
    """Return an argument that is a whole number, not below the least.

    Raises:
        DefinitionError: it is none, or below.
    """
    if isinstance(value, SupportsIndex) and not isinstance(value, bool):
        number = index(value)  # NumPy's integers too
        if number >= least:
            return number
    refuse(what, field, value, f"give a whole number, {least} or more")


def number(what: str, field: str, value: object, *, least: float, most: float = math.inf) -> float:
    """Return an argument that is a number within bounds, both included.

    Raises:
        DefinitionError: it is none, or beyond them.
    """
    if isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and least <= value <= most:
        return float(value)
    bounds = f"{least:g} or more" if most == math.inf else f"from {least:g} to {most:g}"
    refuse(what, field, value, f"give a number, {bounds}")


def folder(what: str, field: str, value: Any) -> str:
    """Return an argument that names a folder or a file, as text.

    Raises:
        DefinitionError: it is neither text nor a path.
    """
    is_path = hasattr(value, "__fspath__") and not isinstance(value, type)
    return text(what, field, value.__fspath__() if is_path else value)


def one_of(what: str, field: str, value: Any, *, choices: tuple[bool | str, ...]) -> Any:
    """Return an argument that is one of a few words, or of True and False.

    Raises:
        DefinitionError: it is not.
    """
    if not isinstance(value, (bool, str)) or value not in choices:
        refuse(what, field, value, f"one of {', '.join(map(str, choices))}")
    return value


def optional(check: Check) -> Check:
    """Return a check that lets `None` through."""
    return lambda what, field, value: None if value is None else check(what, field, value)
