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

WITHOUT_PANDAS = """
import importlib.machinery, sys

class Hiding(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "pandas" else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Hiding
"""

SHOWN = """
import pathlib
import numpy as np
from featurestore.cli.front import run
from featurestore.serve.feast_service import json_answer

answer = store.get_online_features("last", [{"user": "a"}])
assert answer.to_dict()["seen"] == [np.datetime64(1, "ns")]
assert json_answer(answer, ["user"])["results"][2]["values"] == ["1970-01-01T00:00:00.000000001Z"]
store.close()
pathlib.Path("feature_store.yaml").write_text("project: p")
pq.write_table(spine, "spine.parquet")
assert run(["get-historical", "last", "--spine", "spine.parquet", "--json"]) == 0
assert run(["sql", "select event_timestamp from last", "--json"]) == 0
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


def test_times_are_shown_to_the_nanosecond_where_pandas_is_not_installed(tmp_path: Path) -> None:
    # Arrow alone cannot make Python values of such times: it asks for pandas, which is no dependency.
    setup = SETUP.replace('"x": [1]', '"x": [1], "seen": when').replace('["x"]', '["x", "seen"]')
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PANDAS + setup + SHOWN],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.count('"1970-01-01T00:00:00.000000001Z"') == 3
