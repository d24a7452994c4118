"""Eight readers against eight rows in a handful of vector instructions: the step of a merge without keys."""

from collections.abc import Callable
from typing import Any, Final, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from featurestore.core.time import Int64Array
from featurestore.temporal.rows import Int32Array

BLOCK: Final = 8
_WORD, _LANE, _BIT = ir.IntType(64), ir.IntType(32), ir.IntType(1)
_LANES: Final = ir.VectorType(_LANE, BLOCK)


def _constant(kind: Any, value: int) -> Any:
    return ir.Constant(kind, [value] * BLOCK)


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    """Return a vector that holds one value in every lane."""
    nothing = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(nothing, value, ir.Constant(_LANE, 0))
    return builder.shuffle_vector(one, nothing, _constant(_LANES, 0))


@intrinsic
def _place_block(
    _context: Any,
    time: Any,
    spine: Any,  # noqa: ARG001 -- numba's signature
    event: Any,
    row: Any,  # noqa: ARG001
    slack: Any,  # noqa: ARG001
    fresh: Any,  # noqa: ARG001
    out: Any,
) -> Any:
    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        times, events, answers = (
            context.make_array(signature.args[k])(context, builder, arguments[k]).data for k in (0, 2, 6)
        )
        words = ir.VectorType(_WORD, BLOCK)
        place = builder.bitcast(builder.gep(times, [arguments[1]]), words.as_pointer())
        now = builder.add(builder.load(place, align=8), _splat(builder, arguments[4], words))
        rows = builder.gep(events, [arguments[3]])
        count, last = _constant(words, 0), None
        for k in range(BLOCK):
            then = builder.load(builder.gep(rows, [ir.Constant(_WORD, k)]))
            last = builder.sub(_splat(builder, then, words), now)
            count = builder.add(count, builder.lshr(last, _constant(words, 63)))
        newest = builder.add(_splat(builder, builder.sub(arguments[3], ir.Constant(_WORD, 1)), words), count)
        written = builder.bitcast(builder.gep(answers, [arguments[1]]), _LANES.as_pointer())
        begins = _splat(builder, builder.trunc(arguments[5], _BIT), ir.VectorType(_BIT, BLOCK))
        counts = builder.or_(builder.icmp_unsigned("!=", count, _constant(words, 0)), begins)
        before = builder.load(written, align=4)
        builder.store(builder.select(counts, builder.trunc(newest, _LANES), before), written, align=4)
        return builder.ashr(
            builder.extract_element(last, ir.Constant(_LANE, BLOCK - 1)), ir.Constant(_WORD, 63)
        )

    return types.int64(time, types.uint64, event, types.uint64, types.int64, types.uint64, out), build


# Writes the last of `event[row:row + 8]` that each of `time[spine:spine + 8]` sees to `out`: `row - 1` where
# it sees none of them, unless an earlier block was written (`fresh` 0: then that answer stays). Returns -1
# where the last reader sees the last row, so that the rows are used up, else 0.
place_block = cast(
    "Callable[[Int64Array, np.uint64, Int64Array, np.uint64, int, np.uint64, Int32Array], int]", _place_block
)
