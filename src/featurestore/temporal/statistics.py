"""What a join matched: counts and ages per stream."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from featurestore.core.time import BoolArray
from featurestore.temporal.rows import Int32Array, Rows

QUANTILES: Final = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, slots=True)
class JoinStatistics:
    """What happened to the spine's rows in one stream; the four counts add up to `rows`.

    Attributes:
        rows: rows of the spine.
        matched: took a row.
        expired: had a visible row, but only outside the tolerance.
        no_key: their key or time is null, or the stream holds no row of that key.
        not_visible: the stream holds rows of that key, but none in reach of direction and knowledge.
        age_ns: distance of the matched rows in ns: min, p50, p90, p99, max (the value at that rank, no
            interpolation); empty where nothing matched.
    """

    rows: int
    matched: int
    expired: int
    no_key: int
    not_visible: int
    age_ns: dict[str, int]

    @property
    def match_rate(self) -> float:
        """The share of the spine's rows that matched; 0 for an empty spine."""
        return self.matched / self.rows if self.rows else 0.0


def distances_ns(spine: Rows, rows: Rows, indices: Int32Array) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """How far, in ns, each spine row is from the row it points at; 0 where it points at none.

    uint64 holds every distance between two int64 times, so nothing wraps.
    """
    found = indices >= 0
    now = spine.event_ns[found].view(np.uint64)
    then = rows.event_ns[indices[found]].view(np.uint64)
    out = np.zeros(len(indices), np.uint64)
    is_later = spine.event_ns[found] >= rows.event_ns[indices[found]]
    out[found] = np.where(is_later, now - then, then - now)
    return out


def within(distances: np.ndarray[tuple[int], np.dtype[np.uint64]], tolerance_ns: int | None) -> BoolArray:
    """Which distances are within the tolerance, bound included."""
    if tolerance_ns is None:
        return np.ones(len(distances), np.bool_)
    return distances <= np.uint64(tolerance_ns)


def join_statistics(
    spine: Rows, rows: Rows, indices: Int32Array, *, entities: int, tolerance_ns: int | None
) -> JoinStatistics:
    """Count what became of the spine's rows.

    Args:
        indices: `(n,)` what a join without tolerance chose.
    """
    distance = distances_ns(spine, rows, indices)
    in_reach = (indices >= 0) & within(distance, tolerance_ns)
    known = np.zeros(entities + 1, np.bool_)
    known[rows.codes[rows.codes >= 0]] = True
    has_key = known[spine.codes]  # code -1 reads the last entry, which stays False
    matched, expired = int(in_reach.sum()), int((indices >= 0).sum() - in_reach.sum())
    keyed = int(has_key.sum())
    return JoinStatistics(
        rows=len(indices),
        matched=matched,
        expired=expired,
        no_key=len(indices) - keyed,
        not_visible=keyed - matched - expired,
        age_ns=_quantiles(distance[in_reach]),
    )


def _quantiles(values: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> dict[str, int]:
    if len(values) == 0:
        return {}
    ranks = {name: int(share * (len(values) - 1)) for name, share in QUANTILES.items()}
    placed = np.partition(values, sorted(set(ranks.values())))
    return {name: int(placed[rank]) for name, rank in ranks.items()}
