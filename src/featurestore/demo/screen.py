"""What the demo shows while it runs, and what it has found when it ends."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.table import Table

OK: Final = "ok"
FAILED: Final = "FAILED"
SKIPPED: Final = "skipped"
STEPS: Final = 6


class Screen:
    """Prints steps with their time, and collects checks and figures.

    Attributes:
        checks: What was checked, how it came out, what was found; in order.
        facts: Figures for the closing table; in order.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.checks: list[tuple[str, str, str]] = []
        self.facts: dict[str, str] = {}
        self._step = 0
        self._began = time.perf_counter()

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Announce a step, and say how long it took when it is done."""
        self._step += 1
        began = time.perf_counter()
        self.console.print(f"\n[bold]{self._step}/{STEPS} {escape(title)}[/]")
        yield
        # What a step has freed goes back to the system, so that the peak is that of one step.
        pa.default_memory_pool().release_unused()
        self.console.print(f"    [dim]{time.perf_counter() - began:.1f} s[/]")

    @contextmanager
    def work(self, what: str) -> Iterator[None]:
        """Show what is going on while it goes on, with a clock where somebody is watching."""
        with self.console.status(f"{escape(what)} …", spinner="dots"):
            yield

    def say(self, text: str) -> None:
        """Print one line of a step."""
        self.console.print(f"    {escape(text)}", soft_wrap=True)

    def check(self, what: str, holds: bool, found: str) -> None:
        """Record and print whether something holds."""
        self._record(what, OK if holds else FAILED, found, "green" if holds else "bold red")

    def skip(self, what: str, why: str) -> None:
        """Record and print that something could not be checked here."""
        self._record(what, SKIPPED, why, "yellow")

    def _record(self, what: str, outcome: str, found: str, style: str) -> None:
        self.checks.append((what, outcome, found))
        self.console.print(f"    [{style}]{outcome:>6}[/] {escape(what)}: {escape(found)}", soft_wrap=True)

    @property
    def all_hold(self) -> bool:
        """Whether no check has failed."""
        return all(outcome != FAILED for _, outcome, _ in self.checks)

    @property
    def seconds(self) -> float:
        """Seconds since the demo began."""
        return time.perf_counter() - self._began

    def close(self) -> None:
        """Print the closing table."""
        table = Table(title="featurestore demo", title_justify="left", show_header=False, title_style="bold")
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in self.facts.items():
            table.add_row(escape(name), escape(value))
        failed = [what for what, outcome, _ in self.checks if outcome == FAILED]
        skipped = [what for what, outcome, _ in self.checks if outcome == SKIPPED]
        made = len(self.checks) - len(skipped)
        verdict = f"{made - len(failed)} of {made} hold"
        verdict += f"; skipped: {', '.join(skipped)}" if skipped else ""
        verdict += f"; FAILED: {', '.join(failed)}" if failed else ""
        table.add_row("checks", f"[{'bold red' if failed else 'green'}]{escape(verdict)}[/]")
        self.console.print()
        self.console.print(table)
