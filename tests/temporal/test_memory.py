"""The memory a join and windows take beside their inputs and answers, measured in a process of their own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from featurestore.temporal.join import asof_join
from featurestore.temporal.rows import Rows
from featurestore.temporal.windows import Window, window_aggregate

READERS = 3_000_000
DAY_NS = 86_400_000_000_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
@pytest.mark.parametrize(
    ("what", "order", "most"),
    [
        pytest.param("join", "time", 16, id="a join in time order"),
        pytest.param("join", "none", 16, id="a join of rows in no order, which are sorted"),
        pytest.param("windows", "time", 16, id="windows in time order"),
        pytest.param("windows", "none", 16, id="windows of rows in no order"),
    ],
)
def test_few_bytes_per_reader_are_held_beside_inputs_and_answers(what: str, order: str, most: int) -> None:
    code = f"from tests.temporal.test_memory import measure; print(measure({what!r}, {order!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= most


def measure(what: str, order: str) -> float:
    """Return the bytes per reader that one call held at its peak beside inputs and answers."""
    sides = [side(count, order) for count in (READERS, READERS // 2)]
    call = {"join": join, "windows": windows}[what]
    for table in sides:
        call(table.slice(0, 70_000), table.slice(0, 70_000))  # compiled code and threads stay
    pa.default_memory_pool().release_unused()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    answer = call(*sides)
    return (resident("VmHWM") - before - answer) / READERS


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def side(count: int, order: str) -> pa.Table:
    rng = np.random.default_rng(count)
    times = rng.integers(0, DAY_NS, count)
    if order == "time":
        times.sort()
    codes = rng.integers(0, 1_000, count).astype(np.int32)
    return pa.table({"t": times, "k": codes, "v": rng.random(count)})


def join(left: pa.Table, right: pa.Table) -> int:
    """Return the bytes of the joined column."""
    return int(asof_join(left.select(["t", "k"]), right, on="t", by="k")["v"].nbytes)


def windows(left: pa.Table, right: pa.Table) -> int:
    """Return the bytes of six functions over three windows."""
    spine, rows = (Rows(t["k"].to_numpy(), t["t"].to_numpy()) for t in (left, right))
    asked = [
        Window("v", function, minutes * 60_000_000_000, name=f"{function} {minutes}")
        for function in ("count", "sum", "mean", "min", "max", "std")
        for minutes in (1, 10, 60)
    ]
    out = window_aggregate(spine, rows, {"v": right["v"]}, asked, entities=1_000)
    return sum(column.nbytes for column in out.values())
