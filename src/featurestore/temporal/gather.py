"""Values at positions: the last step of every join."""

import pyarrow as pa

from featurestore.core.time import Int64Array
from featurestore.temporal.times import one_array


def gather(
    column: pa.ChunkedArray | pa.Array, indices: Int64Array, *, threads: int | None = None
) -> pa.Array:
    """Take `column[indices]`, null where an index is -1; the type stays what it is.

    Args:
        column: any Arrow type, `(m,)`.
        indices: `(n,)` positions in `[-1, m)`.

    Cost: O(n) for fixed-width types; several chunks are joined first.
    """
    del threads
    positions = pa.array(indices, mask=indices < 0)
    return one_array(column).take(positions)
