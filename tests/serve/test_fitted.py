"""What a model was trained on, asked for online: a training set's columns, key maps, fitted preprocessing."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featurestore as fs
from featurestore.errors import DefinitionError, FeatureStoreError, NotFoundError, SchemaError
from featurestore.serve.grpc_client import OnlineClient

T = 10**12
LATER = T + 6 * 10**10  # some are past their ttl
UTC_NS = pa.timestamp("ns", "UTC")
USER = fs.Entity("user", join_keys=["user_id"])
USERS = fs.Source("users", path="users")
PAYMENTS = fs.Source("payments", path="payments")
PROFILE = fs.FeatureView(
    "profile",
    source=USERS,
    entities=[USER],
    features={"age": "age", "score": "score", "balance": "balance", "country": "country", "active": "active"},
    ttl="100s",
)
RISK = fs.TrainingSet(
    "risk",
    spine=PAYMENTS,
    features=["sender=profile", "receiver=profile:score"],
    entities=[USER],
    key_map={"user_id": "sender_id", "receiver": {"user_id": "receiver_id"}},
)
COLUMNS = ["sender__age", "sender__score", "sender__balance", "sender__active", "receiver__score"]


def spread(draw: np.random.Generator, values: Any, null: float) -> pa.Array:
    return pa.array([None if draw.random() < null else v for v in values])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fs.FeatureStore]:
    root = tmp_path_factory.mktemp("root")
    draw = np.random.default_rng(3)
    rows, paid = 400, 300
    users = pa.table(
        {
            "user_id": draw.integers(0, 30, rows),
            "event_timestamp": pa.array(np.sort(draw.integers(0, T, rows))).cast(UTC_NS),
            "age": spread(draw, draw.integers(18, 2**62, rows).tolist(), 0.2),
            "score": spread(draw, (draw.random(rows) * 1e3).tolist(), 0.2),
            "balance": pa.array(draw.random(rows), pa.float32()),
            "country": spread(draw, draw.choice(["DE", "FR", "Österreich", ""], rows).tolist(), 0.2),
            "active": spread(draw, (draw.random(rows) < 0.5).tolist(), 0.2),
        }
    )
    payments = pa.table(
        {
            "sender_id": draw.integers(0, 33, paid),
            "receiver_id": draw.integers(0, 33, paid),
            "event_timestamp": pa.array(np.sort(draw.integers(0, T, paid))).cast(UTC_NS),
        }
    )
    for name, table in (("users", users), ("payments", payments)):
        (root / name).mkdir()
        pq.write_table(table, root / name / "1.parquet")
    with fs.FeatureStore(root) as found:
        found.apply([USER, USERS, PAYMENTS, PROFILE, RISK])
        found.materialize("risk")
        found.materialize("profile")
        yield found


SENDERS = {"sender_id": [*range(30), 31], "receiver_id": [32, *range(29, -1, -1)]}


def at(store: fs.FeatureStore, features: Any, **given: Any) -> pa.Table:
    """History's answer for all pairs at `T`."""
    rows = len(SENDERS["sender_id"])
    spine = pa.table({**SENDERS, "event_timestamp": pa.array([T] * rows).cast(UTC_NS)})
    job = store.get_historical_features(spine, features, **given)
    return job.to_arrow().drop_columns([*SENDERS, "event_timestamp"])


def test_a_training_set_is_asked_for_by_its_name(store: fs.FeatureStore) -> None:
    wanted = at(store, ["sender=profile", "receiver=profile:score"], key_map=RISK.key_map).to_pydict()
    found = store.get_online_features("risk", SENDERS, now=T).to_dict()
    assert {name: found[name] for name in wanted} == wanted
    assert list(found) == [*SENDERS, *wanted]
    with store.serve(now=T) as server, OnlineClient(server.address) as client:
        assert client.get_online_features("risk", SENDERS).to_dict() == found
        asked = ["sender=profile:score", "receiver=profile:score"]
        mapped = client.get_online_features(asked, SENDERS, key_map=RISK.key_map)
        assert mapped.to_dict()["receiver__score"] == found["receiver__score"]


def test_feasts_clients_name_the_training_set_and_send_rows_under_the_mapped_names(
    store: fs.FeatureStore,
) -> None:
    wanted = store.get_online_features("risk", SENDERS, now=T).to_dict()
    body = json.dumps({"feature_service": "risk", "entities": SENDERS})
    with store.serve(now=T, http_address="127.0.0.1:0") as server:
        assert server.http_address is not None
        connection = http.client.HTTPConnection(server.http_address, timeout=30)
        connection.request("POST", "/get-online-features", body)
        answer = json.load(connection.getresponse())
        connection.close()
    named = dict(zip(answer["metadata"]["feature_names"], answer["results"], strict=True))
    assert {name: named[name]["values"] for name in wanted} == wanted


def test_a_key_map_tells_one_view_twice(store: fs.FeatureStore) -> None:
    features, key_map = (
        ["profile:age", "other=profile:age"],
        {
            "user_id": "sender_id",
            "other": {"user_id": "receiver_id"},
        },
    )
    wanted = at(store, features, key_map=key_map).to_pydict()
    found = store.get_online_features(features, SENDERS, now=T, key_map=key_map).to_dict()
    assert [found["age"], found["other__age"]] == [wanted["age"], wanted["other__age"]]


