"""Calls as lines of JSON: method, status, time and size. Never a key, a value or a token."""

import json
import sys
from typing import TextIO

from featurestore.core.clock import Clock, SystemClock
from featurestore.core.time import format_instant


class CallLog:
    """Writes one line per call."""

    def __init__(self, out: TextIO | None = None, clock: Clock | None = None) -> None:
        """Write to standard error unless told otherwise."""
        self._out = out or sys.stderr
        self._clock = clock or SystemClock()

    def call(self, method: str, status: str, taken_s: float, request_bytes: int) -> None:
        """Log a call."""
        entry = {
            "time": format_instant(self._clock.now_ns()),
            "method": method,
            "status": status,
            "seconds": round(taken_s, 6),
            "request_bytes": request_bytes,
        }
        self._out.write(json.dumps(entry) + "\n")
        self._out.flush()
