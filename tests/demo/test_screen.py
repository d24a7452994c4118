"""The closing table says what held, what was skipped and what failed."""

import io

import pytest
from rich.console import Console

from featurestore.demo.screen import Screen


@pytest.mark.parametrize(
    ("fails", "skips", "verdict"),
    [
        (False, False, "2 of 2 hold"),
        (False, True, "2 of 2 hold; skipped: training"),
        (True, True, "2 of 3 hold; skipped: training; FAILED: leak audit"),
    ],
)
def test_what_was_skipped_is_not_counted_among_what_does_not_hold(
    fails: bool, skips: bool, verdict: str
) -> None:
    text = io.StringIO()
    screen = Screen(Console(file=text, width=120))
    screen.check("verify", holds=True, found="every hash")
    screen.check("rows", holds=True, found="as many")
    if skips:
        screen.skip("training", "torch is not installed")
    if fails:
        screen.check("leak audit", holds=False, found="1 differs")
    screen.close()
    assert f" {verdict} " in text.getvalue()
    assert screen.all_hold is not fails
