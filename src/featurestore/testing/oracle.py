"""The as-of join as a loop too simple to be wrong: the definition that every fast path is held against.

Keys are any hashable values, `None` for null; times are Python integers, `None` for null; nothing is sorted,
nothing is shared between rows, nothing can overflow. Cost: O(n · m). For tests only.
"""

from collections.abc import Hashable, Sequence

from featurestore.core.time import INT64_MAX
from featurestore.temporal.rows import Rows

Times = Sequence[int | None]


def asof_oracle(
    spine_keys: Sequence[Hashable],
    spine_times: Times,
    row_keys: Sequence[Hashable],
    row_times: Times,
    *,
    direction: str = "backward",
    tolerance_ns: int | None = None,
    boundary: str = "inclusive",
    spine_known: Times | None = None,
    row_known: Times | None = None,
    sequence: Sequence[int] | None = None,
    valid: Sequence[bool] | None = None,
) -> list[int]:
    """Return, per spine row, the position of the row it takes (PIT-1, PIT-2), -1 where none is visible.

    Args:
        spine_keys: `(n,)`; a composite key is a tuple.
        spine_times: `(n,)` ns.
        row_keys: `(m,)`.
        row_times: `(m,)` ns.
        direction: backward, forward or nearest.
        tolerance_ns: greatest distance, bound included.
        boundary: inclusive or exclusive.
        spine_known: `(n,)` what each reader may know; absent: its own time.
        row_known: `(m,)` when each row could be known, `None` or `INT64_MAX` for never; absent: its time.
        sequence: `(m,)` tie-break before the position.
        valid: `(m,)` which rows have a value (for the last known one); absent: all.
    """
    chosen = []
    for i, (key, now) in enumerate(zip(spine_keys, spine_times, strict=True)):
        before: list[tuple[int, int, int, int]] = []
        after: list[tuple[int, int, int, int]] = []
        for j, (other, then) in enumerate(zip(row_keys, row_times, strict=True)):
            if key is None or other is None or now is None or then is None or key != other:
                continue
            known = then if row_known is None else row_known[j]
            if row_known is not None or spine_known is not None:
                cutoff = now if spine_known is None else spine_known[i]
                if not _is_known(known, cutoff):
                    continue
            if (valid is not None and not valid[j]) or (boundary == "exclusive" and then == now):
                continue
            if tolerance_ns is not None and abs(now - then) > tolerance_ns:
                continue
            rank = (then, 0 if known is None else known, 0 if sequence is None else sequence[j], j)
            before += [rank] if then <= now else []
            after += [rank] if then >= now else []
        chosen.append(_choice(direction, 0 if now is None else now, before, after))
    return chosen


def _is_known(known: int | None, cutoff: int | None) -> bool:
    return known is not None and cutoff is not None and known != INT64_MAX and known <= cutoff


def _choice(
    direction: str,
    now: int,
    before: list[tuple[int, int, int, int]],
    after: list[tuple[int, int, int, int]],
) -> int:
    last = max(before) if before else None
    first = min(after) if after else None
    if direction == "backward":
        best = last
    elif direction == "forward":
        best = first
    elif last is None or first is None:
        best = last or first
    else:
        best = last if now - last[0] <= first[0] - now else first
    return -1 if best is None else best[3]


def asof_oracle_of(
    spine: Rows,
    rows: Rows,
    *,
    direction: str = "backward",
    tolerance_ns: int | None = None,
    boundary: str = "inclusive",
    valid: Sequence[bool] | None = None,
) -> list[int]:
    """Do the same for sides that are arrays already."""
    return asof_oracle(
        [None if code < 0 else code for code in spine.codes.tolist()],
        spine.event_ns.tolist(),
        [None if code < 0 else code for code in rows.codes.tolist()],
        rows.event_ns.tolist(),
        direction=direction,
        tolerance_ns=tolerance_ns,
        boundary=boundary,
        spine_known=None if spine.known_ns is None else spine.known_ns.tolist(),
        row_known=None if rows.known_ns is None else rows.known_ns.tolist(),
        sequence=None if rows.sequence is None else rows.sequence.tolist(),
        valid=valid,
    )
