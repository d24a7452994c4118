"""Which left rows of a stream can no longer change their answer (PIT-7)."""

import numpy as np

from featurestore.core.time import INT64_MAX, BoolArray, Int64Array
from featurestore.temporal.rows import Int32Array


def sealed_reach(
    codes: Int32Array,
    event_ns: Int64Array,
    found: Int32Array,
    right_event_ns: Int64Array,
    tolerance_ns: int | None,
    bound_ns: int,
) -> BoolArray:
    """Return which rows a later right row cannot reach: forward and nearest joins.

    A row's reach ends at the distance of the match it has, or else at the tolerance; a row that has neither
    waits for the end of the stream.

    Args:
        found: `(n,)` positions in `right_event_ns` of the present answers, -1 for none.
    """
    matched = found >= 0
    limit = INT64_MAX if tolerance_ns is None else tolerance_ns
    reach = np.full(len(codes), limit, np.int64)
    if len(right_event_ns):
        other = right_event_ns[np.where(matched, found, 0)]
        # A distance beyond int64 wraps below 0: such a match is as far as can be.
        distance = np.maximum(event_ns, other) - np.minimum(event_ns, other)
        reach = np.where(matched & (distance >= 0), distance, reach)
    ends = np.where(
        event_ns > INT64_MAX - reach, np.int64(INT64_MAX), event_ns + np.minimum(reach, INT64_MAX)
    )
    sealed: BoolArray = (codes < 0) | ((event_ns < bound_ns) & (ends < bound_ns) & (ends < INT64_MAX))
    return sealed


def prefix_length(sealed: BoolArray) -> int:
    """Return how many rows come before the first that is not sealed."""
    return len(sealed) if sealed.all() else int(np.argmin(sealed))
