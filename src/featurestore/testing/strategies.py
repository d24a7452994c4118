"""Hypothesis strategies for point-in-time data that is as awkward as real data: ties, nulls, extremes."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from featurestore.core.time import INT64_MAX, INT64_MIN
from featurestore.temporal.rows import BOUNDARIES, DIRECTIONS, Rows

_NEAR: Final = 6


@dataclass(frozen=True, slots=True)
class JoinCase:
    """One generated as-of join on arrays.

    Attributes:
        spine: the reading side.
        rows: the side that is read.
        entities: codes are below this.
        direction: backward, forward or nearest.
        boundary: inclusive or exclusive.
        tolerance_ns: greatest distance or `None`.
        valid: which rows have a value.
    """

    spine: Rows
    rows: Rows
    entities: int
    direction: str
    boundary: str
    tolerance_ns: int | None
    valid: tuple[bool, ...]


# Few distinct times, so that ties and ±1 ns are common; now and then the ends of int64.
_EXTREMES: Final = (INT64_MIN, INT64_MIN + 1, -1, INT64_MAX - 1, INT64_MAX)
_times = st.one_of(st.integers(0, _NEAR), st.integers(0, _NEAR), st.sampled_from(_EXTREMES))
_known = st.one_of(_times, st.just(INT64_MAX))


@st.composite
def sides(draw: st.DrawFn, *, entities: int, most: int) -> Rows:
    """Draw one side of up to `most` rows, sorted or not, with or without known times and sequence."""
    count = draw(st.integers(0, most))

    def column(values: st.SearchStrategy[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.array(draw(st.lists(values, min_size=count, max_size=count)), np.int64)

    codes = column(st.integers(-1, entities - 1)).astype(np.int32)
    event = column(_times)
    known = column(_known) if draw(st.booleans()) else None
    sequence = column(st.integers(0, 2)) if draw(st.booleans()) else None
    order = draw(st.sampled_from(["any", "time", "entity"]))
    if order == "time":
        event = np.sort(event)
    if order == "entity":
        codes = np.sort(codes)
    return Rows(codes, event, known, sequence)


@st.composite
def join_cases(draw: st.DrawFn, *, most_spine: int = 8, most_rows: int = 14) -> JoinCase:
    """Draw a whole as-of join; small ones, which shrink to a readable counter-example."""
    entities = draw(st.integers(1, 3))
    rows = draw(sides(entities=entities, most=most_rows))
    valid = draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    return JoinCase(
        spine=draw(sides(entities=entities, most=most_spine)),
        rows=rows,
        entities=entities,
        direction=draw(st.sampled_from(DIRECTIONS)),
        boundary=draw(st.sampled_from(BOUNDARIES)),
        tolerance_ns=draw(st.one_of(st.none(), st.integers(0, _NEAR), st.just(INT64_MAX))),
        valid=tuple(valid),
    )


def random_case(seed: int, *, most_spine: int = 24, most_rows: int = 60) -> JoinCase:
    """Build a larger case from a seed: some hundred times faster than drawing it, but it does not shrink."""
    rng = np.random.default_rng(seed)
    entities = int(rng.integers(1, 6))
    span = int(rng.choice([3, 20, 400]))
    spine = _random_side(rng, int(rng.integers(0, most_spine + 1)), entities, span)
    rows = _random_side(rng, int(rng.integers(0, most_rows + 1)), entities, span)
    return JoinCase(
        spine=spine,
        rows=rows,
        entities=entities,
        direction=str(rng.choice(DIRECTIONS)),
        boundary=str(rng.choice(BOUNDARIES)),
        tolerance_ns=None if rng.random() < 0.4 else int(rng.integers(0, span)),
        valid=tuple((rng.random(len(rows)) < rng.choice([0.1, 0.6, 1.0])).tolist()),
    )


def _random_side(rng: np.random.Generator, count: int, entities: int, span: int) -> Rows:
    codes = rng.integers(-1 if rng.random() < 0.5 else 0, entities, count).astype(np.int32)
    event = rng.integers(0, span, count)
    if count and rng.random() < 0.1:
        event[rng.integers(count)] = rng.choice([INT64_MIN, INT64_MAX])
    order = rng.random()
    if order < 0.5:
        event = np.sort(event)
    elif order < 0.7:
        codes = np.sort(codes)
    elif order < 0.8:
        by = np.lexsort((event, codes))
        codes, event = codes[by], event[by]
    known = None
    if rng.random() < 0.4:
        known = event + rng.integers(-2, span, count) if event.size and event.max() < span else event.copy()
        known[rng.random(count) < 0.1] = INT64_MAX
    sequence = rng.integers(0, 3, count) if rng.random() < 0.3 else None
    return Rows(codes, event, known, sequence)


def chunked(array: pa.Array, cuts: list[int]) -> pa.ChunkedArray:
    """Cut an array into chunks, empty ones included; every chunk is a slice with an offset."""
    edges = [0, *sorted(min(max(cut, 0), len(array)) for cut in cuts), len(array)]
    pieces = [array.slice(a, b - a) for a, b in pairwise(edges)]
    return pa.chunked_array(pieces, array.type)
