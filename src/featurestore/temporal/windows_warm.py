"""Compiles the window kernels in advance, so that no first call pays for it."""

import numpy as np
import pyarrow as pa

from featurestore.core.time import BoolArray
from featurestore.temporal.retain import retained_indices
from featurestore.temporal.rows import Rows
from featurestore.temporal.windows import FUNCTIONS, Window, window_aggregate


def warm_windows() -> None:
    """Run every window and retention kernel once on a few rows, in each form it is called with."""
    times = np.arange(4, dtype=np.int64)
    codes = np.array([0, 1, 0, 1], np.int32)
    plain = Rows(codes, times)
    late = Rows(codes, times, times[::-1] + 3, times)
    columns = {
        "wide": pa.array([1e300, 1e-300, float("inf"), None]),
        "real": pa.array([1.0, 2.0, None, 4.0]),
        "whole": pa.array([1, 2, 3, 4]),
    }
    windows = [
        Window(name, function, 3, 0, 2 if function == "last_n" else None, f"{name}_{function}")
        for name in columns
        for function in FUNCTIONS
    ]
    for rows in (plain, late, Rows(np.sort(codes), times)):
        window_aggregate(plain, rows, columns, windows, entities=2)
    back = Rows(codes, times, times[::-1].copy())
    for rows in (plain, late):
        window_aggregate(back, rows, columns, windows, entities=2)
    mask: BoolArray = np.array([True, False, True, True])
    for rows in (plain, late):
        retained_indices(rows, entities=2, at_ns=2, ttl_ns=None, newest=True, last_known=[mask], window_ns=1)
