# mypy: ignore-errors
"""Run inside a virtual environment that holds the real feast: asks our server with its own clients."""

# ruff: noqa: ANN201, ANN001
import json
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import grpc
import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.protos.feast.serving import (
    GrpcServer_pb2,
    GrpcServer_pb2_grpc,
    ServingService_pb2,
    ServingService_pb2_grpc,
)
from feast.protos.feast.types import Value_pb2
from feast.types import Float64, Int32, String

address, http_address = sys.argv[1:3]
out = {}
channel = grpc.insecure_channel(address)


def request():
    entities = {
        "symbol": Value_pb2.RepeatedValue(val=[Value_pb2.Value(string_val=s) for s in ("IBM", "AIG", "none")])
    }
    return ServingService_pb2.GetOnlineFeaturesRequest(
        features=ServingService_pb2.FeatureList(val=["quote:bid", "quote:venue", "quote:size", "quote:mid"]),
        entities=entities,
    )


def plain(response):
    names = list(response.metadata.feature_names.val)
    columns = {}
    for name, vector in zip(names, response.results, strict=True):
        cells = [getattr(v, v.WhichOneof("val")) if v.WhichOneof("val") else None for v in vector.values]
        columns[name] = {
            "values": cells,
            "statuses": list(vector.statuses),
            "nanos": [t.seconds * 10**9 + t.nanos for t in vector.event_timestamps],
        }
    return columns


serving = ServingService_pb2_grpc.ServingServiceStub(channel)
out["info"] = serving.GetFeastServingInfo(ServingService_pb2.GetFeastServingInfoRequest()).version
out["serving"] = plain(serving.GetOnlineFeatures(request()))
server = GrpcServer_pb2_grpc.GrpcFeatureServerStub(channel)
out["listen"] = plain(server.GetOnlineFeatures(request()))
pushed = GrpcServer_pb2.PushRequest(
    features={"symbol": "PUSHED", "ts": "1970-01-01T00:00:00.000000999Z", "bid": "4.5"},
    stream_feature_view="quotes",
    to="online",
)
out["push"] = server.Push(pushed).status
again = request()
again.entities["symbol"].val[0].string_val = "PUSHED"
out["pushed"] = plain(server.GetOnlineFeatures(again))["bid"]["values"][0]

folder = Path(tempfile.mkdtemp())
pd.DataFrame(
    {"symbol": ["A"], "event_timestamp": [pd.Timestamp("2024-01-01", tz="UTC")], "bid": [1.0]}
).to_parquet(folder / "q.parquet")
store = FeatureStore(
    config=RepoConfig(
        project="p",
        registry=str(folder / "registry.db"),
        provider="local",
        online_store={"type": "remote", "path": f"http://{http_address}"},
        entity_key_serialization_version=3,
    )
)
symbol = Entity(name="symbol", join_keys=["symbol"], value_type=ValueType.STRING)
source = FileSource(path=str(folder / "q.parquet"), timestamp_field="event_timestamp")
view = FeatureView(
    name="quote",
    entities=[symbol],
    ttl=timedelta(days=1),
    schema=[
        Field(name="symbol", dtype=String),
        Field(name="bid", dtype=Float64),
        Field(name="venue", dtype=String),
        Field(name="size", dtype=Int32),
    ],
    source=source,
)
store.apply([symbol, view])
found = store.get_online_features(
    features=["quote:bid", "quote:venue", "quote:size"], entity_rows=[{"symbol": "IBM"}, {"symbol": "none"}]
)
out["remote"] = found.to_dict()
frame = pd.DataFrame(
    {
        "symbol": ["W"],
        "event_timestamp": [pd.Timestamp(0, tz="UTC")],
        "created": [pd.Timestamp(0, tz="UTC")],
        "bid": [9.5],
        "venue": ["Z"],
        "size": [3],
    }
)
store.write_to_online_store("quote", df=frame)
sys.stdout.write("RESULT " + json.dumps(out, default=str) + "\n")
