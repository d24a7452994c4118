"""The report is well-formed, needs nothing from outside, and its numbers are what went in."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from featurestore.demo.charts import Line, bars, grouped_rows, lines, ticks
from featurestore.demo.report import AGE_LABELS, age_shares, loss_lines, report_html


def test_every_age_is_counted_once_and_rows_without_one_come_last() -> None:
    shares = age_shares(np.array([0, 1, 100_000, 100_001, 5_000_000_000]), 10)
    assert len(shares) == len(AGE_LABELS)
    assert shares[:3] == [0.1, 0.2, 0.1]
    assert shares[-2:] == [0.1, 0.5]
    assert sum(shares) == pytest.approx(1)


def test_the_smooth_line_is_the_mean_of_the_last_steps() -> None:
    _, smooth = loss_lines([4.0, 2.0, 0.0, 6.0], window=2)
    assert [y for _, y in smooth.points] == [4.0, 3.0, 1.0, 3.0]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 250), (-0.03, 0.02), (5.0, 5.0001), (0, 1e7)])
def test_axis_marks_are_round_and_within_the_data(low: float, high: float) -> None:
    marks = ticks(low, high)
    assert 3 <= len(marks) <= 7
    assert low - 1e-9 <= marks[0] < marks[-1] <= high + 1e-9
    assert all(re.fullmatch(r"-?\d(\.\d{1,6})?(0*)?(e[+-]\d+)?|-?\d+(\.\d+)?", f"{mark:g}") for mark in marks)


def test_charts_are_well_formed_also_with_odd_names_and_no_data() -> None:
    drawn = [
        bars(["<a>", "none"], [0.0, 1.0], title="a & b", note="x < y"),
        grouped_rows({"A&B": {"2025-06-02": 0, "2025-06-03": 3}}, title="t"),
        lines([], title="empty", x_note="x", y_note="y"),
        lines([Line("flat", [(0, 1), (1, 1)], "#000")], title="flat", x_note="x", y_note="y"),
    ]
    for chart in drawn:
        assert ET.fromstring(chart).tag.endswith("svg")  # noqa: S314 -- our own text


def test_the_report_holds_every_check_and_fact_and_fetches_nothing() -> None:
    html = report_html(
        title="demo <1>",
        lead="two days",
        facts={"rows": "1,234", "loss": "2 → 1"},
        checks=[("leak audit", "ok", "18,000 values"), ("loss falls", "FAILED", "2 → 3")],
        age=age_shares(np.array([5]), 1),
        rows={"A": {"2025-06-02": 3}},
        losses=[],
    )
    for text in ("demo &lt;1&gt;", "1,234", "leak audit", "FAILED", "2 → 3"):
        assert text in html
    assert "<script" not in html
    assert not re.search(r"(?:src|href)=", html)
    assert html.count("<svg") == 2  # no loss curve where there was no training
