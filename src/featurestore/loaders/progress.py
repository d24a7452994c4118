"""Progress of a pass: a bar on a terminal, a line now and then elsewhere."""

import importlib.util
import sys
import time
from typing import Final, Protocol, TextIO

from featurestore.loaders.stats import Stats

_LINE_S: Final = 10.0


class Progress(Protocol):
    """Shows how far one pass is; called by the consumer's thread after each batch."""

    def advance(self, step: int, stats: Stats) -> None:
        """`step` batches of the epoch have been delivered."""
        ...

    def end(self, stats: Stats) -> None:
        """The pass has ended, whole or not."""
        ...


class LineProgress:
    """Writes a line at most every ten seconds, and one at the end: for log files."""

    def __init__(
        self, epoch: int, step: int, steps: int, stream: TextIO, *, every_s: float = _LINE_S
    ) -> None:
        self._epoch, self._step, self._steps = epoch, step, steps
        self._stream = stream
        self._every_s = every_s
        self._due = time.perf_counter() + every_s
        self._written = -1

    def advance(self, step: int, stats: Stats) -> None:
        """Write a line if one is due."""
        self._step = step
        now = time.perf_counter()
        if now >= self._due:
            self._due = now + self._every_s
            self._write(stats)

    def end(self, stats: Stats) -> None:
        """Write the last line."""
        if self._written != self._step:
            self._write(stats)

    def _write(self, stats: Stats) -> None:
        self._written = self._step
        done = f"epoch {self._epoch}: {self._step} of {self._steps} batches"
        self._stream.write(f"{done}, {stats.rates()}\n")
        self._stream.flush()


def open_progress(epoch: int, step: int, steps: int, stream: TextIO | None = None) -> Progress:
    """Open what suits the stream (standard error): a bar where it is a terminal and rich is installed."""
    target = sys.stderr if stream is None else stream
    if target.isatty() and _has_rich():
        from featurestore.loaders.rich_progress import RichProgress  # noqa: PLC0415 - rich is optional here

        return RichProgress(epoch, step, steps, target)
    return LineProgress(epoch, step, steps, target)


def _has_rich() -> bool:
    try:
        return importlib.util.find_spec("rich") is not None
    except ValueError:  # it was kept from being imported
        return False
