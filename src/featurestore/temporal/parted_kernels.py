"""Compiled loops over rows that lie entity by entity, in time order: as stored data does."""

from featurestore.core.time import Int64Array
from featurestore.temporal.jit import kernel
from featurestore.temporal.rows import Int32Array


@kernel
def place_entities(
    order: Int32Array,
    starts: Int64Array,
    ends: Int64Array,
    chosen: Int64Array,
    positions: Int64Array,
    codes: Int32Array,
    offsets: Int64Array,
) -> bool:
    """Put grouped rows one entity after the other; returns whether every row stays where it is.

    Args:
        order: source position of each grouped row; empty where that is the place itself.
        chosen: `(e,)` which groups, in the order wanted.
        positions: gets source positions; `codes` the place of each row's group in `chosen`.
        offsets: `(e + 1,)` gets where each group begins.
    """
    place = 0
    stays = True
    for rank in range(len(chosen)):
        offsets[rank] = place
        for k in range(starts[chosen[rank]], ends[chosen[rank]]):
            row = k if len(order) == 0 else order[k]
            stays &= row == place
            positions[place] = row
            codes[place] = rank
            place += 1
    offsets[len(chosen)] = place
    return stays
