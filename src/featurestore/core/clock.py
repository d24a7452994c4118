"""The only place that reads the wall clock; everything else takes a `Clock`."""

import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """Tells the time as ns since 1970 UTC."""

    def now_ns(self) -> int:
        """Return the current time, ns since 1970 UTC."""
        ...


@dataclass(frozen=True, slots=True)
class SystemClock:
    """The machine's wall clock."""

    def now_ns(self) -> int:
        """Return the wall clock's time, ns since 1970 UTC."""
        return time.time_ns()


@dataclass(slots=True)
class ManualClock:
    """A clock that stands still until told otherwise, for tests and replays."""

    time_ns: int = 0

    def now_ns(self) -> int:
        """Return the time last set, ns since 1970 UTC."""
        return self.time_ns

    def advance(self, by_ns: int) -> None:
        """Move the clock forward by `by_ns` nanoseconds."""
        self.time_ns += by_ns
