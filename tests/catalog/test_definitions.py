"""Definitions: frozen, compared by meaning, written as JSON and read back."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.catalog.house import QUOTES_SOURCE, SYMBOL, TRADES_SOURCE, market, quote_view

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
from featurestore.catalog.definition import Definition
from featurestore.catalog.refs import Ref, parse_ref
from featurestore.catalog.specs import definition_from_spec
from featurestore.errors import CorruptDataError, DefinitionError

NAMES = st.from_regex(r"[A-Za-z](_?[A-Za-z0-9]){0,8}", fullmatch=True)
COLUMNS = st.text(
    st.characters(codec="utf-8", exclude_characters=':@=/"\\', min_codepoint=32), min_size=1, max_size=8
).filter(lambda s: "\x7f" not in s)
ABOUT: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "owner": st.text(max_size=5),
        "description": st.text(max_size=5),
        "tags": st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
    },
)
OUTPUTS = COLUMNS.filter(lambda s: s.isascii() and s == s.strip() and not s.startswith("__"))
POSITIVE = st.integers(1, 2**62)


@st.composite
def sources(draw: st.DrawFn) -> Source:
    columns = draw(st.lists(COLUMNS, min_size=3, max_size=3, unique=True))
    return Source(
        draw(NAMES),
        path=draw(st.text(min_size=1, max_size=10)),
        timestamp_field=columns[0],
        created_timestamp_column=draw(st.sampled_from([None, columns[1]])),
        sequence_column=draw(st.sampled_from([None, columns[2]])),
        availability_delay=draw(st.none() | st.integers(0, 2**62)),
        entities=draw(st.lists(NAMES, max_size=2, unique=True)),
        query=draw(st.sampled_from([None, "SELECT * FROM source"])),
        format=draw(st.sampled_from([None, "parquet", "delta"])),
        **draw(ABOUT),
    )


@st.composite
def views(draw: st.DrawFn) -> FeatureView:
    names = draw(st.lists(OUTPUTS, min_size=2, max_size=4, unique=True))
    window = draw(POSITIVE)
    return FeatureView(
        draw(NAMES),
        source=draw(sources() | NAMES),
        entities=draw(st.lists(NAMES | NAMES.map(Entity), min_size=1, max_size=2)),
        features=[Feature(n, draw(st.sampled_from([None, "a + 1", "upper(x)"]))) for n in names[1:]],
        aggregations=[Aggregation("x", draw(st.sampled_from(["sum", "last_n(5)"])), window, names[0])],
        ttl=draw(st.none() | POSITIVE),
        nulls=draw(st.sampled_from(["keep", "last_known"])),
        online=draw(st.booleans()),
        **draw(ABOUT),
    )


@st.composite
def training_sets(draw: st.DrawFn) -> TrainingSet:
    refs = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    return TrainingSet(
        draw(NAMES),
        spine=draw(NAMES),
        features=[*refs, f"again={refs[0]}@2:x"],
        labels=draw(st.lists(NAMES, max_size=2)),
        entities=draw(st.lists(NAMES, max_size=2)),
        key_map={"again": {"k": "c"}, "k": "d"},
        full_feature_names=draw(st.booleans()),
        **draw(ABOUT),
    )


ANY = sources() | views() | training_sets()


@settings(deadline=None)
@given(ANY)
def test_a_definition_survives_json_with_its_meaning(definition: Definition) -> None:
    text = json.dumps(definition.spec(), allow_nan=False)
    back = definition_from_spec(json.loads(text))
    assert back == definition
    assert back.spec() == definition.spec()
    assert back.digest() == definition.digest()
    assert hash(back) == hash(definition)
    assert repr(back) == repr(definition)


def test_every_kind_survives_json() -> None:
    for definition in [SYMBOL, QUOTES_SOURCE, *market().values()]:
        assert definition_from_spec(json.loads(json.dumps(definition.spec()))) == definition


def test_an_unknown_kind_is_corrupt_data() -> None:
    with pytest.raises(CorruptDataError, match="kind 'widget'"):
        definition_from_spec({"kind": "widget", "name": "x"})


def test_a_missing_field_is_corrupt_data_and_named() -> None:
    spec = SYMBOL.spec()
    del spec["join_keys"]
    with pytest.raises(CorruptDataError, match="no field 'join_keys'"):
        definition_from_spec(spec)


def test_objects_and_names_mean_the_same() -> None:
    by_object = FeatureView("v", source=QUOTES_SOURCE, entities=[SYMBOL], features=["bid"])
    by_name = FeatureView("v", source="quotes", entities=["symbol"], features=["bid"])
    assert by_object == by_name
    assert len({by_object, by_name}) == 1


def test_metadata_is_no_part_of_the_meaning() -> None:
    plain, described = quote_view(), quote_view(description="best quotes", owner="me", tags={"a": "b"})
    assert plain == described
    assert hash(plain) == hash(described)
    assert plain.digest() == described.digest()
    assert plain.spec() != described.spec()
    assert plain != quote_view(ttl="6s")


@pytest.mark.parametrize("name", ["\u0430sk", "tmp ", " tmp", "\u210c", "__x", "größe", "a:b", "", "x" * 129])
def test_a_feature_is_not_named_by_look_alikes_spaces_or_what_the_layout_uses(name: str) -> None:
    for build in (
        lambda: quote_view(features={name: "bid"}),
        lambda: quote_view(features=[name]),
        lambda: Aggregation("bid", "sum", "1s", name=name),
        lambda: OnDemandFeatureView("o", features={name: "1"}),
    ):
        with pytest.raises(DefinitionError, match="not allowed"):
            build()


def test_definitions_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SYMBOL.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    "name",
    ["", "../etc", "a/b", "ünï", "\u0430", "a b", "a__b", "1a", "_a", "x" * 64, "a\n", None, 3, "a:b", "a@1"],
)
@pytest.mark.parametrize(
    "kind",
    [Entity, lambda n: Source(n, path="p"), lambda n: FeatureService(n, features=["v"])],
    ids=["entity", "source", "service"],
)
def test_names_that_could_be_paths_look_alikes_or_refs_are_refused(
    kind: Callable[[Any], Definition], name: object
) -> None:
    with pytest.raises(DefinitionError, match="is not allowed"):
        kind(name)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        pytest.param(lambda: Entity("e", join_keys=[]), "join keys", id="an entity without keys"),
        pytest.param(lambda: Entity("e", join_keys=["a", "a"]), "join keys", id="a key twice"),
        pytest.param(lambda: Source("s", path=""), "empty path", id="an empty path"),
        pytest.param(lambda: Source("s", path="p", format="xlsx"), "format", id="an unknown format"),
        pytest.param(
            lambda: Source("s", path="p", timestamp_field="t", created_timestamp_column="t"),
            "one column",
            id="event and created are one column",
        ),
        pytest.param(
            lambda: Source("s", path="p", availability_delay="-1s"), "negative", id="a negative delay"
        ),
        pytest.param(lambda: quote_view(ttl=0), "only a value of its very instant", id="a ttl of zero"),
        pytest.param(lambda: quote_view(ttl="-1s"), "negative", id="a negative ttl"),
        pytest.param(lambda: quote_view(nulls="skip"), "nulls", id="an unknown nulls"),
        pytest.param(lambda: quote_view(features=[]), "no features", id="no features"),
        pytest.param(lambda: quote_view(features=["a", "a"]), "more than one", id="a feature twice"),
        pytest.param(lambda: quote_view(features="bid"), "names or a mapping", id="features as a text"),
        pytest.param(lambda: quote_view(features={"x": "now()"}), "now", id="the clock in an expression"),
        pytest.param(lambda: quote_view(features={"x": "sum(bid)"}), "aggregate", id="an aggregate"),
        pytest.param(lambda: quote_view(features={"x": "(SELECT 1)"}), "subquery", id="a subquery"),
        pytest.param(lambda: FeatureService("s", features=["v", "v"]), "twice", id="a feature listed twice"),
        pytest.param(lambda: FeatureService("s", features=[]), "features", id="an empty service"),
        pytest.param(
            lambda: Label("x", source="q", expression="mid", horizon=0), "horizon", id="a horizon of zero"
        ),
        pytest.param(
            lambda: Label("x", source="q", expression="mid", horizon="-5m"), "negative", id="a horizon behind"
        ),
        pytest.param(
            lambda: Label("x", source="q", expression=" ", horizon=1), "expression", id="an empty expression"
        ),
        pytest.param(
            lambda: Label("x", source="q", expression="random()", horizon=1), "random", id="chance in a label"
        ),
        pytest.param(
            lambda: OnDemandFeatureView("o", request={"x": "money"}, features={"a": "x"}),
            "type 'money'",
            id="an unknown request type",
        ),
        pytest.param(
            lambda: OnDemandFeatureView("o", features={}), "no features", id="on demand without features"
        ),
        pytest.param(
            lambda: OnDemandFeatureView("o", features=[Feature("a")]),
            "each with its expression",
            id="on demand without an expression",
        ),
        pytest.param(
            lambda: OnDemandFeatureView("o", features={"a": "uuid()"}), "uuid", id="chance on demand"
        ),
        pytest.param(lambda: Aggregation("x", "median", "1s"), "not known", id="an unknown function"),
        pytest.param(lambda: Aggregation("x", "last_n(0)", "1s"), "not known", id="the last none"),
        pytest.param(lambda: Aggregation("*", "sum", "1s"), "cannot be aggregated", id="a sum of rows"),
        pytest.param(lambda: Aggregation("x", "sum", "1s", tile="2s"), "tile", id="a tile over the window"),
        pytest.param(
            lambda: TrainingSet("t", spine="s", features=["v"], service="m"),
            "both",
            id="features and a service",
        ),
        pytest.param(lambda: TrainingSet("t", spine="s"), "features", id="neither"),
        pytest.param(
            lambda: TrainingSet("t", spine="s", features=["v"], key_map={"a": 3}),  # type: ignore[dict-item]
            "key_map",
            id="a key map of numbers",
        ),
    ],
)
def test_what_cannot_be_right_is_refused_where_it_is_written(build: Callable[[], object], says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        build()


def test_plain_arithmetic_is_defined_without_loading_duckdb(tmp_path: Any) -> None:
    code = (
        "import sys, featurestore as fs\n"
        "fs.FeatureView('v', source='s', entities=['e'], features={'mid': '(bid + ask) / 2', 'bid': 'bid'})\n"
        "assert 'duckdb' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


@settings(deadline=None)
@given(
    alias=st.none() | NAMES,
    name=NAMES,
    version=st.none() | st.integers(1, 10**8),
    feature=st.none() | COLUMNS,
)
def test_references_read_back_what_they_write(
    alias: str | None, name: str, version: int | None, feature: str | None
) -> None:
    ref = Ref(name, version, feature, alias)
    assert parse_ref(str(ref)) == ref


@pytest.mark.parametrize("text", ["", "a@", "a@0", "a@x", ":b", "a:", "=a", "a@1@2", "ä", "a/b", 5])
def test_what_is_no_reference_is_refused(text: object) -> None:
    with pytest.raises(DefinitionError):
        parse_ref(text)


def test_a_service_given_by_name_or_object_is_the_same_training_set() -> None:
    service = FeatureService("m", features=["quote"])
    by_name = TrainingSet("t", spine=TRADES_SOURCE, service="m")
    assert by_name == TrainingSet("t", spine=TRADES_SOURCE, features=service)
    assert by_name == TrainingSet("t", spine="trades", service=service)


@pytest.mark.parametrize(
    ("sql", "name"),
    [
        *(("double", "float64"), ("BIGINT", "int64"), ("integer", "int32"), ("real", "float32")),
        *(("varchar", "string"), ("boolean", "bool"), ("timestamptz", "timestamp")),
    ],
)
def test_request_fields_take_the_types_of_sql(sql: str, name: str) -> None:
    written = OnDemandFeatureView("o", request={"x": sql}, features={"a": "x"})
    assert written == OnDemandFeatureView("o", request={"x": name}, features={"a": "x"})
    assert written.digest() == OnDemandFeatureView("o", request={"x": name}, features={"a": "x"}).digest()
