"""A stream's state as JSON values and Arrow IPC bytes."""

import base64
from typing import Any

import pyarrow as pa

from featurestore.errors import CorruptDataError, StreamError

FORMAT = 1


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


def check_state(state: Any, options: dict[str, Any]) -> None:
    """Check that a saved state belongs to a stream of these options.

    Raises:
        StreamError: it is of another format, or of other options; the first difference is named.
    """
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise StreamError(
            "the saved state is not one of this version", hint=f"format {FORMAT} is needed, from state_dict()"
        )
    for name, value in options.items():
        if state["options"].get(name) != value:
            raise StreamError(
                f"the saved state is of a stream with {name} {state['options'].get(name)!r}, this one has "
                f"{value!r}",
                hint="load a state into a stream with the arguments it was saved from",
            )
