"""Arguments of the engine and the facade, given what they cannot be: a typed error before any work."""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featurestore as fs
from featurestore.core.time import instant_ns

LEFT = pa.table({"t": [1, 2], "k": ["a", "b"]})
RIGHT = pa.table({"t": [1, 2], "k": ["a", "b"], "v": [1.0, 2.0]})
RULE: dict[str, Any] = {
    "on": "t", "by": "k", "direction": "backward", "tolerance": "5s", "boundary": "inclusive",
    "created_on": "t", "columns": ["v"], "prefix": "p", "matched_timestamp": "m",
}  # fmt: skip
JOIN = {**RULE, "right_on": "t", "right_by": "k"}
STREAM = {**JOIN, "lateness": "1s", "late": "drop", "max_pending_rows": 9, "aggregations": []}
WRONG: list[Any] = [
    *(0, -1, 1.5, True, 2**70, float("nan"), b"x", "", "zz", [], {}, (), [None], [1], ["zz"], ["t", "t"]),
    *({"t": "k"}, object(), pd.NaT, timedelta(-1), np.timedelta64("NaT"), pd.Timestamp("2020"), "1mo", "-5s"),
    *(datetime(2020, 1, 1), fs.Entity("x"), pa.int64(), LEFT, lambda: 1, [["t"]], None),  # noqa: DTZ001
]


def _asof(**given: Any) -> None:
    fs.asof_join(LEFT, RIGHT, **given)


def _align(**given: Any) -> None:
    fs.align(LEFT, {"right": fs.AsOf(RIGHT, **given)}, on="t", by="k")


def _stream(**given: Any) -> None:
    join = fs.StreamingJoin(**given)
    join.push_right(RIGHT)
    join.push_left(LEFT)
    join.advance_watermark(10**10)
    join.flush()


@pytest.mark.parametrize(
    ("call", "good", "argument"),
    [
        *((_asof, JOIN, argument) for argument in JOIN),
        *((_align, {**RULE, "nulls": "keep", "age": "a"}, argument) for argument in [*RULE, "nulls", "age"]),
        *((_stream, STREAM, argument) for argument in STREAM),
    ],
)
def test_a_rule_that_cannot_be_right_is_refused_by_a_typed_error(
    call: Any, good: dict[str, Any], argument: str
) -> None:
    refused = 0
    for value in WRONG:
        try:
            call(**{**good, argument: value})
        except fs.FeatureStoreError:
            refused += 1
    assert refused >= 10


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_a_number_of_threads_is_a_positive_integer(threads: Any) -> None:
    with pytest.raises(fs.DefinitionError, match="threads is"):
        fs.align(LEFT, {"right": fs.AsOf(RIGHT)}, on="t", by="k", threads=threads)


@pytest.mark.parametrize(
    "value", [pd.NaT, np.timedelta64("NaT"), np.timedelta64(5, "s"), np.datetime64("NaT")]
)
def test_what_is_no_time_is_no_instant(value: Any) -> None:
    with pytest.raises(fs.DefinitionError, match=r"now is .*not a"):
        instant_ns(value, what="now")


T0 = 1_700_000_000_000_000_000
USER = fs.Entity("user")
EVENTS = fs.Source("events", path="events", entities=[USER])
LAST = fs.FeatureView("last", source=EVENTS, entities=[USER], features=["x"])
ROWS = pa.table(
    {"user": ["a", "b"], "event_timestamp": pa.array([T0, T0 + 1], pa.timestamp("ns", "UTC")), "x": [1, 2]}
)
SPINE = ROWS.drop_columns(["x"])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fs.FeatureStore]:
    root = tmp_path_factory.mktemp("bad")
    (root / "events").mkdir()
    pq.write_table(ROWS, root / "events" / "1.parquet")
    with fs.FeatureStore(root) as opened:
        opened.apply(
            [LAST, fs.TrainingSet("pairs", spine=EVENTS, features=["last"], full_feature_names=True)]
        )
        opened.materialize("last")
        opened.materialize("pairs")
        opened.pin("pairs", 1, "tag")
        yield opened