@pytest.mark.parametrize(
    ("key_map", "error"),
    [
        ({"user_id": "nobody"}, SchemaError),
        ({}, SchemaError),
        ({"user_id": 3}, DefinitionError),
        ({"user_id": {"user_id": 3}}, DefinitionError),
    ],
    ids=range(4),
)
def test_a_key_map_that_leads_nowhere_is_refused(
    store: fs.FeatureStore, key_map: Any, error: type[FeatureStoreError]
) -> None:
    with pytest.raises(error):
        store.get_online_features(["profile"], SENDERS, now=T, key_map=key_map)


@pytest.mark.parametrize("dtype", ["float32", None])
@pytest.mark.parametrize("kind", ["standardize", "quantile"])
def test_a_preprocessed_answer_is_what_the_loader_gives_bit_for_bit(
    store: fs.FeatureStore, kind: str, dtype: str | None
) -> None:
    dataset = store.dataset("risk")
    folder = Path(store.root) / "datasets" / "risk" / "ipc" / "v00000001"
    name = f"{kind}_{dtype}"
    columns = [*COLUMNS, "sender__country"] if dtype else ["sender__score", "receiver__score"]
    options: dict[str, Any] = {"columns": columns, "labels": [], "dtype": dtype, "nulls": "nan"}
    loader = dataset.loader(batch_size=10, drop_last=False, **options)
    fitted = loader.fit_preprocessing(kind, name=name)
    fitted.save(folder)
    loader.close()

    # Offline: every sample of the set, as a loader delivers it, then transformed; times tell them apart.
    names = [c for c in columns if c != "sender__country"]
    with dataset.loader(batch_size=300, drop_last=False, shuffle=False, time=True, **options) as whole:
        batch = next(iter(whole))
        rows = {time: row for row, time in enumerate(np.asarray(batch.time).tolist())}
        trained = dict(zip(names, fitted.apply_matrix(batch.x, names).T, strict=True))
    stored = dataset.to_arrow()
    assert len(rows) == stored.num_rows

    # Online: each payment asked for at its own time, from a store that keeps all of history.
    config = {"online": {"history": "10000s", "path": f"online_{name}"}}
    with fs.FeatureStore(store.root, config=config) as other:
        other.materialize("profile")
        for row in range(0, stored.num_rows, 7):
            one = {key: [stored.column(key)[row].as_py()] for key in SENDERS}
            now = stored.column("event_timestamp")[row].value
            given: dict[str, Any] = {"now": now, "preprocessing": f"risk@1:{name}"}
            answer = other.get_online_features("risk", one, **given)
            for column in names:
                value = answer.to_arrow().column(column).to_numpy()
                assert value.tobytes() == trained[column][rows[now]].tobytes(), (column, row)
            if dtype:
                word = stored.column("sender__country")[row].as_py()
                code = fitted.transforms["sender__country"].apply([word])
                assert answer.to_arrow().column("sender__country").to_numpy().tolist() == code.tolist()


def test_a_preprocessed_answer_has_no_nulls_and_keeps_its_statuses(store: fs.FeatureStore) -> None:
    folder = Path(store.root) / "datasets" / "risk" / "ipc" / "v00000001"
    options: dict[str, Any] = {"columns": COLUMNS, "labels": [], "dtype": "float32", "nulls": "nan"}
    with store.dataset("risk").loader(batch_size=10, **options) as loader:
        loader.fit_preprocessing("standardize").save(folder)
    plain = store.get_online_features("risk", SENDERS, now=LATER)
    found = store.get_online_features("risk", SENDERS, now=LATER, preprocessing="risk@1")
    assert found.statuses() == plain.statuses()
    assert {"NOT_FOUND", "OUTSIDE_MAX_AGE", "PRESENT"} <= set(found.statuses()["sender__score"])
    assert found.event_timestamps() == plain.event_timestamps()
    for name in COLUMNS:
        column = found.to_arrow().column(name)
        assert column.type == pa.float32()
        assert column.null_count == 0
    assert found.to_dict()["sender__country"] == plain.to_dict()["sender__country"]
    with store.serve(now=LATER) as server, OnlineClient(server.address) as client:
        for arrow in (False, True):
            answer = client.get_online_features("risk", SENDERS, preprocessing="risk@1", arrow=arrow)
            assert answer.to_dict() == found.to_dict()
            assert answer.statuses() == found.statuses()
        rows = [{key: [value[row]] for key, value in SENDERS.items()} for row in range(31)]
        streamed = [a.to_arrow() for a in client.stream("risk", rows, preprocessing="risk@1")]
        assert pa.concat_tables(streamed).to_pydict() == found.to_dict()


@pytest.mark.parametrize(
    ("features", "preprocessing", "error", "match"),
    [
        ("risk", "risk", DefinitionError, "names no preprocessing"),
        ("risk", "risk@9", NotFoundError, "default"),
        ("risk", "risk@1:nobody", NotFoundError, "nobody"),
        ("risk", "../risk@1", DefinitionError, "names no preprocessing|dataset"),
        (["profile"], "risk@1", NotFoundError, "receiver__score"),
    ],
    ids=range(5),
)
def test_preprocessing_that_does_not_fit_is_refused(
    store: fs.FeatureStore, features: Any, preprocessing: str, error: type[FeatureStoreError], match: str
) -> None:
    given: dict[str, Any] = {"key_map": {"user_id": "sender_id"}} if features != "risk" else {}
    with pytest.raises(error, match=match):
        store.get_online_features(features, SENDERS, now=T, preprocessing=preprocessing, **given)
