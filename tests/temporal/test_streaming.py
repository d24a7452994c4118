"""Streams: what comes out is the batch join of what went in, row for row, whatever the cuts."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.temporal.stream_cases import random_stream_case

from featurestore.errors import (
    CorruptDataError,
    DefinitionError,
    LateDataError,
    SchemaError,
    StreamError,
    TimeOverflowError,
)
from featurestore.temporal import streaming
from featurestore.temporal.join import asof_join
from featurestore.temporal.streaming import StreamingJoin
from featurestore.temporal.windows import Window


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thin out the state and forget keys on every occasion."""
    monkeypatch.setattr(streaming, "_PRUNE_ROWS", 0)
    monkeypatch.setattr(streaming, "_FORGET_KEYS", 0)


def lefts(*times: int | None, key: str = "a") -> pa.Table:
    return pa.table({"t": pa.array(times, pa.int64()), "k": pa.array([key] * len(times), pa.string())})


def rights(*times: int | None, key: str = "a") -> pa.Table:
    value = [None if t is None else t * 10 for t in times]
    return lefts(*times, key=key).append_column("v", pa.array(value, pa.int64()))


def stream_of(**options: Any) -> StreamingJoin:
    stream = StreamingJoin("t", "k", **options)
    stream.push_right(rights())
    return stream


def check_seed(seed: int, *, restore: float) -> int:
    case = random_stream_case(seed)
    got, stream = case.run(restore=restore)
    wanted = case.batch()
    assert got.schema == wanted.schema, (seed, case.rules)
    assert got.to_pylist() == wanted.to_pylist(), (seed, case.rules)
    assert stream.stats["emitted"] == len(got)
    assert stream.stats["late_left"] == len(case.late["left"])
    assert stream.stats["late_right"] == len(case.late["right"])
    return case.early_rows


@pytest.mark.usefixtures("eager")
def test_streams_cut_anywhere_equal_the_batch_join() -> None:
    assert sum(check_seed(seed, restore=0) for seed in range(500)) > 1_000


@pytest.mark.usefixtures("eager")
def test_streams_saved_and_restored_at_every_step_equal_the_batch_join() -> None:
    assert sum(check_seed(seed, restore=1) for seed in range(1_000, 1_300)) > 500


@pytest.mark.soak
@pytest.mark.usefixtures("eager")
def test_a_hundred_thousand_streams_equal_the_batch_join() -> None:
    for seed in range(10_000, 110_000):
        check_seed(seed, restore=0.3)


def test_larger_streams_keep_little_and_equal_the_batch_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_PRUNE_ROWS", 500)
    rng = np.random.default_rng(1)
    count, step = 40_000, 1_000
    left = pa.table({"t": np.arange(count) * 3, "k": rng.integers(0, 40, count)})
    right = pa.table({"t": np.arange(count) * 3 + 1, "k": rng.integers(0, 40, count), "v": np.arange(count)})
    stream, out, most = StreamingJoin("t", "k"), [], 0
    for begin in range(0, count, step):
        stream.push_left(left.slice(begin, step))
        stream.push_right(right.slice(begin, step))
        stream.advance_watermark((begin + step) * 3)
        out.append(stream.emit())
        most = max(most, (stream.stats["retained_right"] or 0) + (stream.stats["pending_left"] or 0))
    out.append(stream.flush())
    assert pa.concat_tables(out).equals(asof_join(left, right, on="t", by="k"))
    assert most < 5 * step


