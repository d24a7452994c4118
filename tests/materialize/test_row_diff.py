"""The rows that two versions do not share, against a count of every row."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from featurestore.materialize import row_diff
from featurestore.materialize.row_diff import partition_diff


def random_rows(rng: np.random.Generator, count: int) -> pa.Table:
    """Return rows with duplicates, null keys and every value that is hard to compare."""
    reals = rng.choice([0.5, float("nan"), float("inf"), 2.0], count)
    return pa.table(
        {
            "key": pa.array([("a", "b", None)[k] for k in rng.integers(0, 3, count)], pa.string()),
            "event_timestamp": pa.array(rng.integers(0, 4, count), pa.timestamp("ns", "UTC")),
            "real": pa.array(reals, mask=rng.random(count) < 0.3),
            "half": pa.array(rng.integers(0, 2, count).astype(np.float16)),
            "took": pa.array(rng.integers(0, 2, count), pa.duration("ns")),
            "list": pa.array(
                [([1.0, None], [], None)[k] for k in rng.integers(0, 3, count)], pa.list_(pa.float64())
            ),
            "part": pa.array(
                [({"x": 1}, {"x": None}, None)[k] for k in rng.integers(0, 3, count)],
                pa.struct({"x": pa.int64()}),
            ),
        }
    )


def counted(old: pa.Table, new: pa.Table, identity: list[str]) -> tuple[int, int, int]:
    """Compare two bags of rows, row by row; equal floats have equal texts."""
    before, after = (Counter(str(row) for row in side.to_pylist()) for side in (old, new))
    gone, come = before - after, after - before
    names = [Counter[str](), Counter[str]()]
    for left, side, found in ((gone, old, names[0]), (come, new, names[1])):
        rest = left.copy()
        for row in side.to_pylist():
            if rest[str(row)] > 0:
                rest[str(row)] -= 1
                found[str([row[name] for name in identity])] += 1
    changed = (names[0] & names[1]).total() if identity else 0
    return come.total() - changed, gone.total() - changed, changed


@pytest.mark.parametrize("identity", [["key", "event_timestamp"], ["event_timestamp"], []])
def test_rows_count_as_often_as_they_are_there(identity: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_diff, "_BLOCK_ROWS", 5)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        old = random_rows(rng, int(rng.integers(0, 40)))
        kept = np.sort(rng.choice(len(old), len(old) * 3 // 4, replace=False))
        new = pa.concat_tables([old.take(pa.array(kept)), random_rows(rng, int(rng.integers(0, 9)))])
        if seed % 2:
            new = new.take(pa.array(rng.permutation(len(new))))
        assert partition_diff(old, new, identity) == counted(old, new, identity)
        assert partition_diff(new, new.slice(0), identity) == (0, 0, 0)


def test_a_column_of_another_type_is_compared_by_value() -> None:
    old = pa.table({"key": pa.array([1, 2, 3], pa.int32()), "x": pa.array([1, 2, 3], pa.int64())})
    new = pa.table({"key": pa.array([1, 2, 3], pa.int32()), "x": pa.array([1.0, 2.5, 3.0])})
    assert partition_diff(old, new, ["key"]) == (0, 0, 1)
    wider = new.set_column(0, "key", pa.array([1, 2, 4], pa.int64()))
    assert partition_diff(old, wider, ["key"]) == (1, 1, 1)
