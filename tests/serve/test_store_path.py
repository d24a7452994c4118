"""The whole path of a store: definitions, rows, online, a server, and answers held against history."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featurestore as fs
from featurestore.errors import CorruptDataError, NotFoundError
from featurestore.serve.answer_log import NOW, OnlineReport, verify_answers
from featurestore.serve.grpc_client import OnlineClient

T = 10**11
FEATURES = ["quote", "flow", "plain"]
KEYS = {"symbol": ["A", "B", "C", "nobody"]}
UTC_NS = pa.timestamp("ns", "UTC")
SYMBOL = fs.Entity("symbol")
QUOTES = fs.Source("quotes", path="q")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[fs.FeatureStore]:
    draw = np.random.default_rng(0)
    times = np.sort(draw.integers(0, T, 500))
    rows = pa.table(
        {
            "symbol": draw.choice(["A", "B", "C"], 500),
            "event_timestamp": pa.array(times).cast(UTC_NS),
            "bid": draw.random(500),
            "ask": pa.array([None if x < 0.2 else x for x in draw.random(500)]),
            "size": draw.integers(1, 9, 500),
        }
    )
    (tmp_path / "q").mkdir()
    pq.write_table(rows, tmp_path / "q" / "1.parquet")
    views = [
        fs.FeatureView(
            "quote",
            source=QUOTES,
            entities=[SYMBOL],
            features={"bid": "bid", "mid": "(bid + ask) / 2"},
            nulls="last_known",
            ttl="5s",
        ),
        fs.FeatureView(
            "flow",
            source=QUOTES,
            entities=[SYMBOL],
            aggregations=[fs.Aggregation("size", "sum", "10s"), fs.Aggregation("bid", "std", "60s")],
        ),
        fs.FeatureView("plain", source=QUOTES, entities=[SYMBOL], features=["bid", "ask"]),
    ]
    with fs.FeatureStore(tmp_path) as store:
        store.apply([SYMBOL, QUOTES, *views])
        for view in views:
            store.materialize(view.name)
        yield store


def historical(store: fs.FeatureStore, spine: pa.Table, features: list[str]) -> pa.Table:
    named = spine.rename_columns([*spine.column_names[:-1], "event_timestamp"])
    return store.get_historical_features(named, features, full_feature_names=True).to_arrow()


def test_a_materialized_view_is_served_as_training_sees_it(store: fs.FeatureStore) -> None:
    spine = pa.table({**KEYS, NOW: pa.array([T] * 4).cast(UTC_NS)})
    wanted = historical(store, spine, FEATURES).drop_columns(["event_timestamp"]).to_pydict()
    found = store.get_online_features(FEATURES, KEYS, now=T, full_feature_names=True)
    assert found.to_dict() == wanted
    with store.serve(now=T) as server, OnlineClient(server.address) as client:
        assert client.get_online_features(FEATURES, KEYS, full_feature_names=True).to_dict() == wanted


def test_a_newer_catalog_is_served_without_a_failed_call(store: fs.FeatureStore) -> None:
    with store.serve(now=T, reload_s=0.1) as server, OnlineClient(server.address, retries=0) as client:
        store.apply([fs.FeatureView("later", source=QUOTES, entities=[SYMBOL], features=["size"])])
        until = time.monotonic() + 20
        while True:
            client.get_online_features(["plain"], KEYS)
            try:
                client.get_online_features(["later"], KEYS)
                break
            except NotFoundError:
                assert time.monotonic() < until


def test_logged_answers_are_held_against_history(store: fs.FeatureStore, tmp_path: Path) -> None:
    log = tmp_path / "log"
    server = store.serve(now=T, answer_log=str(log), answer_fraction=1.0)
    with server, OnlineClient(server.address) as client:
        for _ in range(3):
            client.get_online_features(FEATURES, KEYS, full_feature_names=True)
    assert log.stat().st_mode & 0o077 == 0

    def verify() -> OnlineReport:
        return verify_answers(log, lambda spine, features, _: historical(store, spine, list(features)))

    report = verify()
    assert (report.ok, report.rows, report.cells) == (True, 12, 72)
    late = pa.table(
        {
            "symbol": ["A"],
            "event_timestamp": pa.array([T - 1]).cast(UTC_NS),
            "bid": [0.5],
            "ask": [0.25],
            "size": [1],
        }
    )
    pq.write_table(late, tmp_path / "q" / "2.parquet")
    report = verify()
    assert not report.ok
    assert report.different >= 3
    assert {m.entity["symbol"] for m in report.mismatches} == {"A"}
    (log / "answers-0-0.arrow").write_bytes(b"no")
    with pytest.raises(CorruptDataError, match="answers-0-0"):
        verify()
    with pytest.raises(NotFoundError, match="no answer log"):
        verify_answers(tmp_path / "nowhere", lambda spine, *_: spine)
