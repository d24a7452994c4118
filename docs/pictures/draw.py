"""Draws the pictures of docs/pit-rules.md, one SVG each: `python docs/pictures/draw.py`."""

from html import escape
from pathlib import Path
from typing import Final

INK: Final = "#1f2937"
MUTED: Final = "#6b7280"
PALE: Final = "#dbeafe"
BLUE: Final = "#2563eb"
RED: Final = "#dc2626"
AMBER: Final = "#b45309"
GREEN: Final = "#047857"
WIDTH: Final = 760
LEFT: Final = 118
RIGHT: Final = 30
MARKS: Final = {"chosen": "chosen", "seen": "visible, not chosen", "hidden": "not visible"}


class Timeline:
    """A drawing with a time axis: lanes from top to bottom, `ticks` whole instants from left to right."""

    def __init__(self, title: str, *, lanes: int, ticks: int, top: int = 62) -> None:
        self.title = title
        self.ticks = ticks
        self.top = top
        self.lane_height = 46
        self.bottom = top + lanes * self.lane_height
        self.height = self.bottom + 60
        self.parts: list[str] = []

    def x(self, tick: float) -> float:
        """Where an instant is, from the left."""
        return LEFT + tick * (WIDTH - LEFT - RIGHT) / self.ticks

    def y(self, lane: float) -> float:
        """Where a lane's line is, from the top."""
        return self.top + (lane + 0.5) * self.lane_height

    def text(
        self, x: float, y: float, words: str, *, color: str = INK, anchor: str = "middle", size: int = 12
    ) -> None:
        """Write words at a place."""
        self.parts.append(
            f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' font-size='{size}' fill='{color}'>"
            f"{escape(words)}</text>"
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, *, color: str = INK, style: str = "") -> None:
        """Draw a straight line."""
        self.parts.append(
            f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{color}' {style}/>"
        )

    def lane(self, lane: float, name: str) -> None:
        """Draw a lane and its name."""
        self.line(LEFT, self.y(lane), WIDTH - RIGHT, self.y(lane), color="#cbd5e1")
        self.text(LEFT - 14, self.y(lane) + 4, name, anchor="end", color=MUTED)

    def band(self, start: float, end: float, words: str, *, color: str = PALE) -> None:
        """Shade a span of time over all lanes and say above it what it is."""
        x, width = self.x(start), self.x(end) - self.x(start)
        self.parts.insert(
            0,
            f"<rect x='{x:.1f}' y='{self.top - 6}' width='{width:.1f}' height='{self.bottom - self.top + 6}' "
            f"fill='{color}' fill-opacity='0.7'/>",
        )
        self.text(x + width / 2, self.top - 12, words, color=BLUE if color == PALE else AMBER)

    def edge(self, tick: float, *, closed: bool, color: str = BLUE) -> None:
        """Mark a bound of a span: filled where the bound belongs to it, hollow where not."""
        x = self.x(tick)
        self.line(x, self.top - 6, x, self.bottom, color=color, style="stroke-width='1.2'")
        fill = color if closed else "#ffffff"
        self.parts.append(
            f"<circle cx='{x:.1f}' cy='{self.bottom}' r='4.5' fill='{fill}' stroke='{color}' "
            "stroke-width='1.5'/>"
        )

    def reader(self, tick: float, words: str, *, color: str = INK) -> None:
        """Draw a reader (a spine row): a vertical line at its time."""
        x = self.x(tick)
        self.line(x, self.top - 6, x, self.bottom + 6, color=color, style="stroke-width='2'")
        self.text(x, self.bottom + 22, words, color=color)

    def row(self, tick: float, lane: float, kind: str, words: str = "", *, place: str = "above") -> None:
        """Draw a source row, `chosen`, `seen` or `hidden`, and its words `above`, `left` or `below`."""
        x, y = self.x(tick), self.y(lane)
        if kind == "hidden":
            for a, b in ((-5, 5), (5, -5)):
                self.line(x - 5, y + a, x + 5, y + b, color=RED, style="stroke-width='2'")
        else:
            fill = BLUE if kind == "chosen" else "#ffffff"
            self.parts.append(
                f"<circle cx='{x:.1f}' cy='{y:.1f}' r='6' fill='{fill}' stroke='{BLUE}' stroke-width='2'/>"
            )
        color = {"hidden": RED, "chosen": BLUE}.get(kind, MUTED)
        dx, dy, anchor = {"above": (0, -11, "middle"), "left": (-11, -8, "end"), "below": (0, 21, "middle")}[
            place
        ]
        self.text(x + dx, y + dy, words, color=color, size=11, anchor=anchor)

    def arrow(self, start: float, end: float, lane: float, *, color: str = MUTED) -> None:
        """Draw an arrow along a lane: from an event to the instant at which it could have been known."""
        y, x = self.y(lane), self.x(end)
        self.line(self.x(start) + 8, y, x - 5, y, color=color, style="stroke-width='1.6'")
        self.parts.append(
            f"<path d='M{x - 6:.1f},{y - 4:.1f} L{x:.1f},{y:.1f} L{x - 6:.1f},{y + 4:.1f} Z' fill='{color}'/>"
        )

    def svg(self, **legend: str) -> str:
        """Return the drawing with its title and a legend: what each kind of mark means here."""
        x = LEFT
        y = self.height - 12
        keep = self.parts
        self.parts = []
        for kind, name in legend.items():
            if kind == "hidden":
                for a, b in ((-4, 4), (4, -4)):
                    self.line(x - 4, y - 4 + a, x + 4, y - 4 + b, color=RED, style="stroke-width='2'")
            else:
                fill = BLUE if kind == "chosen" else "#ffffff"
                self.parts.append(
                    f"<circle cx='{x}' cy='{y - 4}' r='5' fill='{fill}' stroke='{BLUE}' stroke-width='2'/>"
                )
            self.text(x + 12, y, name, anchor="start", color=MUTED, size=11)
            x += 44 + 7 * len(name)
        body = "".join(keep + self.parts)
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {self.height}' width='{WIDTH}' "
            f"height='{self.height}' role='img' aria-label='{escape(self.title)}' "
            "font-family='Inter, system-ui, -apple-system, Segoe UI, Roboto, sans-serif'>"
            f"<rect width='{WIDTH}' height='{self.height}' fill='#ffffff'/>"
            f"<text x='16' y='24' font-size='14' font-weight='600' fill='{INK}'>{escape(self.title)}</text>"
            f"{body}</svg>\n"
        )


