"""A view over a view: what is read online is what training computes from the whole history."""

import itertools
import random
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa
import pytest
from tests.serve.chains import Layer, chain_of, found_by_a_value, random_chain, random_history, top_of
from tests.serve.house import quotes
from tests.serve.test_parity import SYMBOLS, Truth, check_answer, exact

from featurestore.catalog.snapshot import CatalogSnapshot
from featurestore.core.clock import ManualClock
from featurestore.errors import DefinitionError
from featurestore.resolve.retain import retained_rows
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


def truth_of(
    snapshot: CatalogSnapshot, chain: Sequence[Layer], history: pa.Table, instants: Sequence[int]
) -> Truth:
    """Return training's answers for every reader."""
    program = top_of(snapshot, chain)
    return Truth(program, spine_of(program.join_keys), history, instants)


def check(backend: OnlineBackend, chain: Sequence[Layer], history: pa.Table, instants: Sequence[int]) -> None:
    """Compare values, statuses and event timestamps, read together, alone, and by the feature."""
    truth = truth_of(backend.snapshot, chain, history, instants)
    name = f"v{len(chain) - 1}"
    for now_ns in instants:
        check_answer(backend.get_online_features([name], truth.readers, now=now_ns), truth)
        for feature in truth.names:
            first = truth.readers.slice(0, 1)
            one = backend.get_online_features([f"{name}:{feature}"], first, now=now_ns)
            wanted = truth.answer.columns[feature][truth.at(now_ns)][:1]
            assert exact(one.features().column(feature)) == exact(wanted), (feature, now_ns)


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
        check(
            backend, chain, history, sorted({newest + at for at in (-behind, 0, 1, 6, 13, 14, 25, 41, 500)})
        )


def check_seed(seed: int) -> None:
    """Compare a random chain over a random history."""
    draw = random.Random(seed)  # noqa: S311 -- a test's dice
    check_chain(MemoryStore(), random_chain(draw), *random_history(draw), draw.choice([0, 0, 15]))


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_a_chain_online_equals_training_for_any_order_of_deliveries(first: int) -> None:
    for seed in range(first, first + 20):
        check_seed(seed)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_chain_online_equals_training_for_twenty_thousand_histories() -> None:
    for seed in range(20_000):
        check_seed(seed)


def test_the_rows_retained_of_a_chain_answer_later_readers_like_all_rows() -> None:
    for seed in range(80):
        draw = random.Random(seed)  # noqa: S311 -- a test's dice
        chain, (made, _) = random_chain(draw, bounded=draw.random() < 0.8), random_history(draw)
        snapshot, history, cut = chain_of(chain), quotes(made), draw.randrange(0, 130)
        instants = [cut + later for later in (0, 1, 7, 14, 100)]
        whole = truth_of(snapshot, chain, history, instants)
        for expired in (False, True):
            kept = retained_rows(top_of(snapshot, chain), history, at_ns=cut, expired=expired)
            found = truth_of(snapshot, chain, history.take(pa.array(kept)), instants)
            for name in whole.names:
                assert exact(found.answer.columns[name]) == exact(whole.answer.columns[name]), (seed, name)
            assert not expired or found.status == whole.status, seed


def test_a_late_row_changes_what_later_rows_are_worth() -> None:
    chain = [Layer("windows", window=20), Layer("both", window=50)]
    backend = OnlineBackend(lambda: chain_of(chain), MemoryStore(), clock=ManualClock(10**6), history_ns=100)
    first = [{"symbol": "A", "ts": 30, "bid": 1.0}, {"symbol": "A", "ts": 60, "bid": 2.0, "seq": 1}]
    late = {"symbol": "A", "ts": 45, "bid": 40.0, "seq": 2}
    backend.push("quotes", quotes(first))
    assert backend.get_online_features(["v1:a"], {"symbol": ["A"]}, now=60).to_dict()["a"] == [1.0]
    backend.push("quotes", quotes([late]))
    assert backend.get_online_features(["v1:a"], {"symbol": ["A"]}, now=60).to_dict()["a"] == [41.0]
    check(backend, chain, quotes([*first, late]), [60])


def test_a_feature_read_alone_is_what_it_is_beside_the_others() -> None:
    """The view below reads by both keys: a row that lacks one has no value there, whatever else is asked."""
    chain = [Layer("both", keys="symbol, venue"), Layer("one row")]
    history = quotes([{"symbol": "A", "ts": 0, "bid": 3.0, "ask": 1.0}])
    backend = OnlineBackend(lambda: chain_of(chain), MemoryStore(), clock=ManualClock(10), history_ns=10)
    backend.push("quotes", history)
    check(backend, chain, history, [0, 5])
    assert backend.get_online_features(["v1:a"], {"symbol": ["A"]}, now=5).to_dict()["a"] == [None]


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
