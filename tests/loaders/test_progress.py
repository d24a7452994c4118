"""Progress is shown where it is asked for: a bar on a terminal, lines elsewhere, on rank 0 alone."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from featurestore.loaders import open_loader
from featurestore.loaders.progress import LineProgress, open_progress
from featurestore.loaders.stats import Stats

SMALL: dict[str, Any] = {"batch_size": 100, "columns": ["row"], "labels": [], "progress": True}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_outside_a_terminal_a_pass_ends_with_one_line(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loader = open_loader(dataset, **SMALL)
    for _ in loader:
        pass
    shown = capsys.readouterr().err
    assert shown.startswith("epoch 0: 30 of 30 batches, ")
    assert shown.count("\n") == 1
    assert "rows/s" in shown
    assert "waiting" in shown


def test_other_ranks_and_loaders_that_were_not_asked_are_silent(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in ({"rank": 1, "world_size": 2}, {"progress": False}):
        for _ in open_loader(dataset, **{**SMALL, **options}):
            pass
    assert capsys.readouterr().err == ""


def test_lines_come_when_they_are_due_and_the_last_one_is_not_repeated() -> None:
    stream, stats = io.StringIO(), Stats()
    progress = LineProgress(2, 5, 9, stream, every_s=0.0)
    for step in (6, 7):
        progress.advance(step, stats)
    progress.end(stats)
    shown = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in shown] == [f"epoch 2: {n} of 9 batches" for n in (6, 7)]


def test_on_a_terminal_the_bar_counts_from_where_the_pass_was_resumed() -> None:
    pytest.importorskip("rich")
    stream, stats = Terminal(), Stats()
    progress = open_progress(1, 40, 50, stream)
    for step in range(41, 51):
        progress.advance(step, stats)
    progress.end(stats)
    shown = stream.getvalue()
    assert "epoch 1" in shown
    assert "41/50" in shown
    assert "50/50" in shown


def test_without_rich_a_terminal_gets_lines() -> None:
    code = (
        "import sys; sys.modules['rich'] = None; import io\n"
        "from featurestore.loaders.progress import LineProgress, open_progress\n"
        "class T(io.StringIO):\n    isatty = lambda self: True\n"
        "assert type(open_progress(0, 0, 1, T())) is LineProgress\n"
    )
    environment = {**os.environ, "PYTHONPATH": "src"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
