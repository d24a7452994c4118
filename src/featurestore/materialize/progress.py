"""How a run tells what it has done; the drawing is the command line's business."""

from typing import Protocol


class Progress(Protocol):
    """Hears of a run's steps; called from the thread that materializes."""

    def begin(self, what: str, tasks: int, rows: int) -> None:
        """A step begins; `rows` is an estimate, 0 where unknown."""
        ...

    def advance(self, rows: int) -> None:
        """A task of the step is done."""
        ...

    def end(self) -> None:
        """The step is done."""
        ...


class Silence:
    """Tells nobody."""

    def begin(self, what: str, tasks: int, rows: int) -> None:
        """Ignore a step's begin."""

    def advance(self, rows: int) -> None:
        """Ignore a task's end."""

    def end(self) -> None:
        """Ignore a step's end."""
