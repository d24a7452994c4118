"""GPUDirect Storage through kvikio: files read straight into device memory, where that truly works.

The only file that imports kvikio. It never sets `KVIKIO_COMPAT_MODE=OFF`: without a driver that spins for
ever.
"""

from pathlib import Path
from typing import Any

from featurestore.errors import StorageError
from featurestore.loaders.resident import DirectReader


class KvikioReader:
    """Reads by `kvikio.CuFile`; waits for each read."""

    def __init__(self, kvikio: Any) -> None:
        self._kvikio = kvikio

    def read(self, path: Path, file_offset: int, size: int, target: Any, offset: int) -> None:
        """Fill `target[offset:offset + size]` from a file.

        Raises:
            StorageError: the file ends before, or cannot be read.
        """
        try:
            with self._kvikio.CuFile(str(path), "r") as file:
                found = file.read(target[offset : offset + size], size=size, file_offset=file_offset)
        except (OSError, RuntimeError) as error:
            raise StorageError(f"GPUDirect cannot read {str(path)!r}: {error}", path=str(path)) from error
        if found != size:
            raise StorageError(f"{str(path)!r} gave {found} of {size} bytes", path=str(path))


def open_direct_reader() -> tuple[DirectReader | None, str]:
    """Return a reader and how it reads, or None and why there is none. Never raises, never hangs."""
    try:
        import kvikio  # noqa: PLC0415 - optional
        import kvikio.cufile_driver  # noqa: PLC0415
        import kvikio.defaults  # noqa: PLC0415
    except ImportError as error:
        return None, f"kvikio cannot be imported ({error})"
    try:
        compat = bool(kvikio.defaults.is_compat_mode_preferred())
        if compat:
            return (
                None,
                "kvikio would fall back to POSIX reads (no GPUDirect driver); the pinned ring is better",
            )
        properties = kvikio.cufile_driver.properties
        return KvikioReader(kvikio), f"GPUDirect driver {properties.major_version}.{properties.minor_version}"
    except (RuntimeError, AttributeError, OSError) as error:
        return None, f"kvikio cannot say whether GPUDirect works ({error})"
