"""Values at positions: the last step of every join."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.core.time import Int64Array
from featurestore.errors import SchemaError
from featurestore.temporal.gather_types import is_view, is_word, take
from featurestore.temporal.jit import lazy_module
from featurestore.temporal.memory import allocate
from featurestore.temporal.rows import MAX_ROWS, Int32Array, frozen
from featurestore.temporal.threads import run_parallel, split, thread_count
from featurestore.temporal.times import one_array

_kernels: Any = lazy_module("featurestore.temporal.gather_kernels")

NO_BITMAP: Final = frozen(np.empty(0, np.uint8))
# The words that values are copied as, by their bits.
WORDS: Final = {bits: np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)}
_BYTE: Final = np.dtype(np.uint8)
# Fewer rows than this are taken by Arrow: calling a compiled loop costs more.
_FEW_ROWS: Final = 512


def gather(
    column: pa.ChunkedArray | pa.Array,
    indices: Int32Array | Int64Array,
    *,
    threads: int | None = None,
    name: str = "",
) -> pa.Array:
    """Take `column[indices]`, null where an index is -1; the type stays what it is.

    Args:
        column: any Arrow type, `(m,)`.
        indices: `(n,)` positions in `[-1, m)`; int32 is read as it is.
        threads: `None` for one per core.
        name: what messages call the column.

    Raises:
        SchemaError: a type whose values Arrow cannot take, or chunks that cannot be joined.

    Cost: O(n), fixed-width types in threads; several chunks are joined first.
    """
    array = joined_chunks(column, name)
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return pa.ExtensionArray.from_storage(
            kind, gather(array.storage, indices, threads=threads, name=name)
        )
    if len(array) == 0:
        return pa.nulls(len(indices), kind)
    if len(array) > MAX_ROWS:
        return take(array, indices, name)
    if is_view(kind):
        return _gather_array(array, indices, threads)
    if len(indices) >= _FEW_ROWS:
        if pa.types.is_dictionary(kind):
            places = gather(array.indices, indices, threads=threads, name=name)
            return pa.DictionaryArray.from_arrays(places, array.dictionary, ordered=kind.ordered)
        if is_word(kind):
            return _gather_array(array, indices, threads)
    return take(array, indices, name)


def joined_chunks(column: pa.ChunkedArray | pa.Array, name: str) -> pa.Array:
    """Return a column as one array; only several chunks are copied.

    Raises:
        SchemaError: chunks that cannot be joined.
    """
    try:
        return one_array(column)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise SchemaError(
            f"the chunks of column {name!r} ({column.type}) cannot be joined: {error}",
            hint="a dictionary needs an index type wide enough for the values of all chunks: cast it",
            column=name,
        ) from error


def words_of(array: pa.Array) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
    """Return values as the words of their bits, two for each of a view, and their bitmap; nothing is copied.

    The bitmap counts from bit `array.offset` on; it is empty where none is null.
    """
    bitmap, data, *_ = array.buffers()
    lanes = 2 if is_view(array.type) else 1
    word = WORDS[64 if lanes == 2 else array.type.bit_width]
    values = frozen(np.frombuffer(data, word, lanes * len(array), array.offset * lanes * word.itemsize))
    return values, NO_BITMAP if array.null_count == 0 else frozen(np.frombuffer(bitmap, np.uint8))


def _gather_array(array: pa.Array, indices: Int32Array | Int64Array, threads: int | None) -> pa.Array:
    views = array.buffers()[2:] if is_view(array.type) else None
    return gather_words(array.type, *words_of(array), array.offset, indices, threads, views)


def gather_words(
    kind: pa.DataType,
    values: npt.NDArray[Any],
    valid: npt.NDArray[np.uint8],
    offset: int,
    indices: Int32Array | Int64Array,
    threads: int | None,
    views: Sequence[pa.Buffer] | None = None,
) -> pa.Array:
    """Copy words, or pairs of them: a view array keeps its data buffers and gets new views into them.

    Args:
        kind: of the values.
        values: `(m,)` words, `(2 * m,)` of views.
        valid: their bitmap from bit `offset` on; empty where none is null.
        indices: `(n,)` positions in `[-1, m)`.
        views: of views, the buffers they point into.
    """
    lanes, copy = (1, _kernels.gather_fixed) if views is None else (2, _kernels.gather_views)
    count, places = len(indices), frozen(indices if indices.dtype == np.int32 else indices.astype(np.int32))
    data_out, out = allocate(count * lanes, values.dtype)
    valid_out, bits = allocate((count + 7) >> 3, _BYTE)
    wide = thread_count(threads, count)
    if wide == 1:
        whole = copy(values, valid, offset, places, 0, count, out, bits)
        return pa.Array.from_buffers(kind, count, [None if whole else valid_out, data_out, *(views or ())])
    complete: list[bool] = []

    def part(lo: int, hi: int) -> None:
        complete.append(copy(values, valid, offset, places, lo, hi, out, bits))

    parts = split((count + 7) // 8, wide)
    run_parallel([partial(part, 8 * lo, min(count, 8 * hi)) for lo, hi in parts])
    return pa.Array.from_buffers(
        kind, count, [None if all(complete) else valid_out, data_out, *(views or ())]
    )
