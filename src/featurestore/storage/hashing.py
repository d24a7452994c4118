"""xxh3-128 of files. xxhash is loaded on first use: reading unverified needs numpy and pyarrow only."""

from pathlib import Path
from typing import Any, Final

from featurestore.errors import MissingDependencyError
from featurestore.storage.effects import storage_errors

_BLOCK: Final = 8 << 20


def new_hasher() -> Any:
    """Return an empty xxh3-128.

    Raises:
        MissingDependencyError: xxhash is not installed.
    """
    try:
        import xxhash  # noqa: PLC0415 -- see above
    except ImportError as error:
        raise MissingDependencyError(
            "verifying checksums needs xxhash", hint="pip install xxhash, or open with verify='off'"
        ) from error
    return xxhash.xxh3_128()


def hash_local_file(path: Path) -> str:
    """Return a file's xxh3-128 as 32 hex digits, read in blocks.

    Raises:
        NotFoundError: there is none.
    """
    hasher = new_hasher()
    with storage_errors("read", path), path.open("rb") as file:
        while block := file.read(_BLOCK):
            hasher.update(block)
    return str(hasher.hexdigest())
