"""Every argument of every definition, given what it cannot be: a typed error, or a definition that works."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import featurestore as fs
from featurestore.catalog.specs import definition_from_spec

USER = fs.Entity("user")
EVENTS = fs.Source("events", path="events.csv", entities=[USER])
LAST = fs.FeatureView("last", source=EVENTS, entities=[USER], features=["x"])
MODEL = fs.FeatureService("model", features=[LAST])
LEFT = fs.Label("left", source=EVENTS, expression="x", horizon="5m")

ABOUT: dict[str, Any] = {"name": "a", "owner": "", "description": "", "tags": {}}
GOOD: list[tuple[Any, dict[str, Any]]] = [
    (fs.Entity, {**ABOUT, "join_keys": ["a"]}),
    (
        fs.Source,
        {
            **ABOUT,
            "path": "p",
            "timestamp_field": "t",
            "created_timestamp_column": "c",
            "sequence_column": "s",
            "availability_delay": "5s",
            "entities": [USER],
            "query": "select * from source",
            "format": "csv",
        },
    ),
    (
        fs.FeatureView,
        {
            **ABOUT,
            "source": EVENTS,
            "entities": [USER],
            "features": ["x"],
            "aggregations": [fs.Aggregation("x", "sum", "5s")],
            "ttl": "5s",
            "nulls": "keep",
            "online": True,
        },
    ),
    (fs.Aggregation, {"column": "x", "function": "sum", "window": "5s", "name": "a", "tile": "1s"}),
    (
        fs.OnDemandFeatureView,
        {**ABOUT, "inputs": ["last:x"], "request": {"y": "float64"}, "features": {"z": "x + y"}},
    ),
    (fs.FeatureService, {**ABOUT, "features": [LAST]}),
    (fs.Label, {**ABOUT, "source": EVENTS, "expression": "x", "horizon": "5m"}),
    (
        fs.TrainingSet,
        {
            **ABOUT,
            "spine": EVENTS,
            "features": [LAST],
            "labels": [LEFT],
            "entities": [USER],
            "key_map": {},
            "full_feature_names": False,
        },
    ),
]
WRONG: list[Any] = [
    *(None, 0, -1, 1.5, True, 2**70, float("nan"), b"x", "", " ", "ä", "a b", "x\0y", "a" * 300, "1mo"),
    *([], {}, (), [None], [1], [""], ["a", "a"], {"a": 1}, {1: "a"}, {"": ""}, {"a": None}, [[]]),
    *(object(), fs.Entity, lambda: 1, Path("x"), pa.int64(), np.int8(3), np.timedelta64("NaT"), pd.NaT),
    *(pd.Timestamp("2020"), timedelta(-1), timedelta(10**8), USER, EVENTS, LAST, MODEL, LEFT),
    *("select", "x; drop table y", "lead(x) over ()"),
]


@pytest.mark.parametrize(
    ("kind", "argument"), [(kind, argument) for kind, arguments in GOOD for argument in arguments]
)
def test_an_argument_that_cannot_be_right_is_refused_by_a_typed_error(kind: Any, argument: str) -> None:
    good = dict(GOOD)[kind]
    refused = 0
    for value in WRONG:
        given = {**good, argument: value}
        try:
            made = (
                kind(given.pop("name"), **given)
                if "name" in given and kind is not fs.Aggregation
                else kind(**given)
            )
        except fs.FeatureStoreError:
            refused += 1
            continue
        assert repr(made)
        written = json.loads(json.dumps(made.spec()))
        if kind is not fs.Aggregation:
            assert definition_from_spec(written) == made
    assert refused >= 10


def test_lists_that_can_be_read_only_once_are_read_once() -> None:
    service = fs.FeatureService("model", features=iter([LAST]))  # type: ignore[arg-type]
    assert service == MODEL
    assert service.view_objects == (LAST,)
    view = fs.FeatureView("last", source=EVENTS, entities=iter([USER]), features=iter(["x"]))  # type: ignore[arg-type]
    assert view == LAST
    assert view.entity_objects == (USER,)


def test_a_definition_of_another_kind_is_named() -> None:
    with pytest.raises(fs.DefinitionError, match=r"has source=Entity.*\n.*source or feature view"):
        fs.FeatureView("last", source=USER, entities=[USER], features=["x"])  # type: ignore[arg-type]
