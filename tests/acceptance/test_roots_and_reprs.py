"""A store at any fsspec URL, and what its objects say of themselves."""

from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featurestore as fs

T0 = 1_700_000_000_000_000_000
ROWS = pa.table(
    {"user": ["a", "b"], "event_timestamp": pa.array([T0, T0 + 1], pa.timestamp("ns", "UTC")), "x": [1, 2]}
)


@pytest.mark.parametrize("scheme", ["memory://", "file://"])
def test_a_store_lives_at_any_url_and_its_objects_are_short_to_read(tmp_path: Any, scheme: str) -> None:
    pq.write_table(ROWS, tmp_path / "events.parquet")
    root = f"file://{tmp_path}/root" if scheme == "file://" else f"memory://{uuid4().hex}/root"
    user = fs.Entity("user")
    events = fs.Source("events", path=tmp_path / "events.parquet", entities=[user])
    last = fs.FeatureView("last", source=events, entities=[user], features=["x"])
    online = {"online": {"path": str(tmp_path / "online")}}
    with fs.FeatureStore(root, config=online) as store:
        store.apply([fs.TrainingSet("pairs", spine=events, features=[last], full_feature_names=True)])
        assert store.materialize("pairs").rows == 2
        store.materialize("last")
        dataset = store.dataset("pairs")
        dataset.verify()
        assert dataset.recreate().fingerprint == dataset.fingerprint
        assert dataset.sql("select sum(last__x) from dataset")[0].to_pylist() == [3]
        answer = store.get_online_features(["last"], [{"user": "b"}], now=T0 + 9)
        assert answer.to_dict()["x"] == [2]
        store.rollback("pairs", 1)
        assert [version.version for version in store.history("pairs")] == [1, 2]
        loader = dataset.loader(batch_size=1, columns=["last__x"])
        things = [
            *(store, store.catalog, store.catalog.snapshot(), store.plan([last]), store.catalog.history()[0]),
            *(dataset, dataset.manifest, answer, loader, store.plan_materialization("pairs", end=T0 + 1)),
            *(store.get_historical_features(ROWS.drop_columns(["x"]), "last"), user, events, last),
        ]
        for thing in things:
            said = repr(thing)
            assert len(said) < 240
            assert "object at 0x" not in said
