"""The loops behind `retain.py`: one pass to find the newest usable row per entity, one to mark rows."""

from featurestore.core.time import INT64_MAX, BoolArray, Int64Array
from featurestore.temporal.jit import kernel
from featurestore.temporal.rows import Int32Array


@kernel
def is_after(a: int, b: int, event: Int64Array, known: Int64Array, sequence: Int64Array) -> bool:
    """Whether row `a` beats row `b` (PIT-2); an empty `known` or `sequence` means there is none."""
    if event[a] != event[b]:
        return bool(event[a] > event[b])
    if known.size and known[a] != known[b]:
        return bool(known[a] > known[b])
    if sequence.size and sequence[a] != sequence[b]:
        return bool(sequence[a] > sequence[b])
    return a > b


@kernel
def bound_of(bounds: Int64Array, entity: int) -> int:
    """Return an entity's bound, where there is one for each, or the one that all share."""
    return int(bounds[entity] if bounds.size > 1 else bounds[0])


@kernel
def mark_newest(
    codes: Int32Array,
    event: Int64Array,
    known: Int64Array,
    sequence: Int64Array,
    valid: BoolArray,
    at_ns: Int64Array,
    oldest_ns: Int64Array,
    best: Int64Array,
    keep: BoolArray,
) -> None:
    """Mark rows that may still be the newest one: the best visible before `at_ns`, and what could beat it.

    `at_ns` and `oldest_ns` hold one bound per entity, or one for all. `best` is `(entities,)`, filled with -1
    on entry; an empty `valid` means every row counts.
    """
    for i in range(codes.size):
        if codes[i] < 0:
            continue
        at = bound_of(at_ns, codes[i])
        if event[i] >= at or (known.size and known[i] > at):
            continue
        if valid.size and not valid[i]:
            continue
        if best[codes[i]] < 0 or is_after(i, best[codes[i]], event, known, sequence):
            best[codes[i]] = i
    for i in range(codes.size):
        if codes[i] < 0 or (valid.size and not valid[i]) or (known.size and known[i] == INT64_MAX):
            continue
        at = bound_of(at_ns, codes[i])
        if event[i] >= at:
            keep[i] = True
        elif event[i] >= bound_of(oldest_ns, codes[i]):
            top = best[codes[i]]
            if top == i:
                keep[i] = True
            elif known.size and known[i] > at:
                keep[i] |= top < 0 or is_after(i, top, event, known, sequence)


@kernel
def mark_window(
    codes: Int32Array, event: Int64Array, known: Int64Array, first_ns: Int64Array, keep: BoolArray
) -> None:
    """Mark every row from `first_ns` on that can ever be known; one bound per entity, or one for all."""
    for i in range(codes.size):
        if codes[i] >= 0 and event[i] >= bound_of(first_ns, codes[i]):
            keep[i] |= known.size == 0 or known[i] != INT64_MAX
