"""A view's value, computed by the kernels, against a loop that reads the rules one by one."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.catalog.aggregation import Aggregation
from featurestore.catalog.feature_view import Feature
from featurestore.resolve.events import EventTimes, spine_events
from featurestore.resolve.program import ViewProgram
from featurestore.resolve.retain import retained_rows
from featurestore.resolve.views import STATUS_NAMES, resolve_view, view_events

Row = dict[str, Any]
F64 = pa.float64()


def program(**changes: Any) -> ViewProgram:
    settings_: dict[str, Any] = {
        "name": "quote",
        "version": 1,
        "digest": "",
        "join_keys": ("symbol",),
        "source": "quotes",
        "times": EventTimes("ts"),
        "features": (Feature("bid"), Feature("ask"), Feature("mid", "(bid + ask) / 2")),
        "aggregations": (),
        "ttl_ns": None,
        "nulls": "keep",
        "online": True,
        "schema": pa.schema([("bid", F64), ("ask", F64), ("mid", F64)]),
    }
    return ViewProgram(**(settings_ | changes))


def quotes(rows: list[Row]) -> pa.Table:
    return pa.table(
        {
            "symbol": pa.array([r["symbol"] for r in rows], pa.string()),
            "ts": pa.array([r["ts"] for r in rows], pa.int64()),
            "created": pa.array([r.get("created") for r in rows], pa.int64()),
            "bid": pa.array([r.get("bid") for r in rows], F64),
            "ask": pa.array([r.get("ask") for r in rows], F64),
        }
    )


def spine(rows: list[Row]) -> pa.Table:
    return pa.table(
        {
            "symbol": pa.array([r["symbol"] for r in rows], pa.string()),
            "t": pa.array([r["t"] for r in rows], pa.int64()),
        }
    )


def known(row: Row, times: EventTimes) -> float:
    """When a row becomes visible at the earliest; infinity: never."""
    if times.created is None:
        return float(row["ts"] + times.delay_ns)
    return math.inf if row["created"] is None else float(row["created"] + times.delay_ns)


def visible(row: Row, reader: Row, times: EventTimes) -> bool:
    if None in (row["symbol"], reader["symbol"], row["ts"], reader["t"]):
        return False
    return bool(
        row["symbol"] == reader["symbol"]
        and row["ts"] <= reader["t"]
        and (known(row, times) <= reader["t"] or (times.created is None and times.delay_ns == 0))
    )


def newest(rows: list[Row], reader: Row, view: ViewProgram, column: str | None = None) -> Row | None:
    seen = [
        (row["ts"], known(row, view.times), position, row)
        for position, row in enumerate(rows)
        if visible(row, reader, view.times) and (column is None or row[column] is not None)
    ]
    if not seen:
        return None
    row = max(seen, key=lambda s: s[:3])[3]
    return row if view.ttl_ns is None or reader["t"] - row["ts"] <= view.ttl_ns else None


def expected(rows: list[Row], reader: Row, view: ViewProgram) -> tuple[Any, Any, Any, str]:
    row = newest(rows, reader, view)
    if row is None:
        stale = any(visible(r, reader, view.times) for r in rows)
        return None, None, None, "EXPIRED" if stale else "NOT_FOUND"
    if view.nulls == "keep":
        bid, ask = row["bid"], row["ask"]
    else:
        bid_row, ask_row = newest(rows, reader, view, "bid"), newest(rows, reader, view, "ask")
        bid = None if bid_row is None else bid_row["bid"]
        ask = None if ask_row is None else ask_row["ask"]
    return bid, ask, None if None in (bid, ask) else (bid + ask) / 2, "PRESENT"


symbols = st.sampled_from(["A", "B", "C", None])
prices = st.none() | st.sampled_from([1.0, 2.5, -3.25, 1e6])
moments = st.integers(-6, 6)
quote_rows = st.lists(
    st.fixed_dictionaries(
        {
            "symbol": symbols,
            "ts": st.none() | moments,
            "created": st.none() | moments,
            "bid": prices,
            "ask": prices,
        }
    ),
    max_size=14,
)
readers = st.lists(st.fixed_dictionaries({"symbol": symbols, "t": st.none() | moments}), max_size=8)
programs = st.builds(
    lambda nulls, ttl, times: program(nulls=nulls, ttl_ns=ttl, times=times),
    st.sampled_from(["keep", "last_known"]),
    st.none() | st.integers(1, 5),
    st.sampled_from(
        [
            EventTimes("ts"),
            EventTimes("ts", "created"),
            EventTimes("ts", "created", None, 2),
            EventTimes("ts", delay_ns=1),
        ]
    ),
)


@settings(max_examples=400, deadline=None)
@given(quote_rows, readers, programs)
def test_every_cell_and_status_equals_the_loop(rows: list[Row], who: list[Row], view: ViewProgram) -> None:
    answer = resolve_view(view, spine_events(spine(who), "t"), ["symbol"], quotes(rows), threads=1)
    for i, reader in enumerate(who):
        bid, ask, mid, status = expected(rows, reader, view)
        got = tuple(answer.columns[name][i].as_py() for name in ("bid", "ask", "mid"))
        assert got == (bid, ask, mid)
        assert STATUS_NAMES[answer.row_status[i]] == status


@settings(max_examples=200, deadline=None)
@given(quote_rows, readers, programs, moments)
def test_retained_rows_answer_later_readers_like_all_rows(
    rows: list[Row], who: list[Row], view: ViewProgram, cut: int
) -> None:
    table = quotes(rows)
    later = spine_events(spine([r for r in who if r["t"] is not None and r["t"] >= cut]), "t")
    kept = table.take(pa.array(retained_rows(view, table, at_ns=cut)))
    whole = resolve_view(view, later, ["symbol"], table, threads=1)
    carried = resolve_view(view, later, ["symbol"], kept, threads=1)
    assert whole.columns == carried.columns


def test_an_expression_of_nulls_is_not_a_value_for_a_reader_without_a_row() -> None:
    view = program(features=(Feature("bid", "coalesce(bid, 0)"),), schema=pa.schema([("bid", F64)]))
    rows = quotes([{"symbol": "A", "ts": 1}])
    answer = resolve_view(
        view,
        spine_events(spine([{"symbol": "A", "t": 0}, {"symbol": "A", "t": 1}]), "t"),
        ["symbol"],
        rows,
        threads=1,
    )
    assert answer.columns["bid"].to_pylist() == [None, 0.0]


def test_windows_are_counted_at_the_readers_own_time() -> None:
    view = program(
        features=(),
        aggregations=(Aggregation("bid", "sum", 5, "sum5"), Aggregation("*", "count", 5, "rows5")),
        schema=pa.schema([("sum5", F64), ("rows5", pa.int64())]),
    )
    rows = quotes([{"symbol": "A", "ts": t, "bid": float(t)} for t in (0, 1, 5)])
    who = spine([{"symbol": "A", "t": t} for t in (4, 5, 6, 10, 11)] + [{"symbol": "B", "t": 5}])
    answer = resolve_view(view, spine_events(who, "t"), ["symbol"], rows, threads=1)
    assert answer.columns["sum5"].to_pylist() == [1.0, 6.0, 5.0, None, None, None]
    assert answer.columns["rows5"].to_pylist() == [2, 2, 1, 0, 0, 0]


def test_a_view_over_a_view_reads_its_output() -> None:
    base = program(features=(Feature("mid", "(bid + ask) / 2"),), schema=pa.schema([("mid", F64)]))
    top = program(
        name="swing",
        features=(),
        aggregations=(Aggregation("mid", "max", 10, "high"),),
        schema=pa.schema([("high", F64)]),
        upstream=base,
    )
    rows = quotes([{"symbol": "A", "ts": t, "bid": float(t), "ask": float(t + 2)} for t in (1, 2, 3)])
    events = view_events(base, rows, threads=1)
    assert events.column("mid").to_pylist() == [2.0, 3.0, 4.0]
    answer = resolve_view(
        top,
        spine_events(spine([{"symbol": "A", "t": 2}, {"symbol": "A", "t": 12}]), "t"),
        ["symbol"],
        rows,
        threads=1,
    )
    assert answer.columns["high"].to_pylist() == [3.0, 4.0]


@pytest.mark.parametrize("nulls", ["keep", "last_known"])
def test_a_program_reads_only_what_it_names(nulls: str) -> None:
    view = program(nulls=nulls, ttl_ns=5, aggregations=(Aggregation("size", "sum", 7, "s", 7),))
    assert view.inputs() == ("bid", "ask")
    assert view.row_columns() == ("symbol", "ts", "bid", "ask", "size")
    assert view.look_back_ns() == 14
    assert np.isscalar(view.window_ns())