def test_keys_that_nobody_holds_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_PRUNE_ROWS", 0)
    monkeypatch.setattr(streaming, "_FORGET_KEYS", 100)
    stream, out = StreamingJoin("t", "k", tolerance=5), []
    tables: tuple[list[pa.Table], list[pa.Table]] = ([], [])
    for step in range(60):
        keys = pa.array([f"key {step} {n}" for n in range(20)])
        right = pa.table({"t": pa.array([step * 10] * 20, pa.int64()), "k": keys, "v": pa.array(range(20))})
        left = pa.table({"t": pa.array([step * 10 + 1] * 20, pa.int64()), "k": keys})
        stream.push_right(right)
        stream.push_left(left)
        stream.advance_watermark(step * 10 + 5)
        out.append(stream.emit())
        tables[0].append(left)
        tables[1].append(right)
        assert (stream.stats["entities"] or 0) < 300
    out.append(stream.flush())
    wanted = asof_join(*map(pa.concat_tables, tables), on="t", by="k", tolerance=5)
    assert pa.concat_tables(out).equals(wanted)


@pytest.mark.parametrize(
    ("watermark", "emitted"),
    [
        pytest.param(10, 0, id="a row at the bound may still get a match at its own time"),
        pytest.param(11, 1, id="one tick later it is sealed"),
    ],
)
def test_a_backward_row_comes_out_when_the_watermark_has_passed_it(watermark: int, emitted: int) -> None:
    stream = stream_of()
    stream.push_left(lefts(10))
    stream.advance_watermark(watermark)
    assert len(stream.emit()) == emitted


@pytest.mark.parametrize(
    ("options", "right", "watermark", "emitted"),
    [
        pytest.param({"lateness": 5}, (), 15, 0, id="lateness holds a row back"),
        pytest.param({"lateness": 5}, (), 16, 1, id="until it has passed too"),
        pytest.param({"direction": "forward", "tolerance": 3}, (), 13, 0, id="the reach is the tolerance"),
        pytest.param({"direction": "forward", "tolerance": 3}, (), 14, 1, id="and then it has passed"),
        pytest.param({"direction": "forward"}, (12,), 12, 0, id="an equal row may still come first"),
        pytest.param({"direction": "forward"}, (12,), 13, 1, id="nothing can come before the match"),
        pytest.param({"direction": "forward"}, (), 10**15, 0, id="without match or tolerance it waits"),
        pytest.param({"direction": "nearest"}, (6,), 14, 0, id="a nearer row may still come"),
        pytest.param({"direction": "nearest"}, (6,), 15, 1, id="beyond the match's distance it cannot"),
        pytest.param({"direction": "nearest", "tolerance": 2}, (6,), 13, 1, id="nor beyond the tolerance"),
    ],
)
def test_a_row_comes_out_exactly_when_its_reach_has_passed(
    options: dict[str, Any], right: tuple[int, ...], watermark: int, emitted: int
) -> None:
    stream = stream_of(**options)
    stream.push_left(lefts(10))
    stream.push_right(rights(*right))
    stream.advance_watermark(watermark)
    assert len(stream.emit()) == emitted


def test_rows_come_out_in_the_order_they_were_pushed() -> None:
    stream = stream_of()
    stream.push_left(lefts(20, 5))
    stream.advance_watermark(10, "right")
    assert len(stream.emit()) == 0
    stream.advance_watermark(21, "right")
    assert stream.emit()["t"].to_pylist() == [20, 5]


def test_a_row_without_key_or_time_never_waits() -> None:
    stream = stream_of()
    stream.push_left(pa.table({"t": pa.array([None, 7], pa.int64()), "k": pa.array(["a", None])}))
    assert stream.emit()["v"].to_pylist() == [None, None]


def test_only_the_rights_watermark_seals_and_only_the_lefts_drops_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streaming, "_PRUNE_ROWS", 0)
    stream = stream_of()
    stream.push_left(lefts(5))
    stream.push_right(rights(1, 2, 3))
    stream.advance_watermark(100, "left")
    assert len(stream.emit()) == 0
    stream.advance_watermark(100, "right")
    assert stream.emit()["v"].to_pylist() == [30]
    assert stream.stats["retained_right"] == 1


def test_a_watermark_never_goes_back() -> None:
    stream = stream_of()
    stream.advance_watermark("1970-01-01T00:00:01Z")
    stream.advance_watermark(5)
    assert stream.stats["watermark_left"] == stream.stats["watermark_right"] == 10**9


