"""A stream's state as JSON values and Arrow IPC bytes."""

import base64
from collections.abc import Callable, Sequence
from typing import Any, Final

import pyarrow as pa

from featurestore.core.time import INT64_MAX, INT64_MIN
from featurestore.errors import CorruptDataError, StreamError

FORMAT: Final = 1
SIDES: Final = ("left", "right")


def table_text(table: pa.Table | None) -> str | None:
    """Write a table as base64 text of an Arrow IPC stream."""
    if table is None:
        return None
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.unify_dictionaries())
    return base64.b64encode(sink.getvalue()).decode()


def table_of(text: str | None) -> pa.Table | None:
    """Read what `table_text` wrote.

    Raises:
        CorruptDataError: the text is not such a table.
    """
    if text is None:
        return None
    try:
        with pa.ipc.open_stream(base64.b64decode(text, validate=True)) as reader:
            return reader.read_all()
    except (pa.ArrowException, ValueError, OSError) as error:
        raise CorruptDataError(f"a saved stream holds a table that cannot be read: {error}") from error


def check_state(state: Any, options: dict[str, Any], counts: Sequence[str]) -> None:
    """Check that a saved state is one, and belongs to a stream of these options.

    Raises:
        StreamError: it is of another format, damaged, or of other options; the first difference is named.
    """
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise StreamError(
            "the saved state is not one of this version", hint=f"format {FORMAT} is needed, from state_dict()"
        )
    parts: dict[str, tuple[Sequence[str], Callable[[Any], bool]]] = {
        "options": ((), bool),
        "counts": (counts, lambda value: _is_integer(value) and 0 <= value <= INT64_MAX),
        "watermarks": (SIDES, lambda value: value is None or (_is_integer(value) and _fits(value))),
        "rows": (SIDES, lambda value: value is None or isinstance(value, str)),
        "late": (SIDES, lambda value: value is None or isinstance(value, str)),
    }
    for name, (keys, is_right) in parts.items():
        part = state.get(name)
        if not isinstance(part, dict) or not all(key in part and is_right(part[key]) for key in keys):
            raise StreamError(
                f"the saved state is not one of this version: its {name} are {part!r:.80}",
                hint="pass what state_dict() returned, unchanged",
            )
    if not isinstance(state.get("closed"), bool):
        raise StreamError("the saved state is not one of this version: it does not say whether it is closed")
    for name, value in options.items():
        found = state["options"].get(name, "not said")
        if found != value:
            raise StreamError(
                f"the saved state is of a stream with {name} {found!r}, this one has {value!r}",
                hint="load a state into a stream with the arguments it was saved from",
            )


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _fits(value: int) -> bool:
    return INT64_MIN <= value <= INT64_MAX