def visible() -> str:
    """PIT-1 and PIT-2: the past and the present are visible, the future is not, the newest wins."""
    d = Timeline(
        "A row is visible up to the reader's own instant, and the newest visible row wins", lanes=1, ticks=12
    )
    d.band(0, 8, "visible: event ≤ t")
    d.lane(0, "quote")
    for tick, kind, words in (
        (2, "seen", "100"),
        (5, "seen", "101"),
        (8, "chosen", "102"),
        (9, "hidden", "103"),
    ):
        d.row(tick, 0, kind, words, place="left" if tick == 8 else "above")
    d.edge(8, closed=True)
    d.reader(8, "reader at t → 102")
    return d.svg(**MARKS)


def ttl() -> str:
    """PIT-1: the bound of the ttl is included."""
    d = Timeline("ttl = 5: an age of exactly 5 is still visible, one tick more is not", lanes=2, ticks=14)
    d.band(5, 10, "t - 5 ≤ event ≤ t")
    d.lane(0, "entity A")
    d.lane(1, "entity B")
    d.row(5, 0, "chosen", "age 5", place="left")
    d.row(4, 1, "hidden", "age 6: expired, null", place="left")
    d.edge(5, closed=True)
    d.edge(10, closed=True)
    d.reader(10, "reader at t")
    return d.svg(chosen="chosen", hidden="not visible")


def created() -> str:
    """PIT-1: a row is invisible before it could have been known."""
    d = Timeline(
        "Event and created timestamps: a backfill does not leak into the past", lanes=3, ticks=14, top=50
    )
    for lane, name in enumerate(("row 1", "row 2", "corrects row 1")):
        d.lane(lane, name)
    for lane, event, known, kind in ((0, 2, 3, "chosen"), (1, 5, 11, "hidden"), (2, 2, 9.5, "hidden")):
        d.arrow(event, known, lane)
        d.row(event, lane, kind, "event")
        d.text(
            d.x(known) + 3,
            d.y(lane) - 11,
            "created",
            color=MUTED,
            size=11,
            anchor="start" if lane == 0 else "end",
        )
    d.reader(8, "reader at 8 → row 1", color=BLUE)
    d.reader(12, "reader at 12 → row 2", color=GREEN)
    return d.svg(chosen="what the reader at 8 gets", hidden="not yet known to it")


