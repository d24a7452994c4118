"""Small charts as inline SVG: no library, no script, readable when printed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

INK: Final = "#1f2937"
MUTED: Final = "#6b7280"
GRID: Final = "#e5e7eb"
SERIES: Final = ("#2563eb", "#f59e0b", "#059669", "#9333ea")
FONT: Final = "font-family='Inter, system-ui, -apple-system, Segoe UI, Roboto, sans-serif'"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart: points in data coordinates, x ascending.

    Attributes:
        faint: Draw it thin and pale, as the ground for another line.
    """

    name: str
    points: Sequence[tuple[float, float]]
    color: str
    faint: bool = False


def bars(labels: Sequence[str], shares: Sequence[float], *, title: str, note: str) -> str:
    """Draw a histogram: one bar per label, each with its share of the total written above it."""
    width, height, left, bottom, top = 760, 270, 16, 52, 34
    step = (width - 2 * left) / max(len(labels), 1)
    tallest = max([*shares, 1e-9])
    parts = []
    for i, (label, share) in enumerate(zip(labels, shares, strict=True)):
        tall = (height - bottom - top - 18) * share / tallest
        x, y = left + i * step, height - bottom - tall
        color = MUTED if label == "none" else SERIES[0]
        middle = x + step / 2
        parts += [
            f"<rect x='{x + step * 0.1:.1f}' y='{y:.1f}' width='{step * 0.8:.1f}' "
            f"height='{max(tall, 0.6):.1f}' rx='2' fill='{color}'/>",
            _text(middle, y - 6, _percent(share), anchor="middle", size=11),
            _text(middle, height - bottom + 17, label, anchor="middle", size=11, color=MUTED),
        ]
    base = height - bottom
    parts.append(f"<line x1='{left}' y1='{base}' x2='{width - left}' y2='{base}' stroke='{INK}'/>")
    parts.append(_text(width / 2, height - 12, note, anchor="middle", size=11, color=MUTED))
    return _svg(width, height, title, parts)


def grouped_rows(counts: Mapping[str, Mapping[str, int]], *, title: str) -> str:
    """Draw rows per symbol and date: one line per symbol, one bar per date, the number at its end."""
    dates = sorted({date for by_date in counts.values() for date in by_date})
    thick, gap, top, left, right = 11, 8, 62, 64, 70
    block = thick * len(dates) + gap
    width, height = 760, top + block * len(counts) + 10
    longest = max([n for by_date in counts.values() for n in by_date.values()] + [1])
    parts = []
    for i, date in enumerate(dates):
        x = left + 120 * i
        parts.append(f"<rect x='{x}' y='36' width='10' height='10' rx='2' fill='{SERIES[i % len(SERIES)]}'/>")
        parts.append(_text(x + 15, 45, date, size=11, color=MUTED))
    for row, (symbol, by_date) in enumerate(counts.items()):
        y = top + row * block
        parts.append(_text(left - 8, y + block / 2, symbol, anchor="end", size=11))
        for i, date in enumerate(dates):
            n = by_date.get(date, 0)
            long = (width - left - right) * n / longest
            bar = y + i * thick
            parts.append(
                f"<rect x='{left}' y='{bar:.1f}' width='{max(long, 0.6):.1f}' height='{thick - 2}' rx='2' "
                f"fill='{SERIES[i % len(SERIES)]}'/>"
            )
            parts.append(_text(left + long + 5, bar + thick - 3, f"{n:,}", size=9, color=MUTED))
    return _svg(width, height, title, parts)


def lines(series: Sequence[Line], *, title: str, x_note: str, y_note: str) -> str:
    """Draw lines on one pair of axes that begin where the data do."""
    width, height, left, right, top, bottom = 760, 300, 58, 24, 58, 44
    every = [point for line in series for point in line.points]
    if not every:
        return _svg(width, height, title, [_text(width / 2, height / 2, "no data", anchor="middle")])
    x_low, x_high = min(x for x, _ in every), max(x for x, _ in every)
    y_low, y_high = min(y for _, y in every), max(y for _, y in every)
    margin = (y_high - y_low) * 0.04 or 0.5
    y_low, y_high = y_low - margin, y_high + margin

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / ((x_high - x_low) or 1)
        return left + across * (width - left - right), top + (y_high - y) / (y_high - y_low) * (
            height - top - bottom
        )

    parts = []
    for value in ticks(y_low, y_high):
        _, y = place(x_low, value)
        parts.append(f"<line x1='{left}' y1='{y:.1f}' x2='{width - right}' y2='{y:.1f}' stroke='{GRID}'/>")
        parts.append(_text(left - 8, y + 4, f"{value:g}", anchor="end", size=11, color=MUTED))
    for value in ticks(x_low, x_high):
        x, _ = place(value, y_low)
        parts.append(_text(x, height - bottom + 17, f"{value:,g}", anchor="middle", size=11, color=MUTED))
    for i, line in enumerate(series):
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in line.points)
        style = "stroke-width='1' stroke-opacity='0.35'" if line.faint else "stroke-width='2'"
        parts.append(
            f"<polyline points='{path}' fill='none' stroke='{line.color}' {style} stroke-linejoin='round'/>"
        )
        x = left + 190 * i
        parts.append(f"<line x1='{x}' y1='41' x2='{x + 18}' y2='41' stroke='{line.color}' {style}/>")
        parts.append(_text(x + 24, 45, line.name, size=11, color=MUTED))
    parts.append(_text((left + width - right) / 2, height - 8, x_note, anchor="middle", size=11, color=MUTED))
    parts.append(_text(width - right, 45, y_note, anchor="end", size=11, color=MUTED))
    return _svg(width, height, title, parts)


def ticks(low: float, high: float) -> list[float]:
    """Return three to seven round numbers within `[low, high]`."""
    rough = (high - low) / 5 or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0005 else ("0" if share == 0 else "<0.1%")


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, color: str = INK) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' font-size='{size}' fill='{color}'>"
        f"{escape(text)}</text>"
    )


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    heading = f"<text x='16' y='20' font-size='14' font-weight='600' fill='{INK}'>{escape(title)}</text>"
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:.0f} {height:.0f}' role='img' "
        f"aria-label='{escape(title)}' {FONT}>{heading}{''.join(parts)}</svg>"
    )
