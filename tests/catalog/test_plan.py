"""Planning: types are inferred, look-ahead is refused, changes are told field by field."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.catalog.house import (
    NS,
    QUOTES,
    QUOTES_SOURCE,
    SYMBOL,
    TRADES,
    TRADES_SOURCE,
    Columns,
    catalog_in,
    in_force,
    market,
    quote_view,
)

from featurestore import (
    Aggregation,
    Entity,
    Feature,
    FeatureService,
    FeatureView,
    Label,
    OnDemandFeatureView,
    Source,
    TrainingSet,
)
from featurestore.catalog.catalog import Catalog
from featurestore.catalog.definition import Definition
from featurestore.errors import DefinitionError, LeakageError, NotFoundError, SchemaError


@pytest.fixture
def columns() -> Columns:
    return Columns()


@pytest.fixture
def catalog(tmp_path: Path, columns: Columns) -> Catalog:
    return catalog_in(tmp_path, columns)


def view(name: str = "v", source: Any = TRADES_SOURCE, **options: Any) -> FeatureView:
    return FeatureView(name, source=source, entities=[SYMBOL], **options)


# -- types ---------------------------------------------------------------------------------------------


def test_every_kind_gets_its_schema(catalog: Catalog) -> None:
    catalog.apply([market()["train"]])
    snapshot = catalog.snapshot()
    keys = [("symbol", pa.string()), ("ts", NS)]
    expected = {
        "quotes": QUOTES,
        "quote": pa.schema([*keys, ("bid", pa.float64()), ("mid", pa.float64())]),
        "flow": pa.schema([*keys, ("size_sum_10s", pa.int64()), ("trades_10s", pa.int64())]),
        "drift": pa.schema([*keys, ("twice", pa.float64()), ("mid_std", pa.float64())]),
        "edge": pa.schema([("edge_now", pa.float64())]),
        "move": pa.schema([("move", pa.float64())]),
    }
    assert {name: snapshot.schema_of(name) for name in expected} == expected
    features = ["bid", "mid", "size_sum_10s", "trades_10s", "twice", "mid_std", "edge_now"]
    assert snapshot.schema_of("model").names == features
    assert snapshot.schema_of("train").names == [*TRADES.names, *features, "move"]


@pytest.mark.parametrize(
    ("function", "column", "kind"),
    [
        ("count", "*", pa.int64()),
        ("count", "venue", pa.int64()),
        ("n_distinct", "venue", pa.int64()),
        ("sum", "small", pa.int64()),
        ("sum", "flag", pa.int64()),
        ("sum", "real", pa.float64()),
        ("mean", "small", pa.float64()),
        ("std", "real", pa.float64()),
        ("var", "small", pa.float64()),
        ("min", "real", pa.float32()),
        ("max", "ts", NS),
        ("min", "venue", pa.dictionary(pa.int32(), pa.string())),
        ("first", "list", pa.list_(pa.int8())),
        ("last", "venue", pa.dictionary(pa.int32(), pa.string())),
        ("last_n(3)", "real", pa.list_(pa.float32(), 3)),
    ],
)
def test_the_type_of_an_aggregation(
    catalog: Catalog, columns: Columns, function: str, column: str, kind: pa.DataType
) -> None:
    columns.schemas["wide"] = WIDE
    source = Source("wide", path="wide", timestamp_field="ts")
    catalog.apply([SYMBOL, view(source=source, aggregations=[Aggregation(column, function, "1m", name="x")])])
    assert catalog.snapshot().schema_of("v").field("x").type == kind


WIDE = pa.schema(
    [
        ("symbol", pa.string()),
        ("ts", NS),
        ("venue", pa.dictionary(pa.int32(), pa.string())),
        ("small", pa.int16()),
        ("flag", pa.bool_()),
        ("real", pa.float32()),
        ("list", pa.list_(pa.int8())),
        ("other", pa.int64()),
        ("price", pa.float64()),
    ]
)


@pytest.mark.parametrize(
    ("function", "column"),
    [("sum", "venue"), ("mean", "list"), ("std", "ts"), ("max", "list"), ("sum", "ts")],
)
def test_an_aggregation_of_what_it_cannot_take_is_a_schema_error(
    catalog: Catalog, columns: Columns, function: str, column: str
) -> None:
    columns.schemas["wide"] = WIDE
    source = Source("wide", path="wide", timestamp_field="ts")
    with pytest.raises(SchemaError, match=f"{function} cannot take"):
        catalog.plan([SYMBOL, view(source=source, aggregations=[Aggregation(column, function, "1m")])])


def test_created_and_sequence_columns_travel_through_a_view(catalog: Catalog, columns: Columns) -> None:
    columns.schemas["wide"] = WIDE.append(pa.field("made", pa.int64()))
    source = Source(
        "wide", path="w", timestamp_field="ts", created_timestamp_column="made", sequence_column="other"
    )
    first = view("first", source=source, features=["real"])
    catalog.apply([SYMBOL, first, view("second", source=first, features={"twice": "real * 2"})])
    assert catalog.snapshot().schema_of("second").names == ["symbol", "ts", "made", "other", "twice"]


def test_a_view_over_views_reads_only_what_the_view_gives(catalog: Catalog) -> None:
    top = view("top", source=quote_view(), features=["ask"])
    with pytest.raises(SchemaError, match="'top' has no column 'ask'"):
        catalog.plan([top])


# -- what cannot be ------------------------------------------------------------------------------------

BAD_SOURCES = [
    pytest.param({"timestamp_field": "time"}, "no column 'time'", id="no time column"),
    pytest.param({"timestamp_field": "symbol"}, "time column 'symbol' is string", id="a time that is a text"),
    pytest.param(
        {"created_timestamp_column": "bid"}, "'bid' is double", id="a created time that is a number"
    ),
    pytest.param({"sequence_column": "seq"}, "no column 'seq'", id="no sequence"),
    pytest.param({"sequence_column": "symbol"}, "'symbol' is string", id="a sequence of texts"),
    pytest.param({"entities": [Entity("venue")]}, "join key 'venue'", id="no key"),
    pytest.param(
        {"entities": [Entity("price", join_keys=["bid"])]}, "a key is a string", id="a key of floats"
    ),
]


@pytest.mark.parametrize(("options", "says"), BAD_SOURCES)
def test_a_source_is_checked_against_its_columns(
    catalog: Catalog, options: dict[str, Any], says: str
) -> None:
    source = Source("quotes", path="q", **{"timestamp_field": "ts", **options})
    with pytest.raises(SchemaError, match=says):
        catalog.plan([source])


def labelled(**options: Any) -> list[Definition]:
    return [Label("next", source=quote_view(), expression="mid", horizon="1s"), view(**options)]


BAD: list[Any] = [
    pytest.param([view(features=["pric"])], SchemaError, "did you mean 'price'", id="an unknown column"),
    pytest.param(
        [view(features={"x": "pric * 2"})], DefinitionError, "'pric', which is not there", id="in SQL"
    ),
    pytest.param(
        [view(features={"x": "price + symbol"})], DefinitionError, "does not fit", id="types that clash"
    ),
    pytest.param([view(features=[Feature("x", "now()")])], DefinitionError, "now", id="the clock at plan"),
    pytest.param([view(features={"x": "start.price"})], LeakageError, "only a label", id="a start in a view"),
    pytest.param(
        [OnDemandFeatureView("o", inputs=["quote"], features={"x": "start.mid"}), quote_view()],
        LeakageError,
        "only a label",
        id="a start on demand",
    ),
    pytest.param(
        labelled(source="next", features=["mid"]), LeakageError, "label 'next'", id="a view of a label"
    ),
    pytest.param(
        [*labelled(features=["price"]), FeatureService("m", features=["v", "next"])],
        LeakageError,
        "label 'next'",
        id="a label in a service",
    ),
    pytest.param(
        [*labelled(features=["price"]), OnDemandFeatureView("o", inputs=["next"], features={"x": "next"})],
        LeakageError,
        "label 'next'",
        id="a label on demand",
    ),
    pytest.param(
        [*labelled(features=["price"]), TrainingSet("t", spine=TRADES_SOURCE, features=["v", "next"])],
        LeakageError,
        "label 'next'",
        id="a label among features",
    ),
    pytest.param(
        [view(features=["symbol"])], DefinitionError, "one of its keys", id="a feature named as a key"
    ),
    pytest.param(
        [view(features=["ts"])], DefinitionError, "event timestamp", id="a feature named as the time"
    ),
    pytest.param([view(source="nowhere", features=["a"])], NotFoundError, "'nowhere'", id="no such source"),
    pytest.param(
        [FeatureView("v", source=TRADES_SOURCE, entities=["sym"], features=["price"])],
        NotFoundError,
        "did you mean 'symbol'",
        id="no such entity",
    ),
    pytest.param(
        [FeatureService("m", features=["quot"]), quote_view()], NotFoundError, "'quote'", id="no such view"
    ),
    pytest.param(
        [FeatureService("m", features=["quote:mit"]), quote_view()],
        NotFoundError,
        "did you mean 'mid'",
        id="no such feature",
    ),
    pytest.param(
        [FeatureService("m", features=["quote@3"]), quote_view()], NotFoundError, "quote@3", id="no version"
    ),
    pytest.param([view(source="v", features=["a"])], DefinitionError, "reads itself", id="a view of itself"),
    pytest.param(
        [view("a", source="b", features=["x"]), view("b", source="a", features=["x"])],
        DefinitionError,
        "feature view 'a' → feature view 'b' → feature view 'a'",
        id="a circle",
    ),
    pytest.param(
        [
            OnDemandFeatureView("o", inputs=["quote", "again:mid"], features={"x": "mid"}),
            quote_view(),
            view("again", source=QUOTES_SOURCE, features={"mid": "bid"}),
        ],
        DefinitionError,
        "'mid' is there already",
        id="two inputs of one name",
    ),
    pytest.param(
        [
            OnDemandFeatureView("p", inputs=["o"], features={"x": "y"}),
            quote_view(),
            OnDemandFeatureView("o", inputs=["quote"], features={"y": "mid"}),
        ],
        DefinitionError,
        "computed on demand itself",
        id="on demand over on demand",
    ),
    pytest.param(
        [Label("l", source=quote_view(), expression="mud", horizon="1s")],
        SchemaError,
        "did you mean 'mid'",
        id="a label of an unknown column",
    ),
    pytest.param(
        [Label("l", source=quote_view(), expression="mid / start.ask", horizon="1s")],
        SchemaError,
        "'ask'",
        id="a label's start of an unknown column",
    ),
    pytest.param(
        [Label("l", source=TRADES_SOURCE, expression="sum(symbol)", horizon="1s")],
        SchemaError,
        "sum cannot take",
        id="a label that sums names",
    ),
    pytest.param(
        [TrainingSet("t", spine=TRADES_SOURCE, features=[view(features=["price"])])],
        DefinitionError,
        "full_feature_names=True",
        id="a feature named as a column of the spine",
    ),
    pytest.param(
        [TrainingSet("t", spine=TRADES_SOURCE, features=[quote_view(), "quote:mid"])],
        DefinitionError,
        "two columns 'mid'",
        id="a feature twice",
    ),
    pytest.param(
        [TrainingSet("t", spine=TRADES_SOURCE, features=[quote_view()], key_map={"simbol": "symbol"})],
        DefinitionError,
        "'simbol', which no feature uses",
        id="a key map of no key",
    ),
    pytest.param(
        [TrainingSet("t", spine=TRADES_SOURCE, features=[quote_view()], key_map={"x": {"symbol": "symbol"}})],
        DefinitionError,
        "alias 'x'",
        id="a key map of no alias",
    ),
    pytest.param(
        [TrainingSet("t", spine=TRADES_SOURCE, features=[quote_view()], key_map={"symbol": "ticker"})],
        SchemaError,
        "no column 'ticker'",
        id="a mapped key that the spine lacks",
    ),
    pytest.param(
        [TrainingSet("t", spine=TRADES_SOURCE, features=[quote_view()], key_map={"symbol": "size"})],
        SchemaError,
        "'size' is int64",
        id="keys of different kinds",
    ),
    pytest.param(
        [
            TrainingSet("t", spine=TRADES_SOURCE, features=["o"]),
            quote_view(),
            OnDemandFeatureView(
                "o", inputs=["quote:mid"], request={"limit": "float64"}, features={"x": "mid"}
            ),
        ],
        SchemaError,
        "no column 'limit'",
        id="a request column that the spine lacks",
    ),
    pytest.param(
        [quote_view(), quote_view("bid * 2")], DefinitionError, "two different", id="two of one name"
    ),
    pytest.param(["quote"], DefinitionError, "no definition", id="a text"),
]


@pytest.mark.parametrize(("objects", "error", "says"), BAD)
def test_what_cannot_work_is_found_at_plan(
    catalog: Catalog, objects: list[Definition], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        catalog.plan([SYMBOL, TRADES_SOURCE, *objects])
    assert catalog.head == 0


def test_a_leak_is_a_leakage_error_and_nothing_weaker(catalog: Catalog) -> None:
    with pytest.raises(LeakageError):
        catalog.plan(labelled(source="next", features=["mid"]))


def test_one_name_for_a_source_and_its_view_is_fine(catalog: Catalog) -> None:
    same = FeatureView("trades", source=TRADES_SOURCE, entities=[SYMBOL], features=["price"])
    note = "'trades' is a feature view and a source; the name alone means the feature view"
    assert catalog.plan([same]).notes == (note,)
    catalog.apply([same])
    snapshot = catalog.snapshot()
    assert snapshot.get("trades") == same
    assert snapshot.source_of("trades") == TRADES_SOURCE
    with pytest.raises(DefinitionError, match="a source and a feature view"):
        catalog.plan([view("other", source=same, features=["price"])])


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM source",
        "FROM source",
        "SELECT *, bid * 2 AS twice FROM source WHERE ask > 0 AND symbol <> 'X'",
        "SELECT * EXCLUDE (bid) REPLACE (ask + 1 AS ask), 0.0 AS bid FROM source s",
        "SELECT t.* FROM (SELECT * FROM source WHERE bid > 0) t",
        "WITH x AS (SELECT *, bid AS b FROM source) SELECT * FROM x",
        "SELECT * FROM source UNION ALL SELECT * FROM source WHERE bid > 1",
        "SELECT *, unnest([1, 2]) AS side FROM source",
    ],
)
def test_a_query_that_works_row_by_row_is_fine(catalog: Catalog, query: str) -> None:
    catalog.plan([Source("quotes", path="q", timestamp_field="ts", query=query)])


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("SELECT *, lead(bid) OVER (PARTITION BY symbol ORDER BY ts) AS n FROM source", "lead"),
        ("SELECT *, lag(bid) OVER (ORDER BY ts) AS n FROM source", "lag"),
        ("SELECT symbol, ts, max(bid) AS bid FROM source GROUP BY ALL", "GROUP BY"),
        ("SELECT *, (SELECT max(bid) FROM source) AS top FROM source", "subquery"),
        ("SELECT a.* FROM source a JOIN source b ON b.ts > a.ts", "a join"),
        ("SELECT * FROM source, source AS b", "a join"),
        ("SELECT DISTINCT * FROM source", "DISTINCT"),
        ("SELECT * FROM source ORDER BY ts LIMIT 5", "LIMIT"),
        ("SELECT * FROM source UNION SELECT * FROM source", "set operation"),
        ("SELECT * FROM source EXCEPT SELECT * FROM source", "set operation"),
        ("SELECT * FROM source WHERE bid > (SELECT avg(bid) FROM source)", "subquery"),
        ("SELECT * FROM source QUALIFY row_number() OVER () = 1", "QUALIFY"),
        ("SELECT * FROM source USING SAMPLE 10%", "a sample"),
        ("SELECT * FROM (SELECT *, count(*) OVER () AS n FROM source)", "count"),
        ("WITH x AS (SELECT max(bid) AS b FROM source) SELECT * FROM x", "max"),
    ],
)
def test_a_query_that_looks_at_other_rows_is_a_leak(catalog: Catalog, query: str, says: str) -> None:
    with pytest.raises(LeakageError, match=says):
        catalog.plan([Source("quotes", path="q", timestamp_field="ts", query=query)])


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * EXCLUDE (bid), random() AS bid FROM source",
        "SELECT *, now() AS seen FROM source",
        "SELECT *, current_timestamp AS seen FROM source",
        "SELECT * REPLACE (random() AS bid) FROM source",
        "SELECT *, unnest([random()]) AS r FROM source",
        "SELECT * FROM source WHERE random() > 0.5",
        "SELECT * FROM range(5)",
        "SELECT * FROM duckdb_settings()",
        "SELECT * FROM other",
        "SELECT * FROM source; SELECT 1",
        "DELETE FROM source",
    ],
)
def test_a_query_that_is_not_pure_is_refused(catalog: Catalog, query: str) -> None:
    with pytest.raises(DefinitionError):
        catalog.plan([Source("quotes", path="q", timestamp_field="ts", query=query)])


def test_what_readers_ask_for_by_name_has_a_name_of_its_own(catalog: Catalog) -> None:
    catalog.apply([quote_view()])
    with pytest.raises(DefinitionError, match="'quote' is a feature view and a feature service"):
        catalog.plan([FeatureService("quote", features=["quote"])])
    with pytest.raises(DefinitionError, match="'m' is a"):
        catalog.plan(
            [FeatureService("m", features=["quote"]), TrainingSet("m", spine=TRADES_SOURCE, service="m")]
        )
    catalog.plan(
        [view("other", source=QUOTES_SOURCE, features=["bid"]), FeatureService("quote", features=["other"])],
        remove=["quote"],
    )


def test_a_view_joined_twice_under_aliases_needs_both_keys(catalog: Catalog, columns: Columns) -> None:
    columns.schemas["flights"] = pa.schema([("ts", NS), ("here", pa.string()), ("there", pa.string())])
    flights = Source("flights", path="f", timestamp_field="ts")
    key_map = {"origin": {"symbol": "here"}, "destination": {"symbol": "there"}}
    train = TrainingSet(
        "t", spine=flights, features=["origin=quote:mid", "destination=quote"], key_map=key_map
    )
    catalog.apply([train, quote_view()])
    assert catalog.snapshot().schema_of("t").names == [
        *("ts", "here", "there", "origin__mid", "destination__bid", "destination__mid")
    ]
    with pytest.raises(SchemaError, match="no column 'symbol'"):
        catalog.plan([TrainingSet("t", spine=flights, features=["quote:mid"]), quote_view()])


def test_full_names_make_room_for_a_feature_named_as_a_spine_column(catalog: Catalog) -> None:
    train = TrainingSet(
        "t", spine=TRADES_SOURCE, features=[view(features=["price"]), quote_view()], full_feature_names=True
    )
    catalog.apply([train])
    assert catalog.snapshot().schema_of("t").names == [*TRADES.names, "v__price", "quote__bid", "quote__mid"]


# -- changes -------------------------------------------------------------------------------------------


def test_objects_held_by_others_come_along(catalog: Catalog) -> None:
    plan = catalog.plan([market()["train"]])
    order = [c.name for c in plan.changes]
    reads = [
        ("symbol", "trades"),
        ("symbol", "quotes"),
        ("trades", "flow"),
        ("quotes", "quote"),
        ("quote", "drift"),
    ]
    reads += [("quote", "edge"), ("edge", "model"), ("flow", "model"), ("quote", "move"), ("move", "train")]
    assert sorted(order) == sorted({name for pair in reads for name in pair})
    assert all(order.index(before) < order.index(after) for before, after in reads)
    assert {(c.action, c.version, c.before) for c in plan.changes} == {("add", 1, None)}
    assert not plan.is_breaking
    assert plan.rematerialize == ()


def test_a_plan_writes_nothing_and_is_a_value(catalog: Catalog, tmp_path: Path) -> None:
    first, second = catalog.plan([market()["train"]]), catalog.plan([market()["train"]])
    assert first == second
    assert not list(tmp_path.iterdir())


def test_a_change_of_meaning_reaches_all_that_read_it(catalog: Catalog) -> None:
    catalog.apply([market()["train"]])
    plan = catalog.plan([quote_view("bid")])
    assert [(c.action, c.name, c.before, c.version) for c in plan.changes] == [
        ("change", name, 1, 2) for name in ("quote", "drift", "edge", "model", "move", "train")
    ]
    assert plan.rematerialize == ("quote@2", "drift@2", "train@2")
    assert [(f.field, f.before, f.after) for f in plan.changes[0].fields] == [
        ("features.mid", "(bid + ask) / 2", "bid")
    ]
    assert plan.changes[1].because == ("feature_view/quote@1 → @2",)
    assert not plan.is_breaking


def test_a_reference_with_a_version_does_not_move(catalog: Catalog) -> None:
    catalog.apply([quote_view()])
    catalog.apply(
        [FeatureService("fixed", features=["quote@1"]), FeatureService("moving", features=["quote"])]
    )
    catalog.apply([quote_view("bid")])
    assert in_force(catalog)["feature_service", "fixed"] == 1
    assert in_force(catalog)["feature_service", "moving"] == 2


def test_metadata_changes_make_no_version_and_reach_nobody(catalog: Catalog) -> None:
    catalog.apply([market()["train"]])
    plan = catalog.plan([quote_view(description="best bid and offer", tags={"team": "x"})])
    (change,) = plan.changes
    assert (change.action, change.before, change.version) == ("describe", 1, 1)
    assert [f.field for f in change.fields] == ["description", "tags"]
    assert plan.rematerialize == ()
    catalog.apply(plan)
    expected = quote_view(description="best bid and offer", tags={"team": "x"})
    assert catalog.get("quote@1").spec() == expected.spec()


@pytest.mark.parametrize(
    ("after", "breaking"),
    [
        pytest.param(quote_view("bid"), (), id="another formula of the same type"),
        pytest.param(quote_view(ttl="1h"), (), id="another ttl"),
        pytest.param(
            quote_view(features={"bid": "bid", "mid": "bid", "x": "ask"}), (), id="one feature more"
        ),
        pytest.param(quote_view(features={"bid": "bid"}), ("mid is gone",), id="one feature less"),
        pytest.param(
            quote_view("bid > ask"),
            ("mid: double becomes bool",),
            id="another type",
        ),
    ],
)
def test_what_breaks_its_users_is_told(
    catalog: Catalog, after: FeatureView, breaking: tuple[str, ...]
) -> None:
    catalog.apply([quote_view()])
    (change,) = catalog.plan([after]).changes
    assert change.breaking == breaking


def test_another_order_of_a_services_features_breaks_its_model(catalog: Catalog) -> None:
    catalog.apply([FeatureService("m", features=["quote:bid", "quote:mid"]), quote_view()])
    (change,) = catalog.plan([FeatureService("m", features=["quote:mid", "quote:bid"])]).changes
    assert change.breaking == ("the order of its features changes",)


def test_other_join_keys_break_everything_below(catalog: Catalog, columns: Columns) -> None:
    catalog.apply([market()["train"]])
    for name in ("quotes", "trades"):
        columns.schemas[name] = columns.schemas[name].append(pa.field("isin", pa.string()))
    given = [
        Entity("symbol", join_keys=["isin"]),
        *(
            Source(name, path=name, timestamp_field="ts", entities=["symbol"])
            for name in ("quotes", "trades")
        ),
    ]
    plan = catalog.plan(given)
    assert plan.is_breaking
    assert plan.changes[0].breaking == ("join_keys: ['symbol'] becomes ['isin']",)


def test_a_changed_entity_is_checked_against_sources_that_are_not_given(
    catalog: Catalog, columns: Columns
) -> None:
    catalog.apply([market()["train"]])
    columns.asked.clear()
    with pytest.raises(SchemaError, match="a key is a string or an integer"):
        catalog.plan([Entity("symbol", join_keys=["ts"])])
    assert columns.asked == []


def test_applying_the_same_again_reads_sources_and_changes_nothing(
    catalog: Catalog, columns: Columns
) -> None:
    catalog.apply([market()["train"]])
    columns.asked.clear()
    assert catalog.plan([market()["train"]]).is_empty
    assert sorted(columns.asked) == ["quotes", "trades"]


# -- drift ---------------------------------------------------------------------------------------------


def test_drift_of_a_column_in_use_is_an_error_with_the_difference(catalog: Catalog, columns: Columns) -> None:
    catalog.apply([quote_view()])
    columns.schemas["quotes"] = pa.schema(
        [("symbol", pa.string()), ("ts", NS), ("bid", pa.float32()), ("x", NS)]
    )
    with pytest.raises(SchemaError, match="bid: double became float\n") as raised:
        catalog.plan([quote_view()])
    assert "ask: double is gone" in raised.value.message
    assert "x: timestamp[ns, tz=UTC] is new" in raised.value.message
    assert raised.value.context["columns"] == ["bid", "ask"]


def test_drift_of_what_nobody_uses_is_recorded(catalog: Catalog, columns: Columns) -> None:
    columns.schemas["quotes"] = QUOTES.append(pa.field("note", pa.string()))
    catalog.apply([quote_view()])
    columns.schemas["quotes"] = QUOTES.append(pa.field("venue", pa.int32()))
    (change,) = catalog.plan([quote_view()]).changes
    assert (change.action, change.name, change.version) == ("describe", "quotes", 1)
    assert [(f.field, f.before, f.after) for f in change.fields] == [
        ("columns.note", "string", None),
        ("columns.venue", None, "int32"),
    ]
    catalog.apply([quote_view()])
    assert catalog.snapshot().schema_of("quotes").names == [*QUOTES.names, "venue"]


def test_a_column_added_to_a_spine_shows_in_its_training_set(catalog: Catalog, columns: Columns) -> None:
    catalog.apply([market()["train"]])
    columns.schemas["trades"] = TRADES.append(pa.field("venue", pa.int32()))
    catalog.apply([TRADES_SOURCE])
    assert "venue" in catalog.snapshot().schema_of("train").names
    assert in_force(catalog)["training_set", "train"] == 1


# -- removal -------------------------------------------------------------------------------------------


def test_what_is_not_given_stays_unless_the_plan_is_complete(catalog: Catalog) -> None:
    catalog.apply([market()["train"]])
    assert catalog.plan([quote_view()]).is_empty
    plan = catalog.plan([quote_view()], complete=True)
    assert {c.name for c in plan.changes} == {"trades", "flow", "drift", "edge", "model", "move", "train"}
    assert {c.action for c in plan.changes} == {"remove"}
    assert plan.is_breaking


def test_what_is_in_use_cannot_be_removed(catalog: Catalog) -> None:
    catalog.apply([market()["train"]])
    with pytest.raises(NotFoundError, match="which this plan removes"):
        catalog.plan([], remove=["quote"])
    with pytest.raises(NotFoundError, match="no definition 'nothing'"):
        catalog.plan([], remove=["nothing"])


def test_what_is_removed_stays_readable_by_its_version(catalog: Catalog) -> None:
    catalog.apply([market()["train"]])
    catalog.apply([], remove=["train", "feature_service/model"])
    with pytest.raises(NotFoundError, match="still readable as train@1"):
        catalog.get("train")
    assert catalog.get("train@1") == market()["train"]
    with pytest.raises(DefinitionError, match="both given and removed"):
        catalog.plan([quote_view()], remove=["quote"])


def test_what_comes_back_unchanged_has_its_old_version(catalog: Catalog) -> None:
    catalog.apply([quote_view()])
    catalog.apply([], remove=["quote"])
    catalog.apply([quote_view()])
    assert in_force(catalog)["feature_view", "quote"] == 1
    catalog.apply([], remove=["quote"])
    catalog.apply([quote_view("bid")])
    assert in_force(catalog)["feature_view", "quote"] == 2


def test_a_plan_as_json_holds_every_change(catalog: Catalog) -> None:
    catalog.apply([market()["train"]])
    data = catalog.plan(
        [quote_view(features={"bid": "bid + 0"})], remove=["move", "train", "model", "edge", "drift"]
    )
    told = data.to_json()
    assert told["base"] == 1
    assert told["breaking"] is True
    assert told["changes"][0]["name"] == "quote"
    assert told["changes"][0]["fields"] == [
        {"field": "features.bid", "before": "bid", "after": "bid + 0"},
        {"field": "features.mid", "before": "(bid + ask) / 2", "after": None},
    ]


def test_the_entities_that_place_a_training_set_need_their_keys_in_the_spine(catalog: Catalog) -> None:
    named = TrainingSet("t", spine=TRADES_SOURCE, features=[quote_view()], entities=[SYMBOL])
    catalog.plan([named])
    venue = Entity("venue")
    mapped = TrainingSet(
        "t", spine=TRADES_SOURCE, features=[quote_view()], entities=[venue], key_map={"venue": "symbol"}
    )
    catalog.plan([mapped])
    with pytest.raises(SchemaError, match="no column 'venue'"):
        catalog.plan([TrainingSet("t", spine=TRADES_SOURCE, features=[quote_view()], entities=[venue])])
    wrong = TrainingSet(
        "t", spine=TRADES_SOURCE, features=[quote_view()], entities=[venue], key_map={"venue": "price"}
    )
    with pytest.raises(SchemaError, match="key column 'price' is double"):
        catalog.plan([wrong])
