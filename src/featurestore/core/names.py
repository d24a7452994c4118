"""Names that become paths, SQL identifiers and wire strings: checked once, here."""

import difflib
import re
from collections.abc import Iterable
from typing import Final

from featurestore.errors import DefinitionError

# ASCII only: no look-alikes, no path separators, nothing that needs quoting anywhere.
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}", re.ASCII)
# Columns come from other people's data: wider, but no control characters and no leading underscores
# that the storage layout uses itself.
_COLUMN_MAX: Final = 128
RESERVED_COLUMNS: Final = frozenset({"event_date", "bucket"})


def check_name(name: object, what: str) -> str:
    """Return `name` if it can be a path part, an identifier and a wire name.

    Raises:
        DefinitionError: it is empty, too long, or holds anything but ASCII letters, digits, `_`.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or "__" in name:
        raise DefinitionError(
            f"{what} name {name!r} is not allowed",
            hint="begin with an ASCII letter, then letters, digits and single underscores, at most 63 in all "
            '("__" separates a view from its feature)',
            name=name,
        )
    return name


def check_feature_name(name: object, what: str) -> str:
    """Return `name` if it can be an output column.

    Raises:
        DefinitionError: it is empty, too long, or holds a control character, `:`, `@`, `=` or `/`.
    """
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= _COLUMN_MAX
        or any(ord(c) < 32 or c in ':@=/"\\' or ord(c) == 127 for c in name)
    ):
        raise DefinitionError(
            f"{what} name {name!r} is not allowed",
            hint=f'1 to {_COLUMN_MAX} characters, without control characters or any of : @ = / " \\',
            name=name,
        )
    return name


def check_output_name(name: object, what: str) -> str:
    """Return `name` if it can be a column that we make: as `check_feature_name`, and free of look-alikes.

    Raises:
        DefinitionError: it is not ASCII, or begins or ends with a space, or begins with `__`.
    """
    checked = check_feature_name(name, what)
    if not checked.isascii() or checked != checked.strip() or checked.startswith("__"):
        raise DefinitionError(
            f"{what} name {name!r} is not allowed",
            hint="ASCII letters, digits and signs, no spaces around it, not beginning with __; a source's "
            'column of another name is renamed by an expression: {"size": \'"größe"\'}',
            name=name,
        )
    return checked


def an(noun: str) -> str:
    """Return a noun with its indefinite article: `an entity`, `a source`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def near(name: object, choices: Iterable[str]) -> str:
    """Say which of `choices` the reader may have meant, as the end of a hint; empty if there are none."""
    known = sorted(set(choices))
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    shown = ", ".join(known[:8]) + (", …" if len(known) > 8 else "")
    return f"there is: {shown}" if known else "there is none yet"