Call = Callable[[fs.FeatureStore, Any], object]
CALLS: dict[str, Call] = {
    "the root": lambda _, given: fs.FeatureStore(given),
    "settings": lambda s, given: fs.FeatureStore(s.root, config=given),
    "plan": lambda s, given: s.plan(given),
    "one of a plan": lambda s, given: s.plan([given]),
    "the expected head": lambda s, given: s.apply([LAST], expected_head=given),
    "what to ingest": lambda s, given: s.ingest("events", given),
    "where to ingest": lambda s, given: s.ingest(given, ROWS),
    "where to push": lambda s, given: s.push(given, ROWS),
    "how to push": lambda s, given: s.push("events", ROWS, to=given),
    "what to materialize": lambda s, given: s.materialize(given),
    "the start": lambda s, given: s.materialize("pairs", start=given),
    "the end": lambda s, given: s.materialize("pairs", end=given),
    "the executor": lambda s, given: s.materialize("pairs", executor=given),
    "what to materialize again": lambda s, given: s.materialize_incremental(given),
    "the spine": lambda s, given: s.get_historical_features(given, "last"),
    "features": lambda s, given: s.get_historical_features(SPINE, given),
    "one of the features": lambda s, given: s.get_historical_features(SPINE, [given]),
    "long names": lambda s, given: s.get_historical_features(SPINE, "last", full_feature_names=given),
    "as of": lambda s, given: s.get_historical_features(SPINE, "last", as_of=given),
    "timestamps": lambda s, given: s.get_historical_features(SPINE, "last", timestamps=given),
    "the time": lambda s, given: s.get_historical_features(SPINE, "last", timestamp_field=given),
    "the keys' names": lambda s, given: s.get_historical_features(SPINE, "last", key_map=given),
    "the dataset": lambda s, given: s.dataset(given),
    "its version": lambda s, given: s.dataset("pairs", given),
    "its columns": lambda s, given: s.dataset("pairs").to_arrow(given),
    "the columns of its stream": lambda s, given: s.dataset("pairs").reader(given),
    "its query": lambda s, given: s.dataset("pairs").sql(given),
    "who makes it again": lambda s, given: s.dataset("pairs").recreate(given),
    "a query": lambda s, given: s.sql(given),
    "whose history": lambda s, given: s.history(given),
    "what to compare": lambda s, given: s.diff("pairs", given, 1),
    "where to go back to": lambda s, given: s.rollback("pairs", given),
    "what to pin": lambda s, given: s.pin("pairs", given, "other"),
    "the tag": lambda s, given: s.pin("pairs", 1, given),
    "the tag to take off": lambda s, given: s.unpin("pairs", tag=given),
    "how many versions to keep": lambda s, given: s.vacuum("pairs", keep=given),
    "features asked online": lambda s, given: s.get_online_features(given, [{"user": "a"}]),
    "whom to ask for": lambda s, given: s.get_online_features("last", given),
    "now": lambda s, given: s.get_online_features("last", [{"user": "a"}], now=given),
    "online names": lambda s, given: s.get_online_features("last", [{"user": "a"}], full_feature_names=given),
    "online keys": lambda s, given: s.get_online_features("last", [{"user": "a"}], key_map=given),
    "preprocessing": lambda s, given: s.get_online_features("last", [{"user": "a"}], preprocessing=given),
    "an entity to export": lambda s, given: s.export(given, ["a"]),
    "an entity to erase": lambda s, given: s.erase(given, ["a"], dry_run=True),
    "keys to erase": lambda s, given: s.erase("user", given, dry_run=True),
    "what becomes of pins": lambda s, given: s.erase("user", ["nobody"], pinned=given),
    "logs": lambda s, given: s.erase("user", ["a"], dry_run=True, answer_logs=given),
    "answers": lambda s, given: s.verify_online(given),
    "a catalog version": lambda s, given: s.catalog.at(given),
    "catalog versions": lambda s, given: s.catalog.diff(given, 1),
    "a reference": lambda s, given: s.catalog.get(given),
    "whose lineage": lambda s, given: s.catalog.lineage(given),
    "the label": lambda s, given: s.dataset("pairs").loader(batch_size=1, label=given),
    "columns of a loader": lambda s, given: s.dataset("pairs").loader(batch_size=1, columns=given),
    "the shuffle": lambda s, given: s.dataset("pairs").loader(batch_size=1, shuffle=given),
    "the end of an epoch": lambda s, given: s.dataset("pairs").loader(batch_size=1, drop_last=given),
    "the type": lambda s, given: s.dataset("pairs").loader(batch_size=1, dtype=given),
    "the size": lambda s, given: s.dataset("pairs").loader(batch_size=given),
    "the rank": lambda s, given: s.dataset("pairs").loader(batch_size=1, rank=given, world_size=2),
    "the split": lambda s, given: s.dataset("pairs").loader(batch_size=1, split=given),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_facade_refuses_what_cannot_be_right_by_a_typed_error(store: fs.FeatureStore, name: str) -> None:
    refused = 0
    for value in WRONG:
        try:
            CALLS[name](store, value)
        except fs.FeatureStoreError:
            refused += 1
    assert refused >= 10


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("select * from pair", r"reads a table 'pair', which is not there\n.*did you mean 'pairs'"),
        ("select nothing from pairs", r"nothing"),
        ("drop table pairs", r"it is another statement"),
    ],
)
def test_sql_that_is_refused_says_what_there_is(store: fs.FeatureStore, query: str, says: str) -> None:
    with pytest.raises(fs.DefinitionError, match=says):
        store.sql(query)
