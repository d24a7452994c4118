"""Which column types can be keys, and which of them compare with each other."""

from collections.abc import Callable
from typing import Final

import pyarrow as pa

from featurestore.errors import SchemaError

_STRINGS: Final[tuple[Callable[[pa.DataType], bool], ...]] = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
)
_BINARIES: Final[tuple[Callable[[pa.DataType], bool], ...]] = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)


def key_kind(kind: pa.DataType, name: str) -> str:
    """Name the kind of a key type; types of one kind compare with each other by value.

    Strings of any layout are one kind, binaries of any layout another, integers of any width a third;
    bool, times and decimals compare only with the very same type. A dictionary is of its values' kind.

    Raises:
        SchemaError: a type that cannot be a key: floats (NaN, -0.0 and rounding make no identity), nested.
    """
    if pa.types.is_dictionary(kind):
        return key_kind(kind.value_type, name)
    if isinstance(kind, pa.BaseExtensionType):
        return f"{kind.extension_name}:{key_kind(kind.storage_type, name)}"
    if any(holds(kind) for holds in _STRINGS):
        return "string"
    if any(holds(kind) for holds in _BINARIES):
        return "binary"
    if pa.types.is_integer(kind):
        return "integer"
    if pa.types.is_boolean(kind) or pa.types.is_decimal(kind):
        return str(kind)
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return str(kind)
    raise SchemaError(
        f"key column {name!r} is of type {kind}, which cannot be a key",
        hint="strings, integers, binary, bool, dates, times and decimals can",
        column=name,
    )
