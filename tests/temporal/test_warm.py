"""Warming compiles what joins use, and joins do not compile anything else."""

import importlib
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
from tests.temporal.test_parted import newest_of
from tests.temporal.test_scatter import dealt, scattered
from tests.temporal.test_streaming import check_seed
from tests.temporal.test_streaming_merge import check_long_stream

from featurestore.temporal import streaming
from featurestore.temporal.align import AsOf, align
from featurestore.temporal.parted import Part, Taken, group_by_day, keep_known, record_found
from featurestore.temporal.rows import Rows
from featurestore.temporal.streaming_warm import warm_streams
from featurestore.temporal.warm import warm_joins
from featurestore.temporal.windows_warm import warm_windows
from featurestore.testing.strategies import chunked, random_case

MODULES = (
    "key_kernels",
    "order_kernels",
    "asof_kernels",
    "merge_kernels",
    "gather_kernels",
    "parted_kernels",
    "retain_kernels",
    "scatter_kernels",
    "streaming_kernels",
    "streaming_key_kernels",
)


def compiled() -> dict[str, int]:
    """How many forms of each kernel exist in this process."""
    return {
        f"{module}.{name}": len(kernel.signatures)
        for module in MODULES
        for name, kernel in vars(importlib.import_module(f"featurestore.temporal.{module}")).items()
        if hasattr(kernel, "signatures")
    }


def test_a_join_of_any_kind_needs_no_kernel_that_was_not_warmed() -> None:
    after = only_warm_kernels_in("cold_joins")
    assert sum(after.values()) < 90


def test_a_stream_of_any_kind_needs_no_kernel_that_was_not_warmed() -> None:
    only_warm_kernels_in("cold_streams")


def test_a_search_in_parts_needs_no_kernel_that_was_not_warmed() -> None:
    only_warm_kernels_in("cold_parts")


def only_warm_kernels_in(what: str) -> dict[str, int]:
    """Run one of the functions below in a process of its own; return the kernels it ends with."""
    code = f"from tests.temporal import test_warm; test_warm.{what}()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout)
    assert {name: count for name, count in after.items() if count > before[name]} == {}
    return dict(after)


def cold_joins() -> None:
    """Join in a process of its own; print the kernels before and after."""
    warm_joins()
    before = compiled()
    rng = np.random.default_rng(0)
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        for order in (np.arange(3000), rng.permutation(3000)):
            times = pa.array(np.sort(rng.integers(0, 10**6, 3000))[order], pa.timestamp("us", "UTC"))
            keys = pa.array([f"name of key {k}" for k in rng.integers(0, 9, 3000)], pa.string()).cast(kind)
            values = pa.array(rng.random(3000), mask=rng.random(3000) < 0.3)
            table = pa.table({"ts": times, "k": keys, "v": values, "n": pa.array(order, pa.int16())})
            streams = {
                direction: AsOf(table, direction=direction, prefix=direction, tolerance="1ms")
                for direction in ("backward", "forward", "nearest")
            }
            streams["late"] = AsOf(table, created_on="ts", columns=["v"], prefix="late")
            streams["last"] = AsOf(table, nulls="last_known", columns=["v"], prefix="last")
            streams["all"] = AsOf(table, by=(), columns=["v"], prefix="all")
            align(table, streams, on="ts", by="k")
    sys.stdout.write(json.dumps([before, compiled()]))


def cold_parts() -> None:
    """Search parts and write what was found in a process of its own; print the kernels before and after."""
    warm_joins()
    before = compiled()
    for seed in range(9):
        case = random_case(seed)
        newest_of(case, [100, 200], case.tolerance_ns)
    for nulls in (None, np.arange(700) % 3 == 0):
        for kind in (pa.int8(), pa.float16(), pa.int32(), pa.float64(), pa.string(), pa.string_view()):
            source = chunked(pa.array(np.arange(700) % 100, mask=nulls).cast(pa.int8()).cast(kind), [])
            scattered([source], dealt(0, 1000, 1), 1000, 2)
    everyone = Rows(np.zeros(9, np.int32), np.arange(9))
    order, _ = group_by_day(everyone.event_ns, lambda lo, hi: everyone.codes[lo:hi], 1, np.zeros(2, np.int32))
    known = keep_known(everyone, order, np.ones(2, np.bool_))
    part = Part(everyone.event_ns, None, np.array([0, 9]), np.zeros(1, np.int32), 8)
    record_found(Taken(known, np.arange(9), known), part, np.full(9, -1, np.int32), np.zeros(9, np.int64))
    sys.stdout.write(json.dumps([before, compiled()]))


def cold_streams() -> None:
    """Run streams in a process of its own; print the kernels before and after."""
    warm_joins()
    warm_windows()
    warm_streams()
    before = compiled()
    streaming._PRUNE_ROWS = 100
    for seed in range(3):
        check_long_stream(seed)
    for seed in range(30):
        check_seed(seed, restore=0.3)
    sys.stdout.write(json.dumps([before, compiled()]))
