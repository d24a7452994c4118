"""A bar on a terminal. The only file of the loaders that imports rich."""

import time
from typing import Final, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from featurestore.loaders.stats import Stats

_REFRESH_S: Final = 0.1


class RichProgress:
    """Drawn by the consumer's thread, at most ten times a second: no thread of its own takes its time."""

    def __init__(self, epoch: int, step: int, steps: int, stream: TextIO) -> None:
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            TimeRemainingColumn(),
            console=Console(file=stream),
            auto_refresh=False,
        )
        self._task = self._progress.add_task("", total=steps, completed=step, epoch=epoch, rates="")
        self._progress.start()
        self._step = step
        self._due = 0.0

    def advance(self, step: int, stats: Stats) -> None:
        """Draw the bar if it is due."""
        self._step = step
        now = time.perf_counter()
        if now >= self._due:
            self._due = now + _REFRESH_S
            self._draw(stats)

    def end(self, stats: Stats) -> None:
        """Draw it a last time and leave it."""
        self._draw(stats)
        self._progress.stop()

    def _draw(self, stats: Stats) -> None:
        self._progress.update(self._task, completed=self._step, rates=stats.rates(), refresh=True)
