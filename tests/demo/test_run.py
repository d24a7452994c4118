"""The whole path: it ends well on sound input, and says so with its exit status where a check fails."""

from pathlib import Path

import pytest
from tests.environment import TICKS

from featurestore import FeatureStore
from featurestore.cli import main
from featurestore.demo import audit, run
from featurestore.demo.run import run_demo
from featurestore.demo.ticks import TickSize

SMALL = TickSize(trades=20_000, quotes=200_000)
REPOSITORY = Path(__file__).parents[2]


@pytest.mark.integration
def test_the_demo_holds_on_generated_ticks_and_leaves_a_store_that_can_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, report = tmp_path / "store", tmp_path / "report.html"
    assert run_demo(data=None, root=root, keep=True, report=report, size=SMALL)
    shown = capsys.readouterr().out
    for step in range(1, 7):
        assert f"{step}/6" in shown
    for check in ("leak audit", "recreate", "gRPC equals history", "version 1 by version"):
        assert f"ok {check}" in shown
    html = report.read_text(encoding="utf-8")
    assert "FAILED" not in html
    assert html.count("<svg") == 3
    assert [entry.version for entry in FeatureStore(root).history("trade_features")] == [1, 2]


@pytest.mark.integration
def test_a_failed_check_is_shown_and_is_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The audit is told a wrong rule (a ttl one nanosecond short of what rows need): it must be believed."""
    monkeypatch.setattr(audit, "TTL_NS", 1_000_000)
    monkeypatch.setattr(run, "TickSize", lambda: SMALL)
    report = tmp_path / "report.html"
    assert main(["demo", "--report", str(report)]) == 1
    shown = capsys.readouterr().out
    assert "FAILED leak audit" in shown
    assert "raw rows say" in shown
    assert "FAILED" in report.read_text(encoding="utf-8")


@pytest.mark.integration
@pytest.mark.skipif(not TICKS.is_dir(), reason=f"no real ticks at {TICKS}")
def test_the_demo_holds_on_real_ticks(tmp_path: Path) -> None:
    assert run_demo(data=TICKS, root=None, keep=False, report=tmp_path / "report.html")
