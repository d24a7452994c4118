"""Run inside Feast's own virtual environment: the same data in its sqlite store, timed, then served by gRPC."""

# ruff: noqa: E501
import json
import socket
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

if __name__ == "__main__":
    import numpy as np
    import pandas as pd
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64, Int64

    names = [f"f{at}" for at in range(50)]
    folder = Path(tempfile.mkdtemp())
    keys = np.arange(1000)
    frame = pd.DataFrame(
        {
            "user_id": keys,
            "event_timestamp": pd.Timestamp.now(tz="UTC"),
            **{n: keys + at / 64 for at, n in enumerate(names)},
        }
    )
    frame.to_parquet(folder / "users.parquet")
    config = RepoConfig(
        project="p",
        registry=str(folder / "registry.db"),
        provider="local",
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    source = FileSource(path=str(folder / "users.parquet"), timestamp_field="event_timestamp")
    schema = [Field(name="user_id", dtype=Int64), *(Field(name=n, dtype=Float64) for n in names)]
    store.apply(
        [user, FeatureView(name="wide", entities=[user], ttl=timedelta(days=7), schema=schema, source=source)]
    )
    store.write_to_online_store("wide", df=frame)
    features = [f"wide:{n}" for n in names]
    out = {}
    for name, asked, count in (("1x50", [5], 100), ("100x50", list(range(100)), 30)):
        taken = []
        for _ in range(count):
            started = time.perf_counter()
            found = store.get_online_features(
                features=features, entity_rows=[{"user_id": k} for k in asked]
            ).to_dict()
            taken.append(time.perf_counter() - started)
            assert found["f7"] == [k + 7 / 64 for k in asked]
        out[name] = {"p50_us": round(float(np.median(taken)) * 1e6, 1)}
    from feast.infra.contrib.grpc_server import get_grpc_server

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    server = get_grpc_server(address, store, 10, 0)
    server.start()
    sys.stdout.write("RESULT " + json.dumps({"in process": out, "address": address}) + "\n")
    sys.stdout.flush()
    server.wait_for_termination()
