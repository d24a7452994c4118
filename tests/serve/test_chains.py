"""A view over a view: what is read online is what training computes from the whole history."""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serve.chains import Layer, chain_of, found_by_a_value, layers, top_of
from tests.serve.house import quotes
from tests.serve.test_parity import SYMBOLS, exact, histories

from featurestore.catalog.snapshot import CatalogSnapshot
from featurestore.core.clock import ManualClock
from featurestore.core.time import INT64_MIN
from featurestore.errors import DefinitionError
from featurestore.resolve.events import Events
from featurestore.resolve.retain import retained_rows
from featurestore.resolve.views import Resolved, resolve_view
from featurestore.serve.backend import OnlineBackend
from featurestore.serve.memory_store import MemoryStore
from featurestore.serve.store import OnlineStore

READERS = [*itertools.product([*SYMBOLS, "unknown"], ["", "N", "Québec"]), (None, "N"), ("A", None)]


def spine_of(keys: Sequence[str]) -> pa.Table:
    """Return the entity rows of every reader that keys can tell apart."""
    columns = dict(zip(["symbol", "venue"], zip(*READERS, strict=True), strict=True))
    wanted = list(dict.fromkeys(zip(*(columns[key] for key in keys), strict=True)))
    values = zip(*wanted, strict=True)
    return pa.table({k: pa.array(v, pa.string()) for k, v in zip(keys, values, strict=True)})


def offline(snapshot: CatalogSnapshot, chain: Sequence[Layer], history: pa.Table, now_ns: int) -> Resolved:
    """Training's answer: the whole history, one spine row per reader at now."""
    program = top_of(snapshot, chain)
    spine = spine_of(program.join_keys)
    events = Events(spine, np.full(spine.num_rows, now_ns, np.int64), None)
    return resolve_view(program, events, program.join_keys, history, threads=1)


def check(backend: OnlineBackend, chain: Sequence[Layer], history: pa.Table, now_ns: int) -> None:
    """Compare values, statuses and event timestamps, read together, alone, and by the feature."""
    wanted = offline(backend.snapshot, chain, history, now_ns)
    program = top_of(backend.snapshot, chain)
    rows = spine_of(program.join_keys)
    found = backend.get_online_features([program.name], rows, now=now_ns)
    times = [None if t == INT64_MIN else t for t in wanted.event_ns.tolist()]
    codes = found.status_codes()
    for at, (name, column) in enumerate(wanted.columns.items()):
        assert exact(found.features().column(name)) == exact(column), (name, now_ns)
        assert codes[at].tolist() == wanted.cell_status(name).tolist(), (name, now_ns)
        assert found.event_timestamps()[name] == times, (name, now_ns)
        one = backend.get_online_features([f"{program.name}:{name}"], rows.slice(0, 1), now=now_ns)
        assert exact(one.features().column(name)) == exact(column[:1]), (name, now_ns)


def check_chain(
    store: OnlineStore,
    chain: Sequence[Layer],
    made: Sequence[Mapping[str, Any]],
    deliveries: Sequence[Sequence[int]],
    behind: int,
) -> None:
    """Push a history in pieces and compare from the floor on."""
    snapshot, history = chain_of(chain), quotes(made)
    with closing(
        OnlineBackend(lambda: snapshot, store, clock=ManualClock(10**6), history_ns=behind)
    ) as backend:
        for delivery in deliveries:
            backend.push("quotes", history.take(pa.array(delivery, pa.int64())))
        newest = max((r["ts"] for r in made if None not in (r["ts"], r["created"])), default=0)
        for later in (-behind, 0, 1, 6, 13, 14, 25, 41, 500):
            check(backend, chain, history, newest + later)


@settings(max_examples=20, deadline=None)
@given(layers(), histories(), st.sampled_from([0, 15]))
def test_a_chain_online_equals_training_for_any_order_of_deliveries(
    chain: list[Layer], made: tuple[list[dict[str, Any]], list[list[int]]], behind: int
) -> None:
    check_chain(MemoryStore(), chain, *made, behind)


@pytest.mark.soak
@pytest.mark.timeout(0)
@settings(max_examples=20_000, deadline=None)
@given(layers(), histories(), st.sampled_from([0, 15]))
def test_a_chain_online_equals_training_for_twenty_thousand_histories(
    chain: list[Layer], made: tuple[list[dict[str, Any]], list[list[int]]], behind: int
) -> None:
    check_chain(MemoryStore(), chain, *made, behind)


