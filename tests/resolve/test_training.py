"""A whole join: features, labels and on-demand features on one spine, against a loop where it matters."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.catalog.refs import parse_ref
from featurestore.catalog.snapshot import CatalogSnapshot
from featurestore.catalog.training_set import KeyMap
from featurestore.errors import DefinitionError, NotFoundError, SchemaError
from featurestore.resolve.joins import JoinPlan, compile_join, expand_refs
from featurestore.resolve.training import resolve_features

SYMBOL = fs.Entity("symbol")
SPINE = pa.schema([("symbol", pa.string()), ("t", pa.int64()), ("limit", pa.float64())])
QUOTES = pa.schema(
    [("symbol", pa.string()), ("ts", pa.int64()), ("bid", pa.float64()), ("ask", pa.float64())]
)


def applied(folder: Path, objects: list[Any], sources: dict[str, pa.Table]) -> CatalogSnapshot:
    for name, table in sources.items():
        pq.write_table(table, folder / f"{name}.parquet")
    store = fs.FeatureStore(folder)
    store.apply(objects)
    return store.catalog.snapshot()


def planned(
    snapshot: CatalogSnapshot,
    features: list[str],
    *,
    labels: tuple[str, ...] = (),
    spine: pa.Schema = SPINE,
    key_map: KeyMap | None = None,
    full: bool = False,
) -> JoinPlan:
    return compile_join(
        snapshot,
        expand_refs(snapshot, [parse_ref(f) for f in features]),
        spine=spine,
        timestamp="t",
        labels=[parse_ref(x) for x in labels],
        key_map=key_map or {},
        full_feature_names=full,
    )


def quotes(rows: list[tuple[str, int, float | None, float | None]]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(QUOTES.names, r, strict=True)) for r in rows], schema=QUOTES)


def spine(rows: list[tuple[str, int, float]]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(SPINE.names, r, strict=True)) for r in rows], schema=SPINE)


ROWS = quotes([("A", 0, 1.0, 3.0), ("A", 5, None, 5.0), ("A", 9, 4.0, None), ("B", 5, 7.0, 9.0)])
SOURCE = fs.Source("quotes", path="quotes.parquet", timestamp_field="ts", entities=[SYMBOL])
QUOTE = fs.FeatureView(
    "quote", source=SOURCE, entities=[SYMBOL], features={"bid": "bid", "mid": "(bid + ask) / 2"}, ttl=6
)
BOOK = fs.FeatureView(
    "book", source=SOURCE, entities=[SYMBOL], features={"mid": "(bid + ask) / 2"}, nulls="last_known"
)


@pytest.fixture
def snapshot(tmp_path: Path) -> CatalogSnapshot:
    over = fs.OnDemandFeatureView(
        "over", inputs=["quote:mid"], request={"limit": "float64"}, features={"above": 'mid > "limit"'}
    )
    service = fs.FeatureService("model", features=["quote:mid", over])
    label = fs.Label("next_ask", source=SOURCE, expression="ask", horizon=5)
    busy = fs.Label("busy", source=SOURCE, expression="count(*) > 0", horizon=5)
    ret = fs.Label("ret", source=BOOK, expression="mid / start.mid - 1", horizon=9)
    return applied(tmp_path, [QUOTE, BOOK, over, service, label, busy, ret], {"quotes": ROWS})


def test_a_join_keeps_the_spine_and_adds_features_then_labels_in_order(snapshot: CatalogSnapshot) -> None:
    plan = planned(snapshot, ["model"], labels=("next_ask", "busy", "ret"))
    who = spine([("A", 9, 2.0), ("B", 5, 1e9), ("A", 0, 0.0), ("C", 5, 0.0), ("A", 0, 0.0)])
    table = resolve_features(plan, who, {"quotes": ROWS}).table
    assert table.schema == plan.schema(SPINE)
    assert table.select(SPINE.names) == who
    assert table.column_names[3:] == ["mid", "above", "next_ask", "busy", "ret"]
    assert [tuple(row.values())[3:] for row in table.to_pylist()] == [
        (None, None, None, False, None),
        (8.0, False, None, False, None),
        (2.0, True, 5.0, True, 1.25),
        (None, None, None, False, None),
        (2.0, True, 5.0, True, 1.25),
    ]


def test_full_names_tell_views_apart_and_a_clash_says_so(snapshot: CatalogSnapshot) -> None:
    with pytest.raises(DefinitionError, match=r"'mid'.*quote:mid.*book:mid") as clash:
        planned(snapshot, ["quote", "book"])
    assert "full_feature_names" in clash.value.hint
    plan = planned(snapshot, ["quote", "book"], full=True)
    assert [c.name for c in plan.columns] == ["quote__bid", "quote__mid", "book__mid"]


@pytest.mark.parametrize(
    ("features", "error", "word"),
    [
        (["qoute"], NotFoundError, "quote"),
        (["quote:midd"], NotFoundError, "mid"),
        (["quote@9:mid"], NotFoundError, "9"),
        (["ret"], DefinitionError, "label"),
    ],
)
def test_an_unknown_feature_is_named_with_what_was_probably_meant(
    snapshot: CatalogSnapshot, features: list[str], error: type[Exception], word: str
) -> None:
    with pytest.raises(error, match=word):
        planned(snapshot, features)


def test_a_spine_without_the_key_the_time_or_the_request_is_refused_before_any_work(
    snapshot: CatalogSnapshot,
) -> None:
    for missing, features in (("symbol", ["quote"]), ("t", ["quote"]), ("limit", ["over"])):
        short = pa.schema([f for f in SPINE if f.name != missing])
        with pytest.raises(SchemaError, match=missing):
            planned(snapshot, features, spine=short)


def test_one_view_joins_twice_under_two_names(tmp_path: Path) -> None:
    snapshot = applied(tmp_path, [QUOTE], {"quotes": ROWS})
    pair = pa.table({"buy": ["A", "B"], "sell": ["B", "A"], "t": [5, 5]})
    plan = planned(
        snapshot,
        ["bought=quote:bid", "sold=quote:bid"],
        spine=pair.schema,
        key_map={"bought": {"symbol": "buy"}, "sold": {"symbol": "sell"}},
    )
    table = resolve_features(plan, pair, {"quotes": ROWS}).table
    assert table.column("bought__bid").to_pylist() == [None, 7.0]
    assert table.column("sold__bid").to_pylist() == [7.0, None]
    simple = planned(snapshot, ["quote:bid"], spine=pair.schema, key_map={"symbol": "sell"})
    assert resolve_features(simple, pair, {"quotes": ROWS}).table.column("bid").to_pylist() == [7.0, None]


def test_an_old_service_keeps_reading_the_view_it_was_applied_with(tmp_path: Path) -> None:
    pq.write_table(ROWS, tmp_path / "quotes.parquet")
    store = fs.FeatureStore(tmp_path)
    store.apply([fs.FeatureService("model", features=["quote:mid"]), QUOTE])
    shifted = fs.FeatureView(
        "quote",
        source=SOURCE,
        entities=[SYMBOL],
        features={"bid": "bid", "mid": "(bid + ask) / 2 + 100"},
        ttl=6,
    )
    store.apply([shifted])
    snapshot = store.catalog.snapshot()
    who = spine([("A", 0, 0.0)])
    for service, value in (("model@1", 2.0), ("model", 102.0)):
        plan = planned(snapshot, [service])
        assert resolve_features(plan, who, {"quotes": ROWS}).table.column("mid").to_pylist() == [value]


def test_as_of_hides_what_was_known_only_later(tmp_path: Path) -> None:
    source = fs.Source("fixes", path="fixes.parquet", timestamp_field="ts", created_timestamp_column="made")
    view = fs.FeatureView("fix", source=source, entities=[SYMBOL], features=["v"])
    rows = pa.table({"symbol": ["A", "A"], "ts": [1, 1], "made": [1, 4], "v": [10, 20]})
    snapshot = applied(tmp_path, [view], {"fixes": rows})
    plan = planned(snapshot, ["fix"])
    who = spine([("A", 3, 0.0), ("A", 4, 0.0)])
    assert resolve_features(plan, who, {"fixes": rows}).table.column("v").to_pylist() == [10, 20]
    capped = resolve_features(plan, who, {"fixes": rows}, as_of_ns=3).table
    assert capped.column("v").to_pylist() == [10, 10]


quote_rows = st.lists(
    st.tuples(st.sampled_from("AB"), st.integers(0, 12), st.none() | st.integers(1, 9).map(float), st.none()),
    max_size=14,
)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> CatalogSnapshot:
    labels = [
        fs.Label("newest", source=SOURCE, expression="bid", horizon=4),
        fs.Label("most", source=SOURCE, expression="max(bid) - coalesce(min(bid), 0)", horizon=4),
        fs.Label("gain", source=SOURCE, expression="bid - start.bid", horizon=4),
    ]
    return applied(tmp_path_factory.mktemp("labels"), [SYMBOL, *labels], {"quotes": ROWS})


@settings(max_examples=150, deadline=None)
@given(
    rows=quote_rows,
    who=st.lists(st.tuples(st.sampled_from("AB"), st.integers(0, 12), st.just(0.0)), max_size=6),
)
def test_a_label_lies_after_t_and_at_most_a_horizon_away(
    labelled: CatalogSnapshot,
    rows: list[tuple[str, int, float | None, float | None]],
    who: list[tuple[str, int, float]],
) -> None:
    table = quotes(rows)
    plan = planned(labelled, [], labels=("newest", "most", "gain"))
    got = resolve_features(plan, spine(who), {"quotes": table}).table.to_pylist()
    for (symbol, t, _), answer in zip(who, got, strict=True):
        ahead = [(ts, i, bid) for i, (s, ts, bid, _) in enumerate(rows) if s == symbol and t < ts <= t + 4]
        behind = [(ts, i, bid) for i, (s, ts, bid, _) in enumerate(rows) if s == symbol and ts <= t]
        newest = max(ahead)[2] if ahead else None
        start = max(behind)[2] if behind else None
        known = [bid for _, _, bid in ahead if bid is not None]
        assert answer["newest"] == newest
        assert answer["most"] == (max(known) - min(known) if known else None)
        assert answer["gain"] == (None if newest is None or start is None else newest - start)


@pytest.fixture(scope="module")
def many_reaches(tmp_path_factory: pytest.TempPathFactory) -> CatalogSnapshot:
    def counted(name: str, window: int) -> fs.Aggregation:
        return fs.Aggregation("*", "count", window, name=name)

    def sum_of(column: str, window: int, name: str) -> fs.Aggregation:
        return fs.Aggregation(column, "sum", window, name=name)

    near = fs.FeatureView(
        "near", source=SOURCE, entities=[SYMBOL], aggregations=[sum_of("bid", 2, "near_bid")]
    )
    newest = fs.FeatureView("newest", source=SOURCE, entities=[SYMBOL], features={"b": "bid"}, ttl=3)
    known = fs.FeatureView(
        "known", source=SOURCE, entities=[SYMBOL], features={"k": "bid"}, ttl=4, nulls="last_known"
    )
    over = fs.FeatureView(
        "over_near",
        source=near,
        entities=[SYMBOL],
        features={"double": "near_bid * 2"},
        aggregations=[sum_of("near_bid", 3, "near_twice")],
        ttl=2,
    )
    far = fs.FeatureView("far", source=SOURCE, entities=[SYMBOL], aggregations=[counted("far_rows", 30)])
    ahead = fs.Label("ahead", source=newest, expression="max(b)", horizon=4)
    folder = tmp_path_factory.mktemp("reaches")
    return applied(folder, [SYMBOL, near, newest, known, over, far, ahead], {"quotes": ROWS})


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from("AB"), st.integers(0, 40), st.none() | st.integers(1, 9).map(float), st.none()
        ),
        max_size=30,
    ),
    who=st.lists(st.tuples(st.sampled_from("AB"), st.integers(20, 40), st.just(0.0)), max_size=6),
    labels=st.sampled_from([(), ("ahead",)]),
)
def test_values_are_the_same_where_each_view_is_given_its_own_reach_alone(
    many_reaches: CatalogSnapshot,
    rows: list[tuple[str, int, float | None, float | None]],
    who: list[tuple[str, int, float]],
    labels: tuple[str, ...],
) -> None:
    plan = planned(many_reaches, ["near", "newest", "known", "over_near", "far"], labels=labels)
    given_rows = {"quotes": quotes(rows)}
    whole = resolve_features(plan, spine(who), given_rows).table
    assert resolve_features(plan, spine(who), given_rows, values_only=True).table.equals(whole)


def test_a_view_is_matched_with_no_more_rows_than_it_reaches(many_reaches: CatalogSnapshot) -> None:
    plan = planned(many_reaches, ["near", "over_near", "far"])
    rows = quotes([("A", t, 1.0, None) for t in range(41)])
    joined = resolve_features(plan, spine([("A", 38, 0.0)]), {"quotes": rows}, values_only=True)
    seen = {key: r.sides.events.table.num_rows for key, r in joined.resolved.items()}
    # A view over a view reaches 2 + 3 back. The other two read the same rows, 30 back; what lies ahead stays.
    assert seen == {"near@1": 33, "over_near@1": 8, "far@1": 33}
