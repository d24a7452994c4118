"""A progress bar for what materializes: rows, rows/s, the time left; a line a step where nobody looks."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn


class Bar:
    """Draws a run's steps, one bar each; it is a `materialize.progress.Progress`.

    On anything but a terminal it writes a line as a step begins and as it ends if `plain`, else nothing.
    """

    def __init__(self, console: Console, *, plain: bool = False) -> None:
        self._lines = console if plain and not console.is_terminal else None
        self._step, self._rows, self._began = "", 0, 0.0
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[rows]:,}{task.fields[about]} rows, {task.fields[rate]:,.0f}/s"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, what: str, tasks: int, rows: int) -> None:
        """Draw a new step; the bar follows tasks, because the number of rows is an estimate."""
        self._step, self._rows, self._began = what, 0, time.monotonic()
        if self._lines is not None:
            self._lines.print(f"{what}: {tasks:,} tasks" + (f", about {rows:,} rows" if rows else ""))
        self._task = self._progress.add_task(
            what, total=max(tasks, 1), rows=0, rate=0.0, about=f" of about {rows:,}" if rows else ""
        )

    def advance(self, rows: int) -> None:
        """Count a task's rows."""
        self._rows += rows
        if self._task is None:
            return
        task = next(t for t in self._progress.tasks if t.id == self._task)
        total = task.fields["rows"] + rows
        rate = total / max(task.elapsed or 0.0, 1e-3)
        self._progress.update(self._task, advance=1, rows=total, rate=rate)

    def end(self) -> None:
        """Finish the step's bar."""
        if self._lines is not None:
            seconds = max(time.monotonic() - self._began, 1e-3)
            rate = f"{self._rows:,} rows, {self._rows / seconds:,.0f}/s"
            self._lines.print(f"{self._step}: {rate}, {seconds:.1f} s")
        if self._task is not None:
            task = next(t for t in self._progress.tasks if t.id == self._task)
            self._progress.update(self._task, completed=task.total)
        self._task = None
