"""Types that Arrow cannot take by position as they are, and the plainer ones that stand in for them."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.core.table_rows import plain_type
from featurestore.core.time import Int64Array
from featurestore.errors import SchemaError
from featurestore.temporal.rows import Int32Array


def take(array: pa.Array, indices: Int32Array | Int64Array, name: str) -> pa.Array:
    """Take by position through Arrow, -1 for null, by way of a plainer type where Arrow needs one.

    Raises:
        SchemaError: no plainer type helps either.
    """
    positions = pa.array(indices, mask=indices < 0)
    kind = array.type
    try:
        if pa.types.is_run_end_encoded(kind):
            plain = take(pc.run_end_decode(array), indices, name)
            return pc.run_end_encode(plain, run_end_type=kind.run_end_type)
        plainer = plain_type(kind)
        if plainer != kind:
            return array.cast(plainer).take(positions).cast(kind)
        return array.take(positions)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise SchemaError(
            f"column {name!r} is of type {kind}, whose values cannot be taken by position: {error}",
            hint="cast it to a plainer type",
            column=name,
        ) from error


def is_word(kind: pa.DataType) -> bool:
    """Whether values of a type are 1, 2, 4 or 8 bytes wide and nothing else."""
    fixed = pa.types.is_primitive(kind) and not pa.types.is_boolean(kind)
    return fixed and kind.bit_width in {8, 16, 32, 64}


def is_view(kind: pa.DataType) -> bool:
    """Whether values of a type are views into shared buffers."""
    return bool(pa.types.is_string_view(kind) or pa.types.is_binary_view(kind))


def check_takeable(kind: pa.DataType, name: str) -> None:
    """Check that a column can be joined, before any work.

    Raises:
        SchemaError: its values cannot be taken by position.
    """
    if is_word(kind) or is_view(kind) or pa.types.is_string(kind) or pa.types.is_dictionary(kind):
        return
    if isinstance(kind, pa.BaseExtensionType):
        check_takeable(kind.storage_type, name)
    elif pa.types.is_run_end_encoded(kind):
        check_takeable(kind.value_type, name)
    else:
        take(pa.nulls(1, kind), np.array([0, -1]), name)
