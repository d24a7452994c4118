"""Small packed datasets for the loaders' tests."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.loaders.batch import Batch
from featurestore.testing.packed_dataset import write_dataset

SECOND = 1_000_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
START = 1_380_585_600 * SECOND  # 2013-10-01T00:00:00Z
FEATURES = ["a", "b", "i", "f", "s", "u", "e", "tt", "row", "wt"]


def make_table(rows: int, *, days: float = 5, seed: int = 0, nulls: float = 0.1) -> pa.Table:
    """Rows of every kind of column; `row` is the row's own number in time order."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(0, int(days * DAY), rows)) + START

    def holes(values: npt.NDArray[Any]) -> pa.Array:
        return pa.array(values, mask=rng.random(rows) < nulls)

    embedding = pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=rows * 4).astype(np.float32)), 4)
    return pa.table(
        {
            "symbol": pa.array(rng.choice(["AIG", "IBM", "XOM", "Ω"], rows)),
            "ts": pa.array(times, pa.timestamp("ns", "UTC")),
            "a": holes(rng.normal(size=rows)),
            "b": rng.normal(size=rows).astype(np.float32),
            "i": holes(rng.integers(-9, 9, rows)),
            "f": rng.random(rows) < 0.5,
            "s": holes(rng.choice(["x", "y", "é"], rows)),
            "u": holes(rng.integers(0, 60_000, rows).astype(np.uint16)),
            "e": embedding,
            "tt": pa.array(times // 1000, pa.timestamp("us", "UTC")),
            "row": np.arange(rows),
            "wt": rng.random(rows),
            "y": pa.array(rng.normal(size=rows), mask=np.arange(rows) >= rows - rows // 100),
        }
    )


def make_dataset(folder: Path, rows: int = 3000, **kwargs: Any) -> tuple[Path, pa.Table]:
    """Write the rows as a version; the label reaches 5 minutes ahead, feature `a` looks an hour back."""
    options = {
        name: kwargs.pop(name)
        for name in ("buckets", "labels", "horizons_ns", "windows_ns")
        if name in kwargs
    }
    table = make_table(rows, **kwargs)
    settings: dict[str, Any] = {
        "entity_keys": ["symbol"],
        "timestamp": "ts",
        "features": FEATURES,
        "labels": ["y"],
        "horizons_ns": {"y": 300 * SECOND},
        "windows_ns": {"a": HOUR, "b": None},
        "buckets": 2,
    }
    settings.update({str(name): value for name, value in options.items()})
    return write_dataset(folder, table, **settings), table


def leaves(batch: Batch) -> dict[str, npt.NDArray[Any]]:
    """All arrays of a batch, on the host, by dotted name."""
    out: dict[str, npt.NDArray[Any]] = {}
    for name, value in batch.items():
        if hasattr(value, "items"):
            out |= {f"{name}.{key}": np.asarray(item) for key, item in value.items()}
        else:
            out[name] = np.asarray(value)
    return out


def assert_same(one: Batch, other: Batch) -> None:
    """Same arrays, types and bits."""
    left, right = leaves(one), leaves(other)
    assert left.keys() == right.keys()
    for name, values in left.items():
        assert values.dtype == right[name].dtype, name
        assert values.shape == right[name].shape, name
        assert values.tobytes() == right[name].tobytes(), name
