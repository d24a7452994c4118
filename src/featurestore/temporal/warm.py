"""Compiling every kernel ahead of its first use."""

from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.core.keys import buckets_of
from featurestore.temporal.asof import asof_indices, last_known_indices
from featurestore.temporal.gather import gather
from featurestore.temporal.jit import lazy_module
from featurestore.temporal.keys import code_keys
from featurestore.temporal.parted import (
    Part,
    group_by_day,
    group_rows,
    keep_known,
    record_found,
    take_newest,
    within_tolerance,
)
from featurestore.temporal.rows import DIRECTIONS, Rows
from featurestore.temporal.scatter import Scattered

_streams: Any = lazy_module("featurestore.temporal.streaming_warm")
_windows: Any = lazy_module("featurestore.temporal.windows_warm")

# Enough rows for the compiled gather, which leaves fewer to Arrow.
_ROWS = 1024


def warm_kernels() -> None:
    """Compile every kernel, or read it from numba's cache on disk.

    Cost: some seconds the first time on a machine; after that a fraction of one per process. The cache lies
    beside the package, or in `NUMBA_CACHE_DIR`, or in the user's cache folder where neither can be written.
    """
    warm_joins()
    _windows.warm_windows()
    _streams.warm_streams()


def warm_joins() -> None:
    """Compile the kernels of keys, joins, gathers, and of rows that lie in parts."""
    places = np.arange(_ROWS)
    text = pa.array([f"k{place}" for place in range(_ROWS)])
    wide = pa.array(places * 2**40)
    columns = [
        text,
        text.cast(pa.large_string()),
        text.dictionary_encode(),
        wide,
        pa.array(places),
        pa.array(places * 8),
        pa.array(places, pa.int32()),
        pa.array(places * 8, pa.int32()),
        pa.DictionaryArray.from_arrays(pa.array(places, pa.int32()), text.take(pa.array(places[::-1]))),
    ]
    for column in columns:
        code_keys([[column], [column]], ["key"])
    buckets_of([wide], 3)
    buckets_of([text], 3)
    code_keys([[text], [text.take(pa.array(places[::-1]))]], ["key"])
    code_keys([[text, wide], [text, wide]], ["one", "other"])
    code_keys([[wide, wide], [wide, wide]], ["one", "other"])
    _warm_search(places)
    for width in (8, 16, 32, 64):
        values = pa.array(places % 100, getattr(pa, f"int{width}")())
        gather(values, places)
        gather(pa.array([None, *values.to_pylist()], values.type), places)
    gather(text.cast(pa.string_view()), places)
    _warm_parts(places)


def _warm_search(places: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> None:
    codes = (places % 3).astype(np.int32)
    ordered, one = Rows(codes, places), Rows(np.zeros(_ROWS, np.int32), places)
    tangled = Rows(codes, places[::-1].copy(), places[::-1].copy(), places % 2)
    grouped = Rows(np.sort(codes), places % (_ROWS // 3), places)
    valid = [places % 2 == 0, None]
    rule: dict[str, Any] = {"tolerance_ns": 1, "boundary": "inclusive"}
    for direction in DIRECTIONS:
        asof_indices(ordered, ordered, entities=3, direction=direction, **rule)
        # More entities than two states of the cache take: the one-stretch merge.
        asof_indices(ordered, ordered, entities=1 << 17, direction=direction, **rule)
        asof_indices(one, one, entities=1, direction=direction, **rule)
        asof_indices(ordered, tangled, entities=3, direction=direction, **rule)
        asof_indices(grouped, grouped, entities=3, direction=direction, **rule)
    # Every second time goes back: a spine without order.
    swapped = Rows(np.zeros(8 * _ROWS, np.int32), np.arange(8 * _ROWS) ^ 1)
    asof_indices(swapped, tangled, entities=3, direction="backward", **rule)
    last_known_indices(tangled, ordered, valid, entities=3, **rule)


def _warm_parts(places: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> None:
    codes, entities = np.arange(3, dtype=np.int32), 3
    rows = Rows((places % entities).astype(np.int32), places, places)
    parted = group_rows(rows, entities=entities).parted(np.arange(entities))
    order = parted.positions
    event_ns = places if order is None else places[order]
    everyone = group_by_day(places, lambda lo, hi: rows.codes[lo:hi], entities, np.zeros(1, np.int32))[0]
    known = keep_known(rows, everyone, np.ones(entities + 1, np.bool_))
    slots, newest = np.full(entities, -1, np.int32), np.full(_ROWS, -1, np.int32)
    part = Part(event_ns, event_ns, parted.offsets, codes, int(event_ns.max()))
    taken = take_newest(rows, known, part, slots, look_back_ns=_ROWS)
    record_found(taken, part, newest, np.empty(_ROWS, np.int64))
    within_tolerance(rows, rows, newest, _ROWS)
    for width in (8, 16, 32, 64):
        column = Scattered(getattr(pa, f"int{width}")(), _ROWS)
        column.put(pa.array(places % 100, getattr(pa, f"int{width}")()), taken.rows, taken.readers)
