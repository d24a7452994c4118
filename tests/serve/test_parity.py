"""The promise of serving: what is read online at t is what training sees at t."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serve.house import quotes, snapshot_of

from featurestore.catalog.refs import Ref
from featurestore.core.clock import ManualClock
from featurestore.core.time import INT64_MIN
from featurestore.resolve.events import Events
from featurestore.resolve.program import compile_view
from featurestore.resolve.views import Resolved, resolve_view
from featurestore.serve.backend import OnlineBackend
from featurestore.serve.memory_store import MemoryStore
from featurestore.serve.response import STATUS

SNAPSHOT = snapshot_of()
SYMBOLS = ["A", "B", "Ä" * 300]
VIEWS = ("quote", "last", "flow")

# Nulls are rare: a row without a key or a time is seen by nobody, and says little.
values = st.sampled_from([0.0, -0.0, 0.1, 0.1, 1e300, float("inf"), 2.5, -3.0, None])
rows = st.fixed_dictionaries(
    {
        "symbol": st.sampled_from([*SYMBOLS * 4, None]),
        "ts": st.one_of(st.integers(0, 120), st.sampled_from([*range(20, 100, 8), None])),
        "late": st.sampled_from([0, 0, 0, 0, 0, 0, 1, 7, 30, None]),
        "bid": values,
        "ask": values,
        "venue": st.sampled_from([None, "", "N", "N", "N", "Québec"]),
        "size": st.one_of(st.none(), st.integers(-(2**31), 2**31 - 1)),
    }
)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """Rows in source order, and deliveries: each row in one or more, in any order."""
    size = draw(st.sampled_from([1, 3, 6, 10, 16, 25]))
    history = draw(st.lists(rows, min_size=size, max_size=size))
    made = [_row(row, number) for number, row in enumerate(history)]
    order = draw(st.permutations(range(len(made))))
    again = draw(st.lists(st.integers(0, len(made) - 1), max_size=8))
    flat = list(order) + again
    cuts = sorted(draw(st.lists(st.integers(0, len(flat)), max_size=5)))
    edges = [0, *cuts, len(flat)]
    return made, [sorted(set(flat[a:b])) for a, b in pairwise(edges) if a < b]


def _row(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    late, ts = row["late"], row["ts"]
    created = None if late is None or ts is None else ts + late
    # The number makes versions unique: the position in the source is no business of a delivery's order.
    return {**{k: v for k, v in row.items() if k != "late"}, "created": created, "seq": number}


def offline(view: str, history: pa.Table, symbols: Sequence[str], now_ns: int) -> Resolved:
    """Training's answer: the whole history, one spine row per symbol at now."""
    spine = pa.table({"symbol": pa.array(symbols, pa.string())})
    events = Events(spine, np.full(len(symbols), now_ns, np.int64), None)
    return resolve_view(compile_view(SNAPSHOT, Ref(view)), events, ["symbol"], history, threads=1)


def check_parity(backend: OnlineBackend, history: pa.Table, now_ns: int) -> None:
    """Compare every view at an instant, value by value, status by status, time by time."""
    for symbols in (["A", "B", SYMBOLS[2], "unknown"], ["A"]):
        for view in VIEWS:
            found = backend.get_online_features([view], {"symbol": symbols}, now=now_ns)
            wanted = offline(view, history, symbols, now_ns)
            batch = found.features()
            codes = found.status_codes()
            for at, (name, column) in enumerate(wanted.columns.items()):
                assert exact(batch.column(name)) == exact(column), (view, name, now_ns)
                assert codes[at].tolist() == wanted.cell_status(name).tolist(), (view, name, now_ns)
                times = [None if t == INT64_MIN else t for t in wanted.event_ns.tolist()]
                assert found.event_timestamps()[name] == times, (view, name, now_ns)
            as_dict = found.to_dict()
            assert [repr(as_dict[n]) for n in batch.schema.names] == [
                repr(batch.column(n).to_pylist()) for n in batch.schema.names
            ]
            assert found.statuses()[batch.schema.names[0]] == [STATUS[c] for c in codes[0]]


def exact(column: pa.Array) -> list[str]:
    # repr tells -0.0 from 0.0 and NaN from null.
    return [repr(value) for value in column.to_pylist()]


def backend_with(history: pa.Table, deliveries: Sequence[Sequence[int]], history_ns: int) -> OnlineBackend:
    """Push deliveries into an empty store."""
    backend = OnlineBackend(lambda: SNAPSHOT, MemoryStore(), clock=ManualClock(10**6), history_ns=history_ns)
    for delivery in deliveries:
        backend.push("quotes", history.take(pa.array(delivery, pa.int64())))
    return backend


def check_history(
    made: Sequence[Mapping[str, Any]], deliveries: Sequence[Sequence[int]], behind: int
) -> None:
    """Push a history and compare from the floor on, row edges included."""
    history = quotes(made)
    backend = backend_with(history, deliveries, behind)
    newest = max(
        (row["ts"] for row in made if row["ts"] is not None and row["created"] is not None), default=0
    )
    later = {newest - behind, newest, newest + 1, newest + 500}
    later |= {newest + at for at in (3, 5, 10, 19, 20, 21, 40, 41, 50, 51)}
    for now_ns in sorted(later):  # in the order of time, as readers come: answers may be kept while steady
        check_parity(backend, history, now_ns)


@settings(max_examples=40, deadline=None)
@given(histories(), st.sampled_from([0, 15]))
def test_online_equals_training_for_any_order_and_repetition_of_deliveries(
    made: tuple[list[dict[str, Any]], list[list[int]]], behind: int
) -> None:
    check_history(*made, behind)


@pytest.mark.soak
@settings(max_examples=20_000, deadline=None)
@given(histories(), st.sampled_from([0, 15]))
def test_online_equals_training_for_twenty_thousand_histories(
    made: tuple[list[dict[str, Any]], list[list[int]]], behind: int
) -> None:
    check_history(*made, behind)


def test_rows_dated_ahead_of_the_clock_become_visible_in_time() -> None:
    history = quotes(
        [
            {"symbol": "A", "ts": 10, "bid": 1.0},
            {"symbol": "A", "ts": 40, "bid": 2.0, "seq": 1},
            {"symbol": "A", "ts": 30, "created": 60, "bid": 3.0, "seq": 2},
        ]
    )
    backend = OnlineBackend(lambda: SNAPSHOT, MemoryStore(), clock=ManualClock(20), history_ns=0)
    backend.push("quotes", history)
    seen = [
        backend.get_online_features(["quote:bid"], {"symbol": ["A"]}, now=t).to_dict()["bid"]
        for t in (20, 39, 40, 60)
    ]
    assert seen == [[1.0], [1.0], [2.0], [2.0]]
    check_parity(backend, history, 60)
