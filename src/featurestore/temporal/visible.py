"""The visibility rule (PIT-1) for readers that share one instant: what an online read asks of stored rows.

The kernels decide the same for spines of many instants; a property test holds the two together.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featurestore.core.time import INT64_MAX, INT64_MIN, BoolArray, Int64Array
from featurestore.temporal.times import add_saturating


def is_visible(event_ns: int, known_ns: int, now_ns: int) -> bool:
    """Whether a row can be seen at `now_ns`: it has happened and could be known."""
    return event_ns <= now_ns and known_ns <= now_ns


def is_fresh(event_ns: int, now_ns: int, ttl_ns: int | None) -> bool:
    """Whether a visible row's age is within the ttl, bound included."""
    return ttl_ns is None or now_ns - event_ns <= ttl_ns


def visible_rows(event_ns: Int64Array, known_ns: Int64Array, now_ns: int) -> BoolArray:
    """Return which rows can be seen at `now_ns`; `(n,)`."""
    return (event_ns <= now_ns) & (known_ns <= now_ns)


def fresh_rows(event_ns: Int64Array, now_ns: int, ttl_ns: int | None) -> BoolArray:
    """Return which visible rows are within the ttl, bound included; `(n,)`."""
    if ttl_ns is None:
        return np.ones(event_ns.size, np.bool_)
    return event_ns >= max(now_ns - ttl_ns, INT64_MIN)


def newest_and_later(
    codes: npt.NDArray[np.int32], event_ns: Int64Array, known_ns: Int64Array, at_ns: int, *, entities: int
) -> BoolArray:
    """Return, per entity, its newest row visible at `at_ns` and every row that may yet replace it; `(n,)`.

    Args:
        codes: `(n,)` 0 to entities - 1, ascending, and each entity's rows in (event, known, sequence) order:
            what sorts before the newest visible row loses to it for every reader from `at_ns` on.
    """
    seen = np.flatnonzero(visible_rows(event_ns, known_ns, at_ns))
    newest = np.full(entities, -1, np.int64)
    newest[codes[seen]] = seen
    return np.arange(codes.size, dtype=np.int64) >= newest[codes]


def replacing_rows(rows: Sequence[Int64Array], others: Sequence[Int64Array], at_ns: int) -> BoolArray:
    """Return which rows alone matter from `at_ns` on, beside the one other row of their entity; `(n,)`.

    Args:
        rows: Event, known and sequence, each `(n,)`.
        others: The same of the other rows.
    """
    event, known, number = rows
    other_event, other_known, other_number = others
    later = (known > other_known) | ((known == other_known) & (number > other_number))
    wins = (event > other_event) | ((event == other_event) & later)
    replacing: BoolArray = visible_rows(event, known, at_ns) & wins
    return replacing


def steady_until(
    event_ns: Int64Array,
    known_ns: Int64Array,
    now_ns: int,
    *,
    ttl_ns: int | None,
    windows_ns: Sequence[tuple[int, int]],
) -> int:
    """Return the last instant up to which a reader sees just what it sees at `now_ns`.

    Until then no row becomes visible, grows older than the ttl, or leaves a window.

    Args:
        windows_ns: Each window's length and tile, 0 for none.
    """
    ages = [] if ttl_ns is None else [ttl_ns + 1]
    ages += [window for window, _ in windows_ns]
    edges = [event_ns, known_ns, *(add_saturating(event_ns, age) for age in ages)]
    until = INT64_MAX
    for edge in edges:
        later = edge[edge > now_ns]
        if later.size:
            until = min(until, int(later.min()) - 1)
    for window, tile in windows_ns:
        if tile:
            until = min(until, ((now_ns - window) // tile + 1) * tile + window - 1)
    return until


def floor_of(now_ns: int, events_ns: Int64Array, history_ns: int, before_ns: int) -> int:
    """Return the earliest instant for which a store answers exactly after a write.

    Readers move with the clock, or with the events where those lag behind it (a replay); the floor never
    goes back.

    Args:
        now_ns: The writer's clock.
        events_ns: `(n,)` event timestamps written.
        history_ns: How far behind the newest event readers may still look.
        before_ns: The floor so far.
    """
    if events_ns.size == 0:
        return before_ns
    newest = min(now_ns, int(events_ns.max()))
    return max(before_ns, newest - history_ns, INT64_MIN)
