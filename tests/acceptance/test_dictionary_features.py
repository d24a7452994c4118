"""Columns of few different values, as Parquet files hold them: dictionaries, on every path."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featurestore as fs
from featurestore.serve.grpc_client import OnlineClient


@pytest.mark.parametrize(
    "features", [["mode", "past"], {"mode": "mode", "past": "past"}], ids=["names", "mapping"]
)
def test_dictionaries_come_over_grpc_as_they_are_read_in_process_and_are_logged(
    tmp_path: Path, features: object
) -> None:
    kind = pa.dictionary(pa.int8(), pa.string())
    rows = pa.table(
        {
            "machine": ["M1", "M2", "M1"],
            "event_timestamp": pa.array([1_000, 2_000, 3_000], pa.timestamp("ns", "UTC")),
            "mode": pa.array(["idle", None, "full"], kind),
            "past": pa.array([["idle"], [], ["ramp", None, "full"]], pa.list_(kind)),
        }
    )
    pq.write_table(rows, tmp_path / "readings.parquet")
    machine = fs.Entity("machine")
    source = fs.Source("readings", path="readings.parquet", entities=[machine])
    state = fs.FeatureView("state", source=source, entities=[machine], features=features)  # type: ignore[arg-type] # one of two kinds
    store = fs.FeatureStore(tmp_path)
    store.apply([state])
    store.materialize("state")
    asked = {"machine": ["M2", "M1", "none"]}
    wanted = store.get_online_features(["state"], asked, now=3_000)
    assert wanted.to_dict()["mode"] == [None, "full", None]
    assert wanted.to_dict()["past"] == [[], ["ramp", None, "full"], None]
    log = tmp_path / "answers"
    options = {"now": 3_000, "answer_log": log, "answer_fraction": 1.0}
    with store.serve(**options) as server, OnlineClient(server.address) as client:
        for arrow in (False, True):
            answer = client.get_online_features(["state"], asked, arrow=arrow)
            assert answer.to_arrow().equals(wanted.to_arrow())
            assert answer.to_dict() == wanted.to_dict()
        client.get_online_features(["state"], {"machine": ["M1"]})  # a dictionary of other values
    report = store.verify_online(log)
    assert report.ok
    assert report.cells == 7 * 2
    store.close()
