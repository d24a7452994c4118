"""Doing once, on made-up rows, what calls will do, so that kernels and engines are ready before them.

A kernel is compiled on first use and then kept on disk. Where it was not yet, as in a fresh image, the first
reader of a window would otherwise wait for seconds.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from featurestore.serve.answers import answer_plain, answer_resolved
from featurestore.serve.entity_keys import key_kind
from featurestore.serve.views import OnlineView
from featurestore.serve.writes import merge_rows, prepare_rows

_ROWS = 3


def warm_view(view: OnlineView, source: pa.Schema) -> None:
    """Write rows of one entity, with values and without, and read them back; nothing is stored.

    Args:
        source: The schema of the view's source.

    Raises:
        FeatureStoreError: the view's expressions fail on made-up values; what came before is warm.
    """
    prepared = prepare_rows(view, made_up_rows(view, source))
    held = merge_rows(view, prepared, [None] * len(prepared.keys), at_ns=0)
    merge_rows(view, prepared, held, at_ns=_ROWS)
    for values in ([*held, None], held, [None]):
        if view.is_plain:
            answer_plain(view, values, _ROWS)
        else:
            answer_resolved(view, view.program, values, _ROWS)


def made_up_rows(view: OnlineView, source: pa.Schema) -> pa.Table:
    """Return rows of a source: one entity, a row a nanosecond from 1970 on, the middle one without values."""
    times = [view.program.times.timestamp, view.program.times.created]
    arrays = {}
    for field in source:
        if field.name in times:
            arrays[field.name] = _cast(list(range(1, _ROWS + 1)), pa.int64(), field.type)
        else:
            value = _value(field.type)
            middle = value if field.name in view.program.join_keys else None
            arrays[field.name] = _cast([value, middle, value], None, field.type)
    return pa.table(arrays, schema=source)


def _value(kind: pa.DataType) -> object:
    kinds = {"integer": 1, "string": "a", "binary": b"a"}
    plain = key_kind(kind)
    if plain in kinds:
        return kinds[plain]
    if pa.types.is_boolean(kind):
        return True
    return 1.0 if pa.types.is_floating(kind) else None


def _cast(values: Sequence[Any], given: pa.DataType | None, kind: pa.DataType) -> pa.Array:
    if any(v is not None for v in values):
        with contextlib.suppress(pa.ArrowException):  # a type that these values have no place in
            return pa.array(values, given).cast(kind)
    return pa.nulls(len(values), kind)
