"""The demo's report: one HTML file, no scripts, nothing fetched."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

import numpy as np

from featurestore.core.time import Int64Array
from featurestore.demo.charts import SERIES, Line, bars, grouped_rows, lines

# Upper bounds of the age classes, ns; the last one is the ttl, included.
AGE_BOUNDS_NS: Final = (
    0, 100_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000,
    100_000_000, 300_000_000, 1_000_000_000, 5_000_000_000,
)  # fmt: skip
AGE_LABELS: Final = (
    "0", "≤ 0.1 ms", "≤ 1 ms", "≤ 3 ms", "≤ 10 ms", "≤ 30 ms", "≤ 0.1 s", "≤ 0.3 s", "≤ 1 s", "≤ 5 s", "none"
)  # fmt: skip

STYLE: Final = """
:root { color-scheme: light }
body { font: 15px/1.5 Inter, system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #1f2937;
       background: #f8fafc; margin: 0 }
main { max-width: 860px; margin: 0 auto; padding: 32px 24px 64px }
h1 { font-size: 24px; margin: 0 0 4px } h2 { font-size: 17px; margin: 32px 0 8px }
p.lead { color: #6b7280; margin: 0 0 20px }
section { background: #fff; border: 1px solid #e5e7eb; border-radius: 10px; padding: 16px 20px;
          margin: 16px 0 }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: 6px 10px; border-bottom: 1px solid #eef2f7; vertical-align: top }
td { white-space: pre-line }
th { font-weight: 600; width: 34% } tr:last-child th, tr:last-child td { border-bottom: 0 }
td.mark { width: 64px; font-weight: 600 }
.ok { color: #047857 } .bad { color: #b91c1c } .skip { color: #b45309 }
svg { width: 100%; height: auto; display: block }
code { font: 13px ui-monospace, SFMono-Regular, Menlo, monospace }
"""


def age_shares(ages_ns: Int64Array, rows: int) -> list[float]:
    """Share of `rows` in each class of `AGE_LABELS`; rows without an age are the last class.

    Args:
        ages_ns: `(m,)` ages of the rows that matched, none negative, m at most `rows`.
    """
    classes = np.searchsorted(np.array(AGE_BOUNDS_NS), ages_ns, "left")
    counts = np.bincount(classes, minlength=len(AGE_LABELS))[: len(AGE_LABELS)].astype(np.float64)
    counts[-1] = rows - ages_ns.size
    shares: list[float] = (counts / max(rows, 1)).tolist()
    return shares


def loss_lines(losses: Sequence[float], *, window: int = 15) -> list[Line]:
    """The loss of every step, and its moving mean over `window` steps."""
    raw = [(float(i + 1), loss) for i, loss in enumerate(losses)]
    sums = np.cumsum([0.0, *losses])
    mean = [
        (float(i + 1), float((sums[i + 1] - sums[max(0, i + 1 - window)]) / min(i + 1, window)))
        for i in range(len(losses))
    ]
    return [
        Line("each step", raw, SERIES[0], faint=True),
        Line(f"mean of {window} steps", mean, SERIES[0]),
    ]


def report_html(
    *,
    title: str,
    lead: str,
    facts: Mapping[str, str],
    checks: Sequence[tuple[str, str, str]],
    age: Sequence[float],
    rows: Mapping[str, Mapping[str, int]],
    losses: Sequence[float],
) -> str:
    """Write the report.

    Args:
        facts: Name and value of each line of the summary, in order.
        checks: What was checked, `ok`, `FAILED` or `skipped`, and what was found.
        age: Share of rows per class of `AGE_LABELS`.
        rows: Rows of the dataset per symbol and date.
        losses: Training loss per step; empty where training was skipped.
    """
    charts = [
        bars(
            AGE_LABELS,
            age,
            title="Age of the newest visible quote at each trade",
            note="share of trades; “none”: no quote visible within the ttl of 5 s",
        ),
        grouped_rows(rows, title="Rows of the dataset per symbol and date"),
    ]
    if losses:
        charts.append(
            lines(
                loss_lines(losses),
                title="Training loss over one epoch",
                x_note="optimizer step",
                y_note="Laplace negative log-likelihood",
            )
        )
    body = [
        f"<h1>{escape(title)}</h1><p class='lead'>{escape(lead)}</p>",
        f"<h2>Checks</h2><section><table>{''.join(_check(*check) for check in checks)}</table></section>",
        f"<h2>Figures</h2><section><table>{''.join(map(_fact, facts, facts.values()))}</table></section>",
        *(f"<section>{chart}</section>" for chart in charts),
    ]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{''.join(body)}</main></body></html>"
    )


def _fact(name: str, value: str) -> str:
    return f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"


def _check(what: str, outcome: str, found: str) -> str:
    style = {"ok": "ok", "FAILED": "bad"}.get(outcome, "skip")
    return (
        f"<tr><td class='mark {style}'>{escape(outcome)}</td><th>{escape(what)}</th>"
        f"<td>{escape(found)}</td></tr>"
    )