def test_late_rows_are_dropped_and_counted_by_side() -> None:
    stream = stream_of(lateness=2)
    stream.advance_watermark(10)
    stream.push_left(lefts(7, 8, 12))
    stream.push_right(rights(7, 8, 11))
    assert (stream.stats["late_left"], stream.stats["late_right"]) == (1, 1)
    out = stream.flush()
    assert out["t"].to_pylist() == [8, 12]
    assert out["v"].to_pylist() == [80, 110]
    assert stream.late_rows("left") is None


def test_late_rows_are_offered_on_the_side() -> None:
    stream = stream_of(late="side_output")
    stream.advance_watermark(10)
    stream.push_right(rights(9, 10))
    late = stream.late_rows("right")
    assert late is not None
    assert late["v"].to_pylist() == [90]
    assert stream.late_rows("right") is None


def test_a_late_row_can_be_an_error_and_then_nothing_was_taken_in() -> None:
    stream = stream_of(late="error")
    stream.advance_watermark(10)
    with pytest.raises(LateDataError, match="1 rows of right are older than 10 ns"):
        stream.push_right(rights(9, 10))
    assert stream.stats["retained_right"] == 0
    assert stream.stats["pushed_right"] == 0


def test_too_many_rows_are_an_error_and_then_nothing_was_taken_in() -> None:
    stream = stream_of(max_pending_rows=3)
    stream.push_left(lefts(1, 2))
    stream.push_right(rights(1))
    with pytest.raises(StreamError, match="max_pending_rows is 3"):
        stream.push_left(lefts(3))
    assert stream.stats["pending_left"] == 2
    stream.advance_watermark(5)
    assert len(stream.emit()) == 2
    stream.push_left(lefts(6, 7))


def test_nothing_goes_in_or_out_after_flush() -> None:
    stream = stream_of()
    stream.flush()
    calls: list[Callable[[], object]] = [
        partial(stream.push_left, lefts(1)),
        partial(stream.push_right, rights(1)),
        partial(stream.advance_watermark, 5),
        stream.emit,
        stream.flush,
    ]
    for call in calls:
        with pytest.raises(StreamError, match="flushed"):
            call()
    assert stream.stats["emitted"] == 0


def test_left_rows_wait_until_the_rights_columns_are_known() -> None:
    stream = StreamingJoin("t", "k")
    stream.push_left(lefts(1))
    stream.advance_watermark(9)
    assert len(stream.emit()) == 0
    with pytest.raises(StreamError, match="nothing was ever pushed on the right"):
        stream.flush()
    stream.push_right(rights())
    assert stream.emit()["v"].to_pylist() == [None]


def test_aggregates_follow_each_left_rows_own_time() -> None:
    windows = [Window("v", "sum", 5, name="s"), Window("v", "last_n", 5, n=2, name="l")]
    stream = stream_of(columns=[], aggregations=windows)
    stream.push_left(lefts(4, 9))
    stream.push_right(rights(1, 3, 5))
    stream.advance_watermark(6)
    first = stream.emit()
    stream.push_right(rights(7))
    both = pa.concat_tables([first, stream.flush()])
    assert both.column_names == ["t", "k", "s", "l"]
    assert both["s"].to_pylist() == [40, 120]
    assert both["l"].to_pylist() == [[10, 30], [50, 70]]


def test_a_saved_state_fits_only_the_same_stream() -> None:
    stream = stream_of()
    state = stream.state_dict()
    with pytest.raises(StreamError, match="direction 'backward'"):
        stream_of(direction="forward").load_state_dict(state)
    with pytest.raises(StreamError, match="not one of this version"):
        stream.load_state_dict({"format": 99})
    damaged = json.loads(json.dumps(state))
    damaged["rows"]["right"] = "AAAA"
    with pytest.raises(CorruptDataError, match="cannot be read"):
        stream_of().load_state_dict(damaged)


