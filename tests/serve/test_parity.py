"""The promise of serving: what is read online at t is what training sees at t."""

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serve.chains import random_history
from tests.serve.house import quotes, snapshot_of

from featurestore.catalog.refs import Ref
from featurestore.core.clock import ManualClock
from featurestore.core.time import INT64_MIN
from featurestore.resolve.events import Events
from featurestore.resolve.program import ViewProgram, compile_view
from featurestore.resolve.views import resolve_view
from featurestore.serve.backend import OnlineBackend
from featurestore.serve.memory_store import MemoryStore
from featurestore.serve.response import STATUS, OnlineResponse

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


class Truth:
    """Training's answers: the whole history, one spine row per reader and instant."""

    def __init__(
        self, program: ViewProgram, readers: pa.Table, history: pa.Table, instants: Sequence[int]
    ) -> None:
        self.readers, self.instants = readers, list(instants)
        self.spine = pa.concat_tables([readers] * len(self.instants))
        events = Events(self.spine, np.repeat(np.array(self.instants, np.int64), readers.num_rows), None)
        self.answer = resolve_view(program, events, program.join_keys, history, threads=1)
        self.names = list(self.answer.columns)
        self.status = {name: self.answer.cell_status(name).tolist() for name in self.names}
        self.events = [None if t == INT64_MIN else t for t in self.answer.event_ns.tolist()]

    def at(self, now_ns: int) -> slice:
        """Return where the answers of an instant lie."""
        first = self.instants.index(now_ns) * self.readers.num_rows
        return slice(first, first + self.readers.num_rows)


READERS = [["A", "B", SYMBOLS[2], "unknown"], ["A"]]


def check_parity(backend: OnlineBackend, history: pa.Table, instants: Sequence[int]) -> None:
    """Compare every view at some instants, value by value, status by status, time by time."""
    truths = [
        Truth(compile_view(SNAPSHOT, Ref(view)), pa.table({"symbol": symbols}), history, instants)
        for symbols in READERS
        for view in VIEWS
    ]
    for now_ns in instants:  # in the order of time, as readers come: answers may be kept while steady
        for truth, (symbols, view) in zip(truths, product(READERS, VIEWS), strict=True):
            check_answer(backend.get_online_features([view], {"symbol": symbols}, now=now_ns), truth)


def check_answer(found: OnlineResponse, truth: Truth) -> None:
    """Compare an answer with the one that training gives."""
    batch, codes, times = found.features(), found.status_codes(), found.event_timestamps()
    here = truth.at(found.now_ns)
    for at, name in enumerate(truth.names):
        wanted = exact(truth.answer.columns[name][here])
        assert exact(batch.column(name)) == wanted, (name, found.now_ns)
        assert codes[at].tolist() == truth.status[name][here], (name, found.now_ns)
        assert times[name] == truth.events[here], (name, found.now_ns)
    as_dict = found.to_dict()
    assert [[repr(v) for v in as_dict[n]] for n in truth.names] == [
        exact(batch.column(n)) for n in truth.names
    ]
    assert found.statuses()[truth.names[0]] == [STATUS[c] for c in codes[0]]


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
    check_parity(backend, history, sorted(later))


@settings(max_examples=40, deadline=None)
@given(histories(), st.sampled_from([0, 15]))
def test_online_equals_training_for_any_order_and_repetition_of_deliveries(
    made: tuple[list[dict[str, Any]], list[list[int]]], behind: int
) -> None:
    check_history(*made, behind)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_online_equals_training_for_twenty_thousand_histories() -> None:
    for seed in range(20_000):
        draw = random.Random(seed)  # noqa: S311 -- a test's dice
        check_history(*random_history(draw), draw.choice([0, 15]))


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
    check_parity(backend, history, [60])
