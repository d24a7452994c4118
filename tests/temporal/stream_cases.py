"""Generated streams: two feeds cut at random places, with late rows, ties, nulls and watermarks per side."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.temporal.join import asof_join
from featurestore.temporal.rows import BOUNDARIES, DIRECTIONS
from featurestore.temporal.streaming import StreamingJoin
from featurestore.temporal.windows import Window


@dataclass
class StreamCase:
    """Two tables, the arguments of their join, and the random numbers that cut them."""

    rng: np.random.Generator
    left: pa.Table
    right: pa.Table
    rules: dict[str, Any]
    aggregations: list[Window]
    lateness: int
    late: dict[str, list[int]] = field(default_factory=lambda: {"left": [], "right": []})
    early_rows: int = 0

    def new(self) -> StreamingJoin:
        """Return a stream that has seen nothing."""
        return StreamingJoin(
            **self.rules, aggregations=self.aggregations, lateness=self.lateness, late="side_output"
        )

    def run(self, *, restore: float) -> tuple[pa.Table, StreamingJoin]:
        """Push everything in random pieces; with chance `restore`, go on from a saved state after each."""
        stream, out, at = self.new(), [], {"left": 0, "right": 0}
        stream.push_right(self.right.schema.empty_table())
        stream.push_left(self.left.schema.empty_table())
        tables = {"left": self.left, "right": self.right}
        seen = -5
        while at["left"] < len(self.left) or at["right"] < len(self.right):
            for side, push in (("left", stream.push_left), ("right", stream.push_right)):
                piece = tables[side].slice(at[side], int(self.rng.integers(0, 5)))
                at[side] += len(piece)
                push(piece)
                seen = max([seen, *(t for t in piece["t"].to_pylist() if t is not None)])
            source = self.rng.choice(np.array([None, "left", "right"], object))
            stream.advance_watermark(seen - int(self.rng.integers(0, 6)), source)
            if self.rng.random() < 0.7:
                out.append(stream.emit())
                self.early_rows += len(out[-1])
            self._take_late(stream)
            if self.rng.random() < restore:
                state = json.loads(json.dumps(stream.state_dict()))
                stream = self.new()
                stream.load_state_dict(state)
        out.append(stream.flush())
        self._take_late(stream)
        return pa.concat_tables(out), stream

    def _take_late(self, stream: StreamingJoin) -> None:
        for side, ids in self.late.items():
            table = stream.late_rows(side)
            if table is not None:
                ids.extend(table["id"].to_pylist())

    def on_time(self, side: str) -> pa.Table:
        """Return the rows of a side that were not late in the run."""
        table = self.left if side == "left" else self.right
        late = set(self.late[side])
        return table.filter(pa.array([i not in late for i in table["id"].to_pylist()], pa.bool_()))

    def batch(self) -> pa.Table:
        """Return the batch join of the rows that were on time, and its aggregates by one push and a flush."""
        left, right = self.on_time("left"), self.on_time("right")
        joined = asof_join(left, right, **self.rules)
        if self.aggregations:
            stream = self.new()
            stream.push_left(left)
            stream.push_right(right)
            whole = stream.flush()
            for window in self.aggregations:
                joined = joined.append_column(whole.schema.field(window.name), whole[window.name])
        return joined


def random_stream_case(seed: int, *, most: int = 28) -> StreamCase:
    """Build a case from a seed."""
    rng = np.random.default_rng(seed)
    span, disorder = int(rng.choice([8, 40])), int(rng.integers(0, 8))
    left = _table(rng, int(rng.integers(1, most)), span, disorder)
    right = _table(rng, int(rng.integers(0, most)), span, disorder)
    created = rng.random() < 0.3
    if created:
        times = np.array([t or 0 for t in right["t"].to_pylist()], np.int64)
        known = pa.array(times + rng.integers(0, 6, len(times)), mask=rng.random(len(times)) < 0.1)
        right = right.append_column("c", known)
    rules = {
        "on": "t",
        "by": None if rng.random() < 0.3 else "k",
        "direction": str(rng.choice(DIRECTIONS)),
        "tolerance": None if rng.random() < 0.5 else int(rng.integers(0, 6)),
        "boundary": str(rng.choice(BOUNDARIES)),
        "created_on": "c" if created else None,
        "prefix": "r_",
        "matched_timestamp": "at" if rng.random() < 0.5 else None,
    }
    windows = [
        Window("x", "sum", int(rng.integers(1, 10)), 0, None, "sum"),
        Window("x", "std", 6, 0, None, "std"),
        Window("id", "last_n", 5, 2, 2, "ids"),
        Window("*", "count", 4, 0, None, "rows"),
    ]
    return StreamCase(
        rng, left, right, rules, windows if rng.random() < 0.4 else [], int(rng.choice([0, 3, 20]))
    )


def _table(rng: np.random.Generator, count: int, span: int, disorder: int) -> pa.Table:
    times = np.sort(rng.integers(0, span, count)) + rng.integers(-disorder, disorder + 1, count)
    keys = [("a", "b", None)[k] for k in rng.choice(3, count, p=[0.5, 0.4, 0.1])]
    return pa.table(
        {
            "t": pa.array(np.maximum(times, -5), mask=rng.random(count) < 0.05),
            "k": pa.array(keys, pa.string()),
            "id": pa.array(np.arange(count)),
            "x": pa.array(rng.choice([0.1, 0.2, 1e17, -1e17], count), mask=rng.random(count) < 0.1),
        }
    )