WRONG: list[Any] = ["gone", [], "x", 2.5, 2**70, {"a": 1}]


def test_a_damaged_state_is_refused_and_the_stream_stays_what_it_was() -> None:
    saved = stream_of(late="side_output")
    saved.push_left(lefts(1, 2))
    saved.push_right(rights(1))
    saved.advance_watermark(5)
    saved.push_right(rights(3))
    state = saved.state_dict()
    stream = stream_of(late="side_output")
    stream.push_left(lefts(4))
    before, tries = stream.state_dict(), 0
    for part, value in state.items():
        for path in [(part,), *((part, key) for key in (value if isinstance(value, dict) else ()))]:
            for wrong in WRONG:
                damaged = json.loads(json.dumps(state))
                owner = damaged if len(path) == 1 else damaged[part]
                if owner[path[-1]] == wrong:
                    continue
                owner[path[-1]] = wrong
                if wrong == "gone":
                    del owner[path[-1]]
                with pytest.raises((StreamError, CorruptDataError)):
                    stream.load_state_dict(damaged)
                assert stream.state_dict() == before
                tries += 1
    assert tries > 150
    mixed = state | {"rows": {"left": state["rows"]["right"], "right": state["rows"]["left"]}}
    with pytest.raises(CorruptDataError, match="not its own"):
        stream_of(late="side_output", columns=["v"]).load_state_dict(
            mixed | {"options": state["options"] | {"columns": ["v"]}}
        )


def test_state_keeps_nested_and_dictionary_columns() -> None:
    right = pa.table(
        {
            "t": pa.array([1, 2], pa.timestamp("us", "UTC")),
            "k": pa.array(["a", "b"]).dictionary_encode(),
            "v": pa.array([{"x": [1]}, None]),
            "d": pa.array(["p", "q"]).dictionary_encode(),
        }
    )
    left = pa.table(
        {"t": pa.array([3000, 4000], pa.timestamp("ns")), "k": pa.array(["b", "a"], pa.large_string())}
    )
    stream = StreamingJoin("t", "k")
    stream.push_right(right.slice(0, 1))
    stream.push_right(right.slice(1))
    again = StreamingJoin("t", "k")
    again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    again.push_left(left)
    out = again.flush()
    assert out.schema == asof_join(left, right, on="t", by="k").schema
    assert out["v"].to_pylist() == [None, {"x": [1]}]
    assert out["d"].to_pylist() == ["q", "p"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        pytest.param({"direction": "up"}, DefinitionError, "direction is 'up'", id="direction"),
        pytest.param({"boundary": "open"}, DefinitionError, "boundary is 'open'", id="boundary"),
        pytest.param({"late": "ignore"}, DefinitionError, "late is 'ignore'", id="late"),
        pytest.param({"tolerance": -1}, DefinitionError, "tolerance is -1", id="a negative tolerance"),
        pytest.param(
            {"lateness": "soon"}, DefinitionError, "lateness is 'soon'", id="a lateness of no length"
        ),
        pytest.param({"lateness": 2**63}, TimeOverflowError, "lateness", id="a lateness beyond int64"),
        pytest.param({"right_by": ["a", "b"]}, DefinitionError, "right is joined by", id="key counts"),
        pytest.param({"threads": 0}, DefinitionError, "threads is 0", id="no thread"),
        pytest.param({"max_pending_rows": 0}, DefinitionError, "max_pending_rows is 0", id="no room"),
        pytest.param({"aggregations": ["sum"]}, DefinitionError, "a str", id="an aggregation that is none"),
    ],
)
def test_options_are_checked_at_once(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        StreamingJoin("t", "k", **options)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        pytest.param(pa.table({"k": ["a"], "v": [1]}), "right has no column 't'", id="no time"),
        pytest.param(pa.table({"t": [1], "v": [1]}), "right has no column 'k'", id="no key"),
        pytest.param(
            pa.table({"t": ["x"], "k": ["a"], "v": [1]}), "'t' of right is of type string", id="a text"
        ),
        pytest.param(
            pa.table({"t": [1], "k": [1], "v": [1]}), "'k' of right is int64", id="another key type"
        ),
        pytest.param(pa.table({"t": [1], "k": ["a"]}), "right has no column 'v'", id="a column less"),
        pytest.param(
            pa.table({"t": [1], "k": ["a"], "v": [1], "w": [1]}), "has a column 'w'", id="a column more"
        ),
        pytest.param(
            pa.table({"t": [1], "k": ["a"], "v": [1.0]}), "'v' of right is double", id="another type"
        ),
        pytest.param(7, "is a int", id="no table"),
    ],
)
def test_a_push_that_does_not_fit_the_earlier_ones_is_refused(table: Any, message: str) -> None:
    stream = stream_of()
    with pytest.raises(SchemaError, match=message):
        stream.push_right(table)
    assert stream.stats["pushed_right"] == 0


