"""The facade on a small store: one path through every room."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featurestore as fs
from featurestore.core.clock import ManualClock
from featurestore.errors import DefinitionError, NotFoundError, SchemaError

DAY = 86_400_000_000_000
USER = fs.Entity("user")


def visits(rows: list[tuple[int, int, float]]) -> pa.Table:
    users, times, spent = zip(*rows, strict=True)
    return pa.table(
        {"user": pa.array(users, pa.int64()), "ts": pa.array(times, pa.int64()), "spent": pa.array(spent)}
    )


ROWS = [(1, 10, 5.0), (2, 20, 7.0), (1, DAY + 5, 1.5), (1, DAY + 9, 2.5)]


@pytest.fixture
def store(tmp_path: Path) -> fs.FeatureStore:
    folder = tmp_path / "visits"
    folder.mkdir()
    pq.write_table(visits(ROWS), folder / "part-0.parquet")
    source = fs.Source("visits", path="visits", timestamp_field="ts", entities=[USER])
    last = fs.FeatureView("last_visit", source=source, entities=[USER], features=["spent"], ttl="7d")
    week = fs.FeatureView(
        "week", source=source, entities=[USER], aggregations=[fs.Aggregation("spent", "sum", "7d")]
    )
    label = fs.Label("returns", source=source, expression="count(*) > 0", horizon="1d")
    model = fs.TrainingSet("model", spine=source, features=[week], labels=[label])
    opened = fs.FeatureStore(tmp_path, clock=ManualClock(10 * DAY))
    opened.apply([last, model])
    return opened


def test_a_training_set_is_materialized_verified_and_made_again(store: fs.FeatureStore) -> None:
    result = store.materialize("model")
    dataset = store.dataset("model")
    assert (result.version, dataset.version, dataset.num_rows) == (1, 1, 4)
    assert dataset.verify().fingerprint == dataset.recreate().fingerprint == dataset.fingerprint
    table = dataset.to_arrow().sort_by("ts")
    assert table.column("spent_sum_7d").to_pylist() == [5.0, 7.0, 6.5, 9.0]
    assert table.column("returns").to_pylist() == [True, False, True, False]
    assert dataset.sql("SELECT count(*) AS n FROM dataset").column("n").to_pylist() == [4]
    assert pa.table(dataset).equals(dataset.to_arrow())
    twice = dataset.sql("SELECT a.user FROM dataset a JOIN dataset b ON a.user = b.user AND a.ts = b.ts")
    assert twice.num_rows == 4
    assert sum(batch.num_rows for batch in dataset.scan(["user"])) == 4
    assert not store.materialize("model").created


def test_what_was_removed_from_the_catalog_keeps_its_versions(store: fs.FeatureStore) -> None:
    made = {name: store.materialize(name).fingerprint for name in ("model", "last_visit")}
    store.apply([USER], complete=True)
    assert [entry.name for entry in store.catalog.snapshot().definitions()] == ["user"]
    for name, fingerprint in made.items():
        dataset = store.dataset(name, 1)
        assert dataset.fingerprint == fingerprint == dataset.verify().fingerprint
        assert dataset.recreate().fingerprint == fingerprint
        store.pin(name, 1, "paper")
        assert [(v.version, v.tags) for v in store.history(name)] == [(1, ("paper",))]
        with pytest.raises(NotFoundError, match=f"{name!r} was removed"):
            store.materialize(name)
        with pytest.raises(NotFoundError, match="no version 9"):
            store.dataset(name, 9)


def test_what_expired_is_told_from_what_was_never_seen_after_a_materialization(
    store: fs.FeatureStore,
) -> None:
    store.push("visits", visits([(1, 9 * DAY, 4.0)]), to="offline")
    store.materialize("last_visit")  # user 2 was here once, almost nine days before user 1 came again
    answer = store.get_online_features(["last_visit:spent"], [{"user": u} for u in (1, 2, 3)], now=9 * DAY)
    assert answer.to_dict()["spent"] == [4.0, None, None]
    assert answer.statuses()["spent"] == ["PRESENT", "OUTSIDE_MAX_AGE", "NOT_FOUND"]


def test_a_push_reaches_training_and_serving_alike(store: fs.FeatureStore) -> None:
    store.materialize("last_visit")
    store.push("visits", visits([(2, 2 * DAY, 11.0)]))
    online = store.get_online_features(["last_visit"], {"user": [1, 2, 3]}, now=3 * DAY).to_dict()
    spine = pa.table({"user": [1, 2, 3], "ts": pa.array([3 * DAY] * 3, pa.int64())})
    history = store.get_historical_features(spine, ["last_visit"]).to_arrow()
    assert online["spent"] == history.column("spent").to_pylist() == [2.5, 11.0, None]


def test_flight_serves_datasets_queries_and_history(store: fs.FeatureStore) -> None:
    from featurestore.serve.flight_client import BulkClient  # noqa: PLC0415 -- Flight where it is used

    store.materialize("model")
    assert store.datasets() == ["model"]
    assert store.sql("SELECT sum(spent) AS s FROM model").column("s").to_pylist() == [16.0]
    with store.serve_flight() as front:
        client = BulkClient(front.address)
        assert client.datasets() == ["model"]
        assert client.dataset("model", 1, ["user"]).read_all().num_rows == 4
        assert client.sql("SELECT count(*) AS n FROM model").read_all().to_pydict() == {"n": [4]}
        spine = pa.table({"user": [2], "event_timestamp": pa.array([30], pa.timestamp("ns", "UTC"))})
        answer = client.historical(spine, ["last_visit"]).read_all()
        assert answer.column("spent").to_pylist() == [7.0]


def test_applying_again_changes_nothing_and_says_which_commit_holds(store: fs.FeatureStore) -> None:
    snapshot = store.catalog.snapshot()
    commit = store.apply(list(snapshot.definitions()))
    assert commit.version == store.catalog.head == 1


def test_rows_of_an_entity_are_found_everywhere_and_erased_everywhere(store: fs.FeatureStore) -> None:
    store.materialize("model")
    store.materialize("last_visit")
    found = store.export("user", {"user": [1]})
    counts = {place: rows.num_rows for place, rows in found.items()}
    assert counts == {
        "source/visits": 3,
        "dataset/model@1": 3,
        "dataset/last_visit@1": 3,
        "online/last_visit@1": 1,
    }
    report = store.erase("user", [{"user": 1}])
    assert report.online_rows == 1
    assert report.erased == {place: n for place, n in counts.items() if place.startswith("dataset")}
    assert report.remaining == {"source/visits": 3}
    assert report.complete
    assert store.export("user", [{"user": 1}]) == {}
    after = store.get_online_features(["last_visit"], {"user": [1, 2]}, now=10 * DAY).to_dict()
    assert after["spent"][0] is None
    store.online.write_rows("last_visit", visits(ROWS))
    again = store.get_online_features(["last_visit"], {"user": [1]}, now=10 * DAY).to_dict()
    assert again["spent"] == [None]


def test_what_is_not_there_is_named(store: fs.FeatureStore) -> None:
    with pytest.raises(NotFoundError, match="mdoel"):
        store.materialize("mdoel")
    with pytest.raises(NotFoundError):
        store.dataset("model")
    with pytest.raises(NotFoundError, match="usr"):
        store.export("usr", {"user": [1]})
    with pytest.raises(SchemaError, match="user"):
        store.export("user", {"usr": [1]})
    with pytest.raises(DefinitionError, match="everywhere"):
        store.push("visits", visits(ROWS), to="everywhere")


def test_settings_come_from_the_file_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "feature_store.yaml").write_text("project: shop\nbuckets: 3\n")
    assert fs.FeatureStore(tmp_path).config.buckets == 3
    (tmp_path / "feature_store.yaml").write_text("- project\n")
    with pytest.raises(DefinitionError, match="mapping"):
        fs.FeatureStore(tmp_path)
    (tmp_path / "feature_store.yaml").write_text("project: [\n")
    with pytest.raises(DefinitionError, match="cannot be read"):
        fs.FeatureStore(tmp_path)


def test_a_view_over_windows_is_served_as_history_has_it(store: fs.FeatureStore) -> None:
    top = fs.FeatureView(
        "top", source="week", entities=[USER], aggregations=[fs.Aggregation("spent_sum_7d", "max", "7d")]
    )
    store.apply([top])
    assert store.materialize("top").created
    spine = pa.table({"user": [1], "ts": pa.array([2 * DAY], pa.int64())})
    history = store.get_historical_features(spine, ["top"]).to_arrow()
    assert history.column("spent_sum_7d_max_7d").to_pylist() == [9.0]
    assert store.get_online_features(["top"], {"user": [1]}, now=2 * DAY).to_dict()[
        "spent_sum_7d_max_7d"
    ] == [9.0]


def test_a_view_that_cannot_be_kept_online_is_read_from_history_and_stops_no_other(
    store: fs.FeatureStore,
) -> None:
    top = fs.FeatureView("top", source="week", entities=[USER], features=["spent_sum_7d"], nulls="last_known")
    store.apply([top])
    assert store.materialize("top").created
    spine = pa.table({"user": [1], "ts": pa.array([2 * DAY], pa.int64())})
    history = store.get_historical_features(spine, ["top"]).to_arrow()
    assert history.column("spent_sum_7d").to_pylist() == [9.0]
    with pytest.raises(DefinitionError, match="no bounded number of rows"):
        store.get_online_features(["top"], {"user": [1]}, now=10 * DAY)
    written = store.push("visits", visits([(1, 9 * DAY, 4.0)]))
    assert written is not None
    assert written.views == ("last_visit@1", "week@1")
    spent = store.get_online_features(["last_visit"], {"user": [1]}, now=10 * DAY).to_dict()["spent"]
    assert spent == [4.0]
