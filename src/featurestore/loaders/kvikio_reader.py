"""GPUDirect Storage through kvikio: files read straight into device memory, where that truly works.

The only file that imports kvikio. It never sets `KVIKIO_COMPAT_MODE=OFF`: without a driver that spins for
ever.
"""

import ctypes
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from featurestore.errors import StorageError
from featurestore.loaders.direct import DirectRead, DirectReader

# kvikio's own default is one thread, which reads and copies in turns.
_THREADS: Final = 8


class KvikioReader:
    """Reads by `kvikio.CuFile`, many reads under way at once; waits for all of them.

    kvikio waits for the device's default stream before a read: a trainer that runs on a stream of its own is
    not held up by that.
    """

    def __init__(self, kvikio: Any) -> None:
        self._kvikio = kvikio

    def read(self, reads: Sequence[DirectRead], target: Any) -> None:
        """Fill the parts of a device buffer from files.

        Raises:
            StorageError: a file ends before, or cannot be read.
        """
        with ExitStack() as opened:
            files: dict[Path, Any] = {}
            under_way = []
            try:
                for read in reads:
                    if read.path not in files:
                        files[read.path] = opened.enter_context(self._kvikio.CuFile(str(read.path), "r"))
                    part = target[read.offset : read.offset + read.size]
                    future = files[read.path].pread(part, size=read.size, file_offset=read.file_offset)
                    under_way.append((read, future))
            finally:
                # Whatever happens: nothing may still write into the buffer when this returns.
                found = [(read, _result(future)) for read, future in under_way]
        for read, size in found:
            if isinstance(size, Exception):
                raise StorageError(
                    f"GPUDirect cannot read {str(read.path)!r}: {size}", path=str(read.path)
                ) from size
            if size != read.size:
                raise StorageError(
                    f"{str(read.path)!r} gave {size} of {read.size} bytes", path=str(read.path)
                )


def _result(future: Any) -> int | Exception:
    try:
        return int(future.get())
    except (OSError, RuntimeError) as error:
        return error


def open_direct_reader() -> tuple[DirectReader | None, str]:
    """Return a reader and how it reads, or None and why there is none. Never raises, never hangs."""
    try:
        # First of all: without a driver kvikio's calls raise, or spin.
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None, "there is no NVIDIA driver"
    # Else cuFile writes a log into the current folder.
    os.environ.setdefault(
        "CUFILE_LOGFILE_PATH", str(Path(tempfile.gettempdir()) / f"cufile-{os.getpid()}.log")
    )
    try:
        import kvikio  # noqa: PLC0415 - optional
        import kvikio.cufile_driver  # noqa: PLC0415 -- it loads cuFile
        import kvikio.defaults  # noqa: PLC0415 -- it loads cuFile
    except ImportError as error:
        return None, f"kvikio cannot be imported ({error})"
    try:
        if kvikio.defaults.is_compat_mode_preferred():
            return None, "kvikio would fall back to POSIX reads, and the pinned ring does those better"
        properties = kvikio.cufile_driver.properties
        if not properties.is_gds_available:
            return None, "cuFile is installed, but finds no GPUDirect driver and would copy through the host"
        if kvikio.defaults.get("num_threads") < _THREADS:
            kvikio.defaults.set("num_threads", _THREADS)
        return KvikioReader(kvikio), f"GPUDirect driver {properties.major_version}.{properties.minor_version}"
    except (RuntimeError, AttributeError, KeyError, OSError) as error:
        return None, f"kvikio cannot say whether GPUDirect works ({error})"