@settings(max_examples=12, deadline=None)
@given(layers(), histories(), st.integers(0, 150))
def test_the_rows_retained_of_a_chain_answer_later_readers_like_all_rows(
    chain: list[Layer], made: tuple[list[dict[str, Any]], list[list[int]]], cut: int
) -> None:
    snapshot, history = chain_of(chain), quotes(made[0])
    for expired in (False, True):
        kept = retained_rows(top_of(snapshot, chain), history, at_ns=cut, expired=expired)
        less = history.take(pa.array(kept))
        for later in (0, 1, 7, 14, 100):
            whole = offline(snapshot, chain, history, cut + later)
            found = offline(snapshot, chain, less, cut + later)
            for name, column in whole.columns.items():
                assert exact(found.columns[name]) == exact(column), (name, later)
                if expired:
                    assert found.cell_status(name).tolist() == whole.cell_status(name).tolist()


def test_a_late_row_changes_what_later_rows_are_worth() -> None:
    chain = [Layer("windows", window=20), Layer("both", window=50)]
    backend = OnlineBackend(lambda: chain_of(chain), MemoryStore(), clock=ManualClock(10**6), history_ns=100)
    first = [{"symbol": "A", "ts": 30, "bid": 1.0}, {"symbol": "A", "ts": 60, "bid": 2.0, "seq": 1}]
    late = {"symbol": "A", "ts": 45, "bid": 40.0, "seq": 2}
    backend.push("quotes", quotes(first))
    assert backend.get_online_features(["v1:a"], {"symbol": ["A"]}, now=60).to_dict()["a"] == [1.0]
    backend.push("quotes", quotes([late]))
    assert backend.get_online_features(["v1:a"], {"symbol": ["A"]}, now=60).to_dict()["a"] == [41.0]
    check(backend, chain, quotes([*first, late]), 60)


@pytest.mark.parametrize(
    ("chain", "rows"),
    [
        # The longer window of a view of windows is 25.
        pytest.param([Layer("windows"), Layer("one row")], 25, id="newest: the window behind it"),
        pytest.param([Layer("windows"), Layer("windows")], 49, id="windows of windows: both"),
        pytest.param([Layer("last known"), Layer("one row", ttl=5)], 2, id="newest: what was last known"),
        pytest.param([Layer("windows"), Layer("last known", ttl=5)], 30, id="last known: ttl and window"),
    ],
)
def test_a_chain_keeps_no_more_rows_than_it_can_reach(chain: list[Layer], rows: int) -> None:
    store = MemoryStore()
    backend = OnlineBackend(lambda: chain_of(chain), store, clock=ManualClock(10**6), history_ns=0)
    for start in range(0, 3000, 100):
        made = [
            {"symbol": "A", "ts": at, "bid": 1.0, "ask": -1.0, "seq": at} for at in range(start, start + 100)
        ]
        backend.push("quotes", quotes(made))
    view = backend.views_over("quotes")[-1]
    (value,) = [value for _, value in store.scan(view.table)]
    assert view.program.name == "v1"
    assert len(view.codec.decode([value]).block) == rows


ENDLESS = [Layer("windows"), Layer("last known")]


@pytest.mark.parametrize(
    ("snapshot", "why"),
    [
        pytest.param(chain_of(ENDLESS), "no bounded number of rows", id="last known of any age"),
        pytest.param(
            chain_of([*ENDLESS, Layer("windows")]), "no bounded number of rows", id="also in between"
        ),
        pytest.param(found_by_a_value(), "is found by a, which", id="a key of several rows"),
    ],
)
def test_what_no_bounded_state_answers_is_refused(snapshot: CatalogSnapshot, why: str) -> None:
    backend = OnlineBackend(lambda: snapshot, MemoryStore(), clock=ManualClock(0), history_ns=0)
    *_, last = snapshot.definitions("feature_view")
    with pytest.raises(DefinitionError, match=why):
        backend.get_online_features([last.name], {"symbol": ["A"], "a": [1.0]}, full_feature_names=True)
    assert [view.program.name for view in backend.views_over("quotes")] == ["v0"]
