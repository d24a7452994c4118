"""How much memory a process has held at most."""

import resource
import sys
from pathlib import Path


def peak_bytes(pid: int | None = None) -> int:
    """Return the peak resident memory of a process, by default this one; 0 where it cannot be told.

    Linux tells it in /proc; elsewhere only this process can be asked. `ru_maxrss` comes second because a
    child's begins with what its parent held when it was forked.
    """
    status = Path(f"/proc/{'self' if pid is None else pid}/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if pid is not None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
