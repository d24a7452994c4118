"""Values at positions: the last step of every join."""

from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.core.time import Int64Array
from featurestore.errors import SchemaError
from featurestore.temporal.gather_types import is_view, is_word, take
from featurestore.temporal.jit import lazy_module
from featurestore.temporal.rows import MAX_ROWS, Int32Array, frozen
from featurestore.temporal.threads import run_parallel, split, thread_count
from featurestore.temporal.times import one_array

_kernels: Any = lazy_module("featurestore.temporal.gather_kernels")

_NO_BITMAP: Final = frozen(np.empty(0, np.uint8))
_WORDS: Final = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
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
    array = _joined(column, name)
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
        return _gather_words(array, indices, threads)
    if len(indices) >= _FEW_ROWS:
        if pa.types.is_dictionary(kind):
            places = gather(array.indices, indices, threads=threads, name=name)
            return pa.DictionaryArray.from_arrays(places, array.dictionary, ordered=kind.ordered)
        if is_word(kind):
            return _gather_words(array, indices, threads)
    return take(array, indices, name)


def _joined(column: pa.ChunkedArray | pa.Array, name: str) -> pa.Array:
    try:
        return one_array(column)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise SchemaError(
            f"the chunks of column {name!r} ({column.type}) cannot be joined: {error}",
            hint="a dictionary needs an index type wide enough for the values of all chunks: cast it",
            column=name,
        ) from error


def _gather_words(array: pa.Array, indices: Int32Array | Int64Array, threads: int | None) -> pa.Array:
    """Copy words, or pairs of them: a view array keeps its data buffers and gets new views into them."""
    bitmap, data, *rest = array.buffers()
    lanes = 2 if is_view(array.type) else 1
    copy = _kernels.gather_views if lanes == 2 else _kernels.gather_fixed
    word = np.dtype(np.uint64 if lanes == 2 else _WORDS[array.type.bit_width])
    begin = array.offset * lanes * word.itemsize
    values = frozen(np.frombuffer(data, word, lanes * len(array), begin))
    valid_in = _NO_BITMAP if array.null_count == 0 else frozen(np.frombuffer(bitmap, np.uint8))
    count, places = len(indices), frozen(indices.astype(np.int32, copy=False))
    data_out, out = allocate(count * lanes, word)
    valid_out, valid = allocate((count + 7) // 8, np.dtype(np.uint8))
    complete: list[bool] = []

    def part(lo: int, hi: int) -> None:
        complete.append(copy(values, valid_in, array.offset, places, lo, hi, out, valid))

    parts = split((count + 7) // 8, thread_count(threads, count))
    run_parallel([partial(part, 8 * lo, min(count, 8 * hi)) for lo, hi in parts])
    buffers = [None if all(complete) else valid_out, data_out, *rest]
    return pa.Array.from_buffers(array.type, count, buffers)


def allocate(count: int, kind: np.dtype[Any]) -> tuple[pa.Buffer, npt.NDArray[Any]]:
    """Return an uninitialized Arrow buffer and a writable array over it."""
    buffer = pa.allocate_buffer(count * kind.itemsize)
    return buffer, np.frombuffer(buffer, kind)
