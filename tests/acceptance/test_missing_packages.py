"""What needs an optional package says which, and the pip line, where it is not installed."""

import subprocess
import sys
from pathlib import Path

SETUP = """
import pyarrow as pa
import pyarrow.parquet as pq
import featurestore as fs

when = pa.array([1], pa.timestamp("ns", "UTC"))
pq.write_table(pa.table({"user": ["a"], "event_timestamp": when, "x": [1]}), "events.parquet")
user = fs.Entity("user")
events = fs.Source("events", path="events.parquet", entities=[user])
last = fs.FeatureView("last", source=events, entities=[user], features=["x"])
store = fs.FeatureStore(".")
store.apply([last])
store.materialize("last")
dataset = store.dataset("last")
spine = pa.table({"user": ["a"], "event_timestamp": when})
"""


CASES = [
    ("torch", "dataset.torch(batch_size=1)", "pip install 'featurestore[torch]'"),
    ("jax", "dataset.jax(batch_size=1)", "pip install 'featurestore[jax]'"),
    ("ray", "dataset.recreate('ray')", "pip install 'featurestore[ray]'"),
    ("grpc", "store.serve()", "pip install 'featurestore[serve]'"),
    ("pandas", "store.get_historical_features(spine, 'last').to_pandas()", "pip install pandas"),
    ("s3fs", "fs.FeatureStore('s3://bucket/root').catalog", "pip install 'featurestore[s3]'"),
    ("gcsfs", "fs.FeatureStore('gs://bucket/root').catalog", "gcsfs"),
    (
        "redis",
        "fs.FeatureStore('.', {'online': {'store': 'redis', 'url': 'redis://localhost'}}).online",
        "pip install 'featurestore[redis]'",
    ),
]


def test_a_missing_package_is_named_with_its_pip_line(tmp_path: Path) -> None:
    # One process for all of them: most of its time goes into imports and the first materialization.
    code = f"""{SETUP}
import sys
for package, call, line in {CASES!r}:
    sys.modules[package] = None
    try:
        eval(call)
    except fs.MissingDependencyError as error:
        assert line in str(error), (package, str(error))
    else:
        raise AssertionError(package)
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
