"""The merge that goes on from emission to emission, and the arrays that streams hold rows in."""

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore.core.time import INT64_MAX, INT64_MIN
from featurestore.temporal import streaming
from featurestore.temporal.join import asof_join
from featurestore.temporal.rows import BOUNDARIES, Rows
from featurestore.temporal.streaming import StreamingJoin
from featurestore.temporal.streaming_columns import HeldColumns
from featurestore.temporal.streaming_merge import CarriedMerge
from featurestore.temporal.streaming_rows import HeldRows
from featurestore.testing.oracle import asof_oracle_of


def held(rows: Rows) -> HeldRows:
    """Hold rows as a push would leave them."""
    out = HeldRows(with_known=False)
    _, fall = out.put_times(rows.event_ns, INT64_MIN)
    out.codes[: len(rows)] = rows.codes
    out.add(len(rows), fall)
    return out


@cache
def feeds_of(seed: int) -> tuple[Rows, Rows, int, int | None, str, list[int]]:
    """Return two feeds in time order, how many entities they have, tolerance, boundary and the answers."""
    rng = np.random.default_rng(seed)
    count, entities = ((90, 3), (70, 400), (12, 2), (200, 40))[seed % 4]
    spans = ((40, 40), (2 * count, count), (count, 3 * count))[seed % 3]
    spine, rows = (
        Rows(rng.integers(low, entities, count).astype(np.int32), np.sort(rng.integers(0, span, count)))
        for low, span in zip((-1, 0), spans, strict=True)
    )
    tolerance, boundary = (None, 0, 3)[seed % 5 % 3], BOUNDARIES[seed // 2 % 2]
    wanted = asof_oracle_of(spine, rows, direction="backward", tolerance_ns=tolerance, boundary=boundary)
    return spine, rows, entities, tolerance, boundary, wanted


def goes_on_rightly(seed: int) -> bool:
    """Whether readers answered in pieces, the state thinned out in between, get the oracle's answers."""
    spine, rows, entities, tolerance, boundary, wanted = feeds_of(seed)
    count, rng = len(spine), np.random.default_rng(seed)
    merge, right, names = CarriedMerge(tolerance, boundary, 1), held(rows), np.arange(count)
    edges = [0, *sorted(rng.integers(0, count, 3).tolist()), count]
    found: list[int] = []
    for first, last in pairwise(edges):
        if first == last:
            continue
        part = Rows(spine.codes[first:last], spine.event_ns[first:last], in_order=True)
        places = merge.answers(part, right, entities)
        if places is None:
            return False
        found += [-1 if place < 0 else int(names[place]) for place in places]
        kept = merge.retained(right, int(spine.event_ns[last - 1]))
        if kept is not None:
            merge.keep(kept, len(right))
            right.keep(kept)
            names = names[kept]
    return found == wanted


def first_row_stays() -> bool:
    """Whether a later reader still takes the very first row, seen at the end of the piece before."""
    merge, right = CarriedMerge(None, "inclusive", 1), held(Rows(np.zeros(1, np.int32), np.array([25])))
    codes, times = np.zeros(31, np.int32), np.arange(31)
    pieces = [Rows(codes[a:b], times[a:b], in_order=True) for a, b in ((0, 30), (30, 31))]
    found = [merge.answers(piece, right, 1) for piece in pieces]
    return [None if f is None else f.tolist() for f in found] == [[-1] * 25 + [0] * 5, [0]]


def test_the_first_row_stays() -> None:
    assert first_row_stays()


def test_readers_in_pieces_get_the_answers_of_all_at_once() -> None:
    assert all(goes_on_rightly(seed) for seed in range(48))


def test_what_cannot_be_told_from_the_state_is_not_answered() -> None:
    merge, codes = CarriedMerge(None, "inclusive", 1), np.zeros(3, np.int32)
    right = held(Rows(codes, np.array([5, 7, 9])))
    assert merge.answers(Rows(codes[:2], np.array([6, 8]), in_order=True), right, 1) is not None
    assert merge.answers(Rows(codes[:1], np.array([7]), in_order=True), right, 1) is None
    assert merge.answers(Rows(codes[:2], np.array([9, 8])), right, 1) is None
    found = merge.answers(Rows(codes[:1], np.array([8]), in_order=True), right, 1)
    assert found is not None
    assert found.tolist() == [1]
    assert (
        CarriedMerge(None, "inclusive", 1).answers(
            Rows(codes[:2], np.array([INT64_MIN, INT64_MAX]), in_order=True), right, 1
        )
        is None
    ), "the difference of these times wraps"


def test_a_reader_without_key_far_ahead_does_not_hide_rows_that_come_in_between() -> None:
    left = pa.table({"t": [10, 100, 100], "k": ["a", None, "a"]})
    right = pa.table({"t": [5, 50, 20], "k": ["a", "a", "a"], "v": [5, 50, 20]})
    stream, out = StreamingJoin("t", "k"), []
    stream.push_right(right.slice(0, 2))
    stream.push_left(left)
    stream.advance_watermark(11)
    out.append(stream.emit())
    assert len(out[0]) == 2, "the row without key is final"
    stream.push_right(right.slice(2))
    stream.advance_watermark(101)
    out.append(stream.emit())
    assert pa.concat_tables(out).equals(asof_join(left, right, on="t", by="k"))
    assert out[1]["v"].to_pylist() == [50]


def test_right_rows_are_thinned_out_while_no_left_row_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_PRUNE_ROWS", 10)
    stream = StreamingJoin("t", "k")
    for step in range(50):
        times = np.arange(10) + 10 * step
        stream.push_right(pa.table({"t": times, "k": ["a"] * 10, "v": times}))
        stream.advance_watermark(10 * step + 10)
        stream.emit()
        assert (stream.stats["retained_right"] or 0) < 30
    stream.push_left(pa.table({"t": [500], "k": ["a"]}))
    assert stream.flush()["v"].to_pylist() == [499]


def check_long_stream(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, keys = 3_000, int(rng.choice([1, 5, 800]))
    disorder, span = int(rng.choice([0, 0, 6])), int(rng.choice([900, 20_000]))
    tables = [_feed(rng, count, keys, span, disorder) for _ in range(2)]
    left, right = tables[0].select(["t", "k"]), tables[1]
    rules: dict[str, Any] = {
        "tolerance": None if rng.random() < 0.5 else int(rng.integers(0, span // 10)),
        "boundary": str(rng.choice(BOUNDARIES)),
        "matched_timestamp": "at",
    }
    stream, out, at = StreamingJoin("t", "k", lateness=12, **rules), [], [0, 0]
    while at[0] < count or at[1] < count:
        until = min(table["t"][min(a, count - 1)].as_py() or 0 for a, table in zip(at, tables, strict=True))
        for side, push in enumerate((stream.push_left, stream.push_right)):
            size = int(rng.integers(0, 500))
            push((left, right)[side].slice(at[side], size))
            at[side] = min(count, at[side] + size)
        stream.advance_watermark(until)
        out.append(stream.emit())
    assert stream.stats["late_left"] == stream.stats["late_right"] == 0
    out.append(stream.flush())
    got, wanted = pa.concat_tables(out), asof_join(left, right, on="t", by="k", **rules)
    assert got.to_pylist() == wanted.to_pylist(), seed


def _feed(rng: np.random.Generator, count: int, keys: int, span: int, disorder: int) -> pa.Table:
    """Return a feed whose times go back by `disorder` at most; nulls in keys and values."""
    times = np.sort(rng.integers(0, span, count)) + rng.integers(0, disorder + 1, count)
    keys_of = rng.integers(0, keys, count)
    null = rng.random(count) < 0.02
    values = rng.integers(0, 100, count)
    return pa.table(
        {
            "t": times,
            "k": pa.array([f"key {k:05d}" if k % 2 else f"k{k}" for k in keys_of.tolist()], mask=null),
            "v": values,
            "small": pa.array(values.astype(np.int16), mask=values < (30 if count % 2 else 50)),
            "flag": pa.array(values % 2 == 0, mask=values > 90),
            "text": pa.array([str(v) for v in values.tolist()], pa.string_view()),
            "kind": pa.array([str(v % 5) for v in values.tolist()]).dictionary_encode(),
        }
    )


@pytest.mark.parametrize("prune_rows", [0, 700])
def test_long_streams_equal_the_batch_join(prune_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_PRUNE_ROWS", prune_rows)
    for seed in range(12):
        check_long_stream(seed)


@pytest.mark.soak
def test_ten_thousand_long_streams_equal_the_batch_join(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(10_000):
        monkeypatch.setattr(streaming, "_PRUNE_ROWS", seed % 3 * 300)
        check_long_stream(seed)


def test_a_burst_does_not_keep_its_memory() -> None:
    rows, columns = HeldRows(with_known=True), HeldColumns(pa.schema({"v": pa.int64()}))
    many = np.arange(1_000_000)
    rows.put_times(many, INT64_MIN)
    rows.add(len(many), -1)
    columns.append(pa.table({"v": many}))
    last = np.array([len(many) - 1])
    rows.keep(last)
    columns.keep(last)
    assert rows.view(0, 1).event_ns.tolist() == columns.table()["v"].to_pylist() == [len(many) - 1]
    assert sum(len(array) for array in (rows.codes, rows.event_ns)) < 10_000
    assert columns.table().get_total_buffer_size() < 100


def test_bits_of_nulls_follow_their_rows() -> None:
    rng = np.random.default_rng(0)
    columns, wanted = HeldColumns(pa.schema({"v": pa.int32()})), []
    for _ in range(200):
        size = int(rng.integers(0, 30))
        values = [None if rng.random() < 0.3 else int(v) for v in rng.integers(0, 9, size + 3)]
        columns.append(pa.table({"v": pa.array(values, pa.int32()).slice(3)}))
        wanted += values[3:]
        if rng.random() < 0.2:
            kept = np.flatnonzero(rng.random(len(wanted)) < 0.5)
            columns.keep(kept)
            wanted = [wanted[place] for place in kept]
        found = rng.integers(-1, len(wanted), 40).astype(np.int32) if wanted else np.full(4, -1, np.int32)
        assert columns.table()["v"].to_pylist() == wanted
        assert columns.gather("v", found, 1).to_pylist() == [None if p < 0 else wanted[p] for p in found]
