"""Canonical JSON and digests: one meaning, one text, one number."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from featurestore.errors import DefinitionError

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]


def canonical_json(value: Any) -> str:
    """Write JSON with sorted keys, no spaces, UTF-8 kept, and neither NaN nor infinity.

    Raises:
        DefinitionError: the value holds something JSON cannot say exactly.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DefinitionError(f"cannot be written as JSON: {error}") from error


def digest_bytes(data: bytes | memoryview) -> str:
    """Hash bytes with xxh3-128, as 32 hex digits."""
    import xxhash  # noqa: PLC0415 -- reading a dataset needs only numpy and pyarrow

    return xxhash.xxh3_128_hexdigest(data)


def digest_json(value: Any) -> str:
    """Hash a value's canonical JSON with xxh3-128, as 32 hex digits."""
    return digest_bytes(canonical_json(value).encode())