def test_keys_of_different_kinds_on_the_two_sides_are_refused() -> None:
    stream = stream_of()
    stream.push_right(rights(1))
    with pytest.raises(SchemaError, match="key column 'k' is integer here and was string"):
        stream.push_left(pa.table({"t": [1], "k": [1]}))


def test_output_names_must_differ() -> None:
    stream = stream_of()
    with pytest.raises(SchemaError, match="two output columns are named 'v'"):
        stream.push_left(lefts(1).append_column("v", pa.array([1])))
    with pytest.raises(SchemaError, match="aggregates column 'z'"):
        StreamingJoin("t", aggregations=[Window("z", "sum", 5, name="s")]).push_right(rights(1))


def test_sources_and_sides_are_left_or_right() -> None:
    stream = stream_of()
    with pytest.raises(DefinitionError, match="source is 'both'"):
        stream.advance_watermark(1, "both")
    with pytest.raises(DefinitionError, match="side is 'both'"):
        stream.late_rows("both")


@pytest.mark.parametrize("untyped", [("left",), ("right",), ("left", "right")], ids="+".join)
@pytest.mark.parametrize("direction", ["backward", "nearest"])
def test_a_key_column_of_no_type_matches_nothing_as_in_the_batch_join(
    untyped: tuple[str, ...], direction: str
) -> None:
    sides = {"left": lefts(1, 2, 3, 4), "right": rights(1, 2, 3)}
    for name, side in sides.items():
        second = pa.array([7] * len(side)) if name == "left" else pa.array([7] * len(side), pa.int8())
        sides[name] = side.append_column("j", second)
        if name in untyped:
            sides[name] = sides[name].set_column(1, "k", pa.nulls(len(side)))
    for by in ("k", ["k", "j"], ["j", "k"]):
        columns = ["v"] if by == "k" else None
        stream = StreamingJoin("t", by, direction, columns=columns)
        stream.push_right(sides["right"].slice(0, 1))
        stream.push_left(sides["left"].slice(0, 2))
        other = StreamingJoin("t", by, direction, columns=columns)
        other.load_state_dict(json.loads(json.dumps(stream.state_dict())))
        other.push_left(sides["left"].slice(2))
        other.push_right(sides["right"].slice(1))
        joined = other.flush()
        wanted = asof_join(sides["left"], sides["right"], on="t", by=by, direction=direction, columns=columns)
        assert joined.equals(wanted)
        assert joined["v"].to_pylist() == [None] * 4


def test_a_key_column_of_no_type_leaves_the_kind_to_the_other_side() -> None:
    stream = StreamingJoin("t", ["k", "j"])
    stream.push_right(pa.table({"t": [1], "k": pa.nulls(1), "j": [1], "v": [1]}))
    with pytest.raises(SchemaError, match="key column 'j' is string here and was integer"):
        stream.push_left(pa.table({"t": [1], "k": ["a"], "j": ["a"]}))
    stream.push_left(pa.table({"t": [1], "k": [True], "j": [1]}))
    assert stream.flush()["v"].to_pylist() == [None]