def last_known() -> str:
    """PIT-4: with last_known each column takes its newest value, each with its own age."""
    d = Timeline(
        'nulls="last_known": each column takes its newest non-null value, with its own age', lanes=2, ticks=12
    )
    d.band(3, 9, "ttl = 6")
    d.lane(0, "bid")
    d.lane(1, "ask")
    for tick, lane, kind, words in (
        (1, 0, "hidden", "99.8"), (4, 1, "seen", "100.3"),
        (5.5, 0, "chosen", "99.9"), (7, 1, "chosen", "100.2"),
    ):  # fmt: skip
        d.row(tick, lane, kind, words)
    for tick, lane in ((1, 1), (4, 0), (5.5, 1), (7, 0)):
        d.text(d.x(tick), d.y(lane) + 4, "null", color="#9ca3af", size=11)
    d.edge(3, closed=True)
    d.edge(9, closed=True)
    d.reader(9, "reader at t → bid 99.9, ask 100.2, mid 100.05")
    return d.svg(**MARKS)


def windows() -> str:
    """Aggregations: the window's start does not belong to it, its end does."""
    d = Timeline(
        "Aggregation over (t - 6, t]: the start is outside, the reader's instant inside", lanes=1, ticks=14
    )
    d.band(4, 10, "window = 6")
    d.lane(0, "trade size")
    for tick, kind, words in (
        (2, "hidden", "300"), (4, "hidden", "200"), (5, "chosen", "100"), (7.5, "chosen", "400"),
        (10, "chosen", "50"), (11.5, "hidden", "900"),
    ):  # fmt: skip
        d.row(tick, 0, kind, words, place="left" if tick in {4, 10} else "above")
    d.edge(4, closed=False)
    d.edge(10, closed=True)
    d.reader(10, "reader at t: count 3, sum 550")
    return d.svg(chosen="in the window", hidden="outside")


def tiles() -> str:
    """Aggregations with a tile: the start is rounded down, for training and serving alike."""
    d = Timeline(
        "tile = 4: the window's start is rounded down to a multiple, offline and online alike",
        lanes=1,
        ticks=14,
    )
    d.band(4, 10, "(t - 5 → 4, t]")
    d.lane(0, "trade size")
    for tick in range(0, 15, 4):
        d.line(d.x(tick), d.y(0) - 7, d.x(tick), d.y(0) + 7, color="#94a3b8")
        d.text(d.x(tick), d.bottom - 2, str(tick), color="#94a3b8", size=10)
    for tick, kind in ((3, "hidden"), (4.6, "chosen"), (7, "chosen"), (9.2, "chosen")):
        d.row(tick, 0, kind)
    d.edge(4, closed=False)
    d.edge(10, closed=True)
    d.reader(10, "reader at t = 10, window 5")
    return d.svg(chosen="in the window", hidden="outside")


def labels() -> str:
    """PIT-5: features end where labels begin."""
    d = Timeline(
        "Features lie in the past, labels in (t, t + horizon]: no instant belongs to both", lanes=1, ticks=14
    )
    d.band(0, 6, "what features may see")
    d.band(6, 12, "what a label may see", color="#fef3c7")
    d.lane(0, "mid price")
    for tick, kind, words in (
        (3, "seen", "100.0"),
        (6, "chosen", "100.1"),
        (8, "seen", "100.4"),
        (11, "chosen", "100.3"),
    ):
        d.row(tick, 0, kind, words, place="left" if tick == 6 else "above")
    d.edge(6, closed=True)
    d.edge(12, closed=True, color=AMBER)
    d.reader(6, "t: start.mid = 100.1")
    d.text(d.x(12), d.bottom + 22, "t + horizon: mid = 100.3", color=AMBER)
    return d.svg(**MARKS)


def sealing() -> str:
    """PIT-7: a streamed answer is emitted once it can no longer change."""
    d = Timeline("Sealing: a left row is emitted once event < watermark - lateness", lanes=2, ticks=14)
    d.lane(0, "left")
    d.lane(1, "right")
    d.band(0, 7, "sealed: emitted, final")
    d.band(7, 10, "waits", color="#fef3c7")
    for tick, kind in ((2, "chosen"), (5, "chosen"), (8, "seen"), (11, "seen")):
        d.row(tick, 0, kind)
    for tick, kind in ((1, "chosen"), (4, "chosen"), (9, "seen")):
        d.row(tick, 1, kind)
    d.row(3, 1, "hidden", "came now: too late, counted", place="below")
    d.edge(7, closed=False)
    d.reader(10, "watermark", color=AMBER)
    d.text(d.x(7), d.bottom + 22, "watermark - lateness", color=BLUE)
    return d.svg(chosen="answered", seen="still open", hidden="reported, not used")


PICTURES: Final = (visible, ttl, created, last_known, windows, tiles, labels, sealing)

if __name__ == "__main__":
    for picture in PICTURES:
        path = Path(__file__).with_name(f"{picture.__name__}.svg")
        path.write_text(picture(), encoding="utf-8")
