"""What a second reader of the design page takes it to say: it works where harmless, or says what to write."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featurestore as fs
from featurestore.core.time import instant_ns
from featurestore.errors import DefinitionError, LeakageError

T0 = 1_700_000_000_000_000_000
SECOND = 1_000_000_000
USER = fs.Entity("user")


def rows(*events: tuple[str, int, int]) -> pa.Table:
    times = pa.array([T0 + second * SECOND for _, second, _ in events], pa.timestamp("ns", "UTC"))
    users, values = [user for user, _, _ in events], [value for _, _, value in events]
    return pa.table({"user": users, "event_timestamp": times, "x": values})


def opened(
    root: Path, path: str = "events.parquet"
) -> tuple[fs.FeatureStore, fs.FeatureView, fs.TrainingSet]:
    pq.write_table(rows(("a", 0, 1), ("b", 0, 2)), root / "events.parquet")
    pq.write_table(rows(("a", 1, 0), ("b", 2, 0)).drop_columns(["x"]), root / "spine.parquet")
    events = fs.Source("events", path=path, entities=[USER])
    view = fs.FeatureView("last", source=events, entities=[USER], features=["x"])
    spine = fs.Source("spine", path="spine.parquet", entities=[USER])
    pairs = fs.TrainingSet("pairs", spine=spine, features=[view])
    store = fs.FeatureStore(root)
    store.apply([pairs])
    return store, view, pairs


LABEL = fs.Label("rise", source="last", expression="x", horizon="1h")
LOOKING_AHEAD: dict[str, Callable[[Any], Any]] = {
    "a service": lambda label: fs.FeatureService("model", features=[label]),
    "a view": lambda label: fs.FeatureView("view", source=label, entities=["user"], features=["rise"]),
    "an on-demand view": lambda label: fs.OnDemandFeatureView("live", inputs=[label], features={"y": "rise"}),
    "a training set's features": lambda label: fs.TrainingSet("set", spine="events", features=[label]),
}


@pytest.mark.parametrize("reader", LOOKING_AHEAD)
def test_a_label_given_as_an_object_is_a_leak_wherever_features_are_meant(reader: str) -> None:
    with pytest.raises(LeakageError, match="lies after its reader's time") as refused:
        LOOKING_AHEAD[reader](LABEL)
    assert "labels=" in refused.value.hint


@pytest.mark.parametrize("hour", ["1h", timedelta(hours=1), 3_600 * SECOND])
def test_durations_are_read_back_under_the_names_they_were_given(hour: Any) -> None:
    mean = fs.Aggregation("x", "mean", hour, tile="1m")
    view = fs.FeatureView("v", source="s", entities=["user"], features=["x"], ttl=hour)
    source = fs.Source("s", path="s", availability_delay=hour)
    label = fs.Label("y", source="s", expression="x", horizon=hour)
    read = (mean.window, view.ttl, source.availability_delay, label.horizon)
    assert read == (3_600 * SECOND,) * 4
    assert mean.tile == 60 * SECOND
    again = fs.FeatureView("v", source="s", entities=["user"], features=["x"], ttl=view.ttl)
    assert again == view
    assert fs.FeatureView("v", source="s", entities=["user"], features=["x"]).ttl is None
    assert fs.Aggregation("x", "mean", hour).tile is None
    assert fs.Source("s", path="s").availability_delay is None


def test_definitions_stand_for_their_names_in_every_verb(tmp_path: Path) -> None:
    store, view, pairs = opened(tmp_path)
    with store:
        assert store.plan_materialization(pairs) == store.plan_materialization("pairs")
        assert store.materialize(pairs).version == 1
        assert store.materialize(view).name == "last@1"
        assert store.get_online_features(view, {"user": ["a"]}).to_dict()["x"] == [1]
        pq.write_table(rows(("b", 3, 0)).drop_columns(["x"]), tmp_path / "spine.parquet")
        assert store.materialize_incremental(pairs).version == 2
        assert store.dataset(pairs).num_rows == 1
        store.pin(pairs, 1, "model")
        assert store.diff(pairs, 1, 2).name == "pairs"
        assert [v.tags for v in store.history(pairs)] == [("model",), ()]
        store.unpin(pairs, 1, "model")
        assert store.rollback(pairs, 1).version == 3
        assert store.vacuum(pairs, keep=3) == []
        assert store.compact(pairs).name == store.compact("pairs").name


@pytest.mark.parametrize("path", ["events.parquet", "*.parquet"])
def test_what_is_pushed_to_a_source_that_cannot_grow_is_served(tmp_path: Path, path: str) -> None:
    pattern = tmp_path / "spine.parquet"
    store, view, _ = opened(tmp_path)
    with store:
        if path != "events.parquet":
            pattern.rename(tmp_path / "spine.other")
            events = fs.Source("events", path=path, entities=[USER])
            store.apply([fs.FeatureView("last", source=events, entities=[USER], features=["x"])])
        store.materialize(view)
        before = (tmp_path / "events.parquet").read_bytes()
        store.push("events", rows(("a", 5, 9)))
        now = T0 + 10 * SECOND
        assert store.get_online_features("last", {"user": ["a", "b"]}, now=now).to_dict()["x"] == [9, 2]
        assert (tmp_path / "events.parquet").read_bytes() == before
        for way in (lambda: store.ingest("events", rows()), lambda: store.push("events", rows(), to="both")):
            with pytest.raises(DefinitionError, match="cannot be appended to") as refused:
                way()
            assert 'to="online"' in refused.value.hint


def test_a_plan_in_print_says_what_changes_field_by_field(tmp_path: Path) -> None:
    store, _, _ = opened(tmp_path)
    changed = fs.FeatureView("last", source="events", entities=[USER], features={"x": "x + 1"}, ttl="5s")
    text = str(store.plan([changed]))
    assert text.splitlines()[:3] == [
        "change feature view last@2",
        "    features.x: 'x' -> 'x + 1'",
        "    ttl_ns: None -> 5000000000",
    ]
    assert "change training set pairs@2" in text
    assert "    because feature_view/last@1 → @2" in text.splitlines()


def test_a_date_is_its_first_instant(tmp_path: Path) -> None:
    assert instant_ns(date(2023, 11, 14)) == instant_ns("2023-11-14")
    assert instant_ns(date(1960, 2, 29)) == instant_ns(datetime(1960, 2, 29, tzinfo=UTC))
    store, _, _ = opened(tmp_path)  # its rows are of 22:13:21 and later on the 14th
    assert store.materialize("pairs", end=date(2023, 11, 14)).rows == 0
    assert store.materialize("pairs", end=date(2023, 11, 15)).rows == 2
    with pytest.raises(fs.NotFoundError, match="no version as old as 2023-11-15"):
        store.dataset("pairs", date(2023, 11, 15))
    for later in (date(2262, 1, 1), np.datetime64("2262-01-01")):
        assert store.dataset("pairs", later).version == 2
    store.pin("pairs", date(2262, 1, 1), "newest")
    with pytest.raises(fs.NotFoundError, match=r"no tag 'newest' of version 1\n.*newest of version 2"):
        store.unpin("pairs", 1, "newest")


@pytest.mark.parametrize("option", ["threads", "prefetch"])
def test_a_loader_has_no_fewer_than_no_threads(tmp_path: Path, option: str) -> None:
    store, _, _ = opened(tmp_path)
    store.materialize("pairs")
    options: dict[str, Any] = {option: -1}
    with pytest.raises(DefinitionError, match=f"{option}=-1"):
        store.dataset("pairs").loader(batch_size=1, **options)
