"""The write rule: convergence, late rows, copies, erasure."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serve.house import backend_at, quotes, snapshot_of

from featurestore.catalog.refs import Ref
from featurestore.core.clock import ManualClock
from featurestore.errors import (
    CorruptDataError,
    DefinitionError,
    MissingDependencyError,
    NotFoundError,
    SchemaError,
)
from featurestore.serve.backend import OnlineBackend
from featurestore.serve.memory_store import MemoryStore
from featurestore.serve.store import Edit
from featurestore.serve.views import OnlineView, online_view
from featurestore.serve.writes import merge_rows, prepare_rows
from featurestore.storage.suppression import (
    ERASE,
    LIFT,
    LedgerEntry,
    append_entry,
    open_for_writing,
    read_ledger,
)
from featurestore.temporal.visible import fresh_rows, is_fresh, is_visible, newest_and_later, visible_rows

SNAPSHOT = snapshot_of()


def backend(now_ns: int = 1000) -> OnlineBackend:
    return OnlineBackend(lambda: SNAPSHOT, MemoryStore(), clock=ManualClock(now_ns), history_ns=0)


def contents(found: OnlineBackend) -> dict[str, list[tuple[bytes, bytes]]]:
    """Everything a store holds, but for the numbers of arrival."""
    out = {}
    for name in found.store.tables():
        view = next(v for v in found.views_over("quotes") if v.table == name)
        rows = []
        for key, value in found.store.scan(name):
            block = view.codec.decode([value]).block
            records = block.records.copy()
            records["arrival"] = 0
            rows.append(
                (
                    key,
                    records.tobytes() + repr(None if block.heap is None else block.heap.to_pylist()).encode(),
                )
            )
        out[name] = sorted(rows)
    return out


row = st.fixed_dictionaries(
    {
        "symbol": st.sampled_from(["A", "B"]),
        "ts": st.integers(0, 40),
        "bid": st.one_of(st.none(), st.integers(0, 3).map(float)),
        "size": st.one_of(st.none(), st.integers(0, 3)),
        "venue": st.one_of(st.none(), st.sampled_from(["N", "Q"])),
    }
)


@settings(max_examples=60, deadline=None)
@given(st.lists(row, min_size=1, max_size=12), st.data())
def test_stores_converge_under_any_order_and_repetition(
    rows: list[dict[str, object]], data: st.DataObject
) -> None:
    made = quotes([{**r, "seq": at} for at, r in enumerate(rows)])
    last = made.slice(made.num_rows - 1)  # both stores end at the same floor
    stores = []
    for _ in range(2):
        found = backend()
        flat = list(data.draw(st.permutations(range(len(rows)))))
        flat += data.draw(st.lists(st.sampled_from(range(len(rows))), max_size=6))
        cut = data.draw(st.integers(0, len(flat)))
        for part in (flat[:cut], flat[cut:]):
            found.push("quotes", made.take(pa.array(list(dict.fromkeys(part)), pa.int64())))
        found.push("quotes", made)
        found.push("quotes", last)
        stores.append(contents(found))
    assert stores[0] == stores[1]


@settings(max_examples=150, deadline=None)
@given(st.lists(row, max_size=6), st.lists(row, min_size=1, max_size=2), st.integers(0, 45))
def test_rows_that_replace_are_written_as_the_whole_merge_would(
    before: list[dict[str, object]], rows: list[dict[str, object]], at_ns: int
) -> None:
    view = backend().online_view(Ref("quote"))
    first = prepare_rows(view, quotes([{**r, "seq": at % 3} for at, r in enumerate(before)]))
    held = dict(zip(first.keys, merge_rows(view, first, [None] * len(first.keys), at_ns=0), strict=True))
    new = prepare_rows(view, quotes(list({r["symbol"]: {**r, "seq": 1} for r in rows}.values())))
    assert new.lone is not None  # one row a key
    old = [held.get(key) for key in new.keys]
    quick = merge_rows(view, new, old, at_ns=at_ns)
    whole = merge_rows(view, replace(new, lone=None), old, at_ns=at_ns)
    assert [timeless(view, v) for v in quick] == [timeless(view, v) for v in whole]


def test_a_key_whose_rows_are_all_dropped_gives_its_place_to_no_other() -> None:
    found = backend()
    rows: list[dict[str, object]] = [
        {"symbol": "A", "ts": 1, "bid": 1.0},
        {"symbol": "A", "ts": 2, "bid": 2.0},
        {"symbol": "B", "ts": 3, "bid": 3.0},
        {"symbol": "C", "ts": None},
    ]
    found.push("quotes", quotes([{**r, "seq": at} for at, r in enumerate(rows)]))
    answer = found.get_online_features(["quote:bid"], {"symbol": ["A", "B", "C"]}, now=50)
    assert answer.to_dict()["bid"] == [2.0, 3.0, None]


def timeless(view: OnlineView, value: bytes | None) -> object:
    """What a value holds, but for the numbers of arrival."""
    stored = view.codec.decode([value])
    records = stored.block.records.copy()
    records["arrival"] = 0
    heap = None if stored.block.heap is None else stored.block.heap.to_pylist()
    return records.tobytes(), heap, stored.counts.tolist()


def test_a_late_row_never_replaces_a_newer_one() -> None:
    found = backend()
    for ts, bid in ((500, 5.0), (400, 4.0), (960, 9.6), (955, 9.5)):
        found.push("quotes", quotes([{"symbol": "A", "ts": ts, "bid": bid}]))
    assert found.get_online_features(["quote:bid"], {"symbol": ["A"]}).to_dict()["bid"] == [9.6]


def test_of_equal_events_the_later_created_wins_whenever_it_comes() -> None:
    for order in ([0, 1], [1, 0]):
        found = backend()
        rows = [
            {"symbol": "A", "ts": 960, "created": 970, "bid": 1.0},
            {"symbol": "A", "ts": 960, "created": 980, "bid": 2.0},
        ]
        for at in order:
            found.push("quotes", quotes([rows[at]]))
        assert found.get_online_features(["quote:bid"], {"symbol": ["A"]}).to_dict()["bid"] == [2.0]


def test_equal_rows_of_one_delivery_count_each_and_its_repetition_does_not() -> None:
    found = backend()
    twice = quotes([{"symbol": "A", "ts": 990, "size": 3}] * 2)
    for delivery in (twice, twice.slice(1), twice):
        found.push("quotes", delivery)
    answer = found.get_online_features(["flow:n", "flow:total"], {"symbol": ["A"]}).to_dict()
    assert (answer["n"], answer["total"]) == ([2], [6])


def test_a_plain_view_keeps_one_row_per_key() -> None:
    found = backend()
    for ts in range(900, 1000):
        found.push("quotes", quotes([{"symbol": "A", "ts": ts, "bid": float(ts)}]))
    assert found.export("symbol", {"symbol": ["A"]})["quote@1"].num_rows == 1
    # The window is 40 long, its tile 10; one row more says what was the newest.
    assert found.export("symbol", {"symbol": ["A"]})["flow@1"].num_rows <= 52


def test_rows_no_reader_can_see_are_counted_and_left_out() -> None:
    found = backend()
    rows = [
        {"symbol": None, "ts": 990},
        {"symbol": "A", "ts": None, "created": 5},
        {"symbol": "A", "ts": 990, "created": None},
        {"symbol": "A", "ts": 980},
    ]
    result = found.push("quotes", quotes(rows))
    assert (result.rows, result.dropped) == (12, 9)
    assert found.export("symbol", {"symbol": ["A"]})["quote@1"].num_rows == 1


def test_an_erased_entity_stays_out_until_the_erasure_is_lifted(tmp_path: Path) -> None:
    found = backend_at(tmp_path, ledger=lambda: read_ledger(str(tmp_path)))
    rows = quotes([{"symbol": s, "ts": 990, "bid": 1.0, "venue": "secret-venue"} for s in ("A", "B")])
    found.push("quotes", rows)
    assert found.erase("symbol", {"symbol": ["A", "unknown"]}) == 3
    assert found.export("symbol", {"symbol": ["A"]}) == {}
    hashes = open_for_writing(str(tmp_path)).hashes([pa.array(["A"])])
    entry = LedgerEntry(
        number=0,
        kind=ERASE,
        time_ns=1,
        entity="symbol",
        columns=("symbol",),
        keys=tuple(hashes),
        hints=tuple(hashes.values()),
    )
    append_entry(str(tmp_path), entry)
    assert found.push("quotes", rows).dropped == 3
    answer = found.get_online_features(["quote:bid"], {"symbol": ["A", "B"]})
    assert answer.statuses()["bid"] == ["NOT_FOUND", "PRESENT"]
    append_entry(str(tmp_path), replace(entry, kind=LIFT))
    found.push("quotes", rows)
    assert found.get_online_features(["quote:bid"], {"symbol": ["A"]}).to_dict()["bid"] == [1.0]
    found.close()


def test_a_push_must_fit_the_source_it_names() -> None:
    found = backend()
    good = quotes([{"symbol": "A", "ts": 990, "bid": 1.0}])
    with pytest.raises(NotFoundError, match="did you mean 'quotes'"):
        found.push("quote_s", good)
    with pytest.raises(SchemaError, match="'ask'"):
        found.push("quotes", good.drop_columns(["ask"]))
    with pytest.raises(SchemaError, match="'symbol'"):
        found.push("quotes", good.set_column(0, "symbol", pa.array([1])))
    with pytest.raises(DefinitionError, match="number deliveries from 1"):
        found.push("quotes", good, producer="p", sequence=0)
    assert contents(found) == {name: [] for name in found.store.tables()}


def test_integers_of_another_width_are_taken_where_they_fit() -> None:
    found = backend()
    good = quotes([{"symbol": "A", "ts": 990, "size": 7}])
    wide = good.set_column(7, "size", pa.array([7], pa.int64()))
    found.push("quotes", wide)
    assert found.get_online_features(["quote:size"], {"symbol": ["A"]}).to_dict()["size"] == [7]
    with pytest.raises(SchemaError, match="'size'"):
        found.push("quotes", good.set_column(7, "size", pa.array([2**40], pa.int64())))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 9), st.integers(-3, 9)), max_size=8),
    st.integers(-3, 9),
    st.one_of(st.none(), st.integers(1, 5)),
)
def test_one_reader_and_many_decide_visibility_alike(
    rows: list[tuple[int, int, int]], now_ns: int, ttl_ns: int | None
) -> None:
    rows = sorted(rows)
    codes, event, known = (np.array([r[at] for r in rows], np.int64) for at in range(3))
    seen = visible_rows(event, known, now_ns)
    assert seen.tolist() == [is_visible(e, k, now_ns) for _, e, k in rows]
    assert fresh_rows(event, now_ns, ttl_ns).tolist() == [is_fresh(e, now_ns, ttl_ns) for _, e, _ in rows]
    kept = newest_and_later(codes.astype(np.int32), event, known, now_ns, entities=4)
    for code in range(4):
        mine = [at for at, r in enumerate(rows) if r[0] == code]
        newest = max((at for at in mine if seen[at]), default=-1)
        assert [bool(kept[at]) for at in mine] == [at >= newest for at in mine]


def test_an_answer_becomes_a_pandas_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    found = backend()
    found.push("quotes", quotes([{"symbol": "A", "ts": 990, "bid": 0.1, "venue": "N", "size": 7}]))
    answer = found.get_online_features(["quote:bid", "quote:venue", "quote:size"], {"symbol": ["A", "B"]})
    frame = answer.to_pandas()
    assert frame.columns.tolist() == ["symbol", "bid", "venue", "size"]
    assert frame["symbol"].tolist() == ["A", "B"]
    assert frame["bid"][0] == 0.1
    assert frame["venue"][0] == "N"
    assert frame["size"][0] == 7
    assert frame.isna().iloc[1].tolist() == [False, True, True, True]
    one = found.get_online_features(["quote:size"], {"symbol": ["A"]}).to_pandas()
    assert one["size"].dtype == "int32"
    monkeypatch.setattr("featurestore.core.python_values._has_pandas", lambda: False)
    with pytest.raises(MissingDependencyError, match="needs pandas"):
        answer.to_pandas()


def test_a_table_of_another_release_is_refused_and_its_values_are_not_misread() -> None:
    found = backend()
    found.store.open_table("quote@1", "2" * 32)
    view = online_view(SNAPSHOT, Ref("quote"))
    keys = [key for key in view.encode_keys([["A"]]) if key is not None]
    put = Edit("quote@1", keys, lambda *_: [b"\2" * 16 + b"\0" * 90], lambda floor: floor)
    found.store.update([put])
    with pytest.raises(SchemaError, match="another layout"):
        found.push("quotes", quotes([{"symbol": "A", "ts": 990, "bid": 0.1}]))
    for symbols in (["A"], ["A", "B"]):
        with pytest.raises(CorruptDataError, match="layout"):
            found.get_online_features(["quote"], {"symbol": symbols})
