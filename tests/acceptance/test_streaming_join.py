"""`fs.StreamingJoin` against PIT-7: what comes out is the batch join of what was pushed, row for row."""

import json
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.acceptance.plain import NEVER, Row, aggregate, choose

import featurestore as fs

Event = tuple[str, Any]
Options = dict[str, Any]

KEYS = st.sampled_from([("a",), ("b",), (None,)])
TIMES = st.one_of(st.integers(0, 25), st.none())
FUNCTIONS = ["count", "sum", "mean", "min", "max", "std", "var", "first", "last", "n_distinct", "last_n(2)"]
LEFT = pa.schema([("t", pa.int64()), ("k", pa.string()), ("id", pa.int64())])
RIGHT = pa.schema([("rt", pa.int64()), ("k", pa.string()), ("c", pa.int64()), ("v", pa.int64())])
EVENT = st.one_of(
    st.tuples(st.just("left"), st.lists(st.tuples(KEYS, TIMES), max_size=5)),
    st.tuples(st.just("right"), st.lists(st.tuples(KEYS, TIMES, TIMES), max_size=6)),
    st.tuples(st.sampled_from(["both", "mark_left", "mark_right"]), st.integers(0, 30)),
    st.tuples(st.sampled_from(["emit", "restore"]), st.none()),
)
OPTIONS = st.fixed_dictionaries(
    {
        "direction": st.sampled_from(["backward", "forward", "nearest"]),
        "tolerance": st.sampled_from([None, 0, 2, 6]),
        "boundary": st.sampled_from(["inclusive", "exclusive"]),
        "lateness": st.sampled_from([0, 3]),
        "created_on": st.sampled_from([None, "c"]),
        "late": st.sampled_from(["drop", "side_output"]),
        "aggregations": st.one_of(
            st.just([]),
            st.sampled_from([None, 2]).map(
                lambda tile: [fs.Aggregation("v", f, 4, tile=tile) for f in FUNCTIONS]
            ),
        ),
    }
)


class Replay:
    """Feeds a stream and keeps, beside it, which rows were taken in and which came too late."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.stream = self.new()
        self.out: list[pa.Table] = []
        self.bound = {"left": -(2**62), "right": -(2**62)}
        self.left: list[tuple[Any, ...]] = []
        self.right: list[Row] = []
        self.dropped: dict[str, list[int]] = {"left": [], "right": []}
        self.pushed = 0
        self.stream.push_right(RIGHT.empty_table())

    def new(self) -> fs.StreamingJoin:
        return fs.StreamingJoin(
            on="t", right_on="rt", by="k", columns=["v"], matched_timestamp="m", **self.options
        )

    def play(self, what: str, data: Any) -> None:
        if what in self.bound:
            self.push(what, data)
        elif what == "emit":
            self.emit()
        elif what == "restore":
            state = json.loads(json.dumps(self.stream.state_dict()))
            self.stream = self.new()
            self.stream.load_state_dict(state)
        else:
            sides = ["left", "right"] if what == "both" else [what.removeprefix("mark_")]
            self.stream.advance_watermark(data, source=None if what == "both" else sides[0])
            for side in sides:
                self.bound[side] = max(self.bound[side], data - self.options["lateness"])

    def push(self, side: str, data: list[tuple[Any, ...]]) -> None:
        ids = range(self.pushed, self.pushed + len(data))
        self.pushed += len(data)
        times, keys = [r[1] for r in data], [r[0][0] for r in data]
        if side == "left":
            self.stream.push_left(pa.table([times, keys, ids], schema=LEFT))
        else:
            self.stream.push_right(pa.table([times, keys, [r[2] for r in data], ids], schema=RIGHT))
        for row, name in zip(data, ids, strict=True):
            if row[1] is not None and row[1] < self.bound[side]:
                self.dropped[side].append(name)
            elif side == "left":
                self.left.append((row[0], row[1], name))
            else:
                known = NEVER if row[2] is None else row[2]
                self.right.append(Row(row[0], row[1], known if self.options["created_on"] else None, name))

    def emit(self) -> None:
        """Take what is final; of a backward join that is every row up to the first that is not sealed."""
        self.out.append(self.stream.emit())
        sealed = [t is None or key == (None,) or t < self.bound["right"] for key, t, _ in self.left]
        if self.options["direction"] == "backward":
            done = sum(map(len, self.out))
            assert done >= (sealed.index(False) if False in sealed else len(sealed))

    def answers(self) -> list[int | None]:
        options = {name: self.options[name] for name in ("direction", "tolerance")}
        exclusive = self.options["boundary"] == "exclusive"
        return [choose(key, t, self.right, exclusive=exclusive, **options) for key, t, _ in self.left]


@settings(max_examples=250, deadline=None)
@given(events=st.lists(EVENT, max_size=25), options=OPTIONS)
def test_any_cut_of_a_stream_gives_the_batch_join(events: list[Event], options: Options) -> None:
    replay = Replay(options)
    for what, data in events:
        replay.play(what, data)
    replay.out.append(replay.stream.flush())
    if replay.left:
        got = pa.concat_tables([table for table in replay.out if table.num_columns])
        assert got.column("id").to_pylist() == [row[2] for row in replay.left]
        found = [None if place is None else replay.right[place] for place in replay.answers()]
        assert got.column("v").to_pylist() == [None if row is None else row.value for row in found]
        assert got.column("m").to_pylist() == [None if row is None else row.event for row in found]
        for a in options["aggregations"]:
            values = [
                aggregate(k, t, replay.right, a.base_function, window=4, tile=a.tile_ns, k=2)
                for k, t, _ in replay.left
            ]
            assert got.column(a.name).to_pylist() == values, a.name


@settings(max_examples=100, deadline=None)
@given(events=st.lists(EVENT, max_size=25), options=OPTIONS)
def test_what_came_too_late_is_counted_and_handed_over(events: list[Event], options: Options) -> None:
    replay = Replay(options)
    for what, data in events:
        replay.play(what, data)
    for side, name in (("left", "id"), ("right", "v")):
        assert replay.stream.stats[f"late_{side}"] == len(replay.dropped[side])
        table = replay.stream.late_rows(side)
        rows = [] if table is None else table.column(name).to_pylist()
        assert rows == (replay.dropped[side] if options["late"] == "side_output" else [])
