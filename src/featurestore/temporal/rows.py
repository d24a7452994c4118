"""One side of a point-in-time join, as arrays."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from featurestore.core.time import Int64Array
from featurestore.errors import DefinitionError, SchemaError
from featurestore.temporal.memory import Kind, allocate

Int32Array = npt.NDArray[np.int32]

MAX_ROWS: Final = 2**31 - 1
DIRECTIONS: Final = ("backward", "forward", "nearest")
BOUNDARIES: Final = ("inclusive", "exclusive")


@dataclass(frozen=True, slots=True)
class Rows:
    """The keys and clocks of one side, in any order; a row's position is its position in the source.

    Visible means (PIT-1): the codes are equal, the event times satisfy direction, boundary and tolerance,
    and `row.known_ns <= spine.known_ns`. A side without `known_ns` is known at its event time; where
    neither side has it there is no knowledge condition (a backward join implies it, and a label must be
    able to look ahead).

    Attributes:
        codes: `(n,)` dense entity codes shared by both sides; -1 (a null key or time) matches nothing. One
            number broadcast over all rows costs no memory.
        event_ns: `(n,)` when it became true, ns since 1970 UTC. Ignored where the code is -1.
        known_ns: `(n,)` rows: when it could have been known, `INT64_MAX` for never; spine: what the reader
            may know (`INT64_MAX`: everything that is ever known).
        sequence: `(n,)` breaks ties of (event, known); the position breaks what is left.
        in_order: (event_ns, sequence) is known never to go back, so that nobody needs to look again.
    """

    codes: Int32Array
    event_ns: Int64Array
    known_ns: Int64Array | None = None
    sequence: Int64Array | None = None
    in_order: bool = False

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, part: slice) -> "Rows":
        """Return a stretch of neighbouring rows, not copied."""
        known = None if self.known_ns is None else self.known_ns[part]
        sequence = None if self.sequence is None else self.sequence[part]
        return Rows(self.codes[part], self.event_ns[part], known, sequence, self.in_order)


def frozen(array: npt.NDArray[Kind]) -> npt.NDArray[Kind]:
    """Return a contiguous read-only view, or a copy where the array is strided.

    Kernels take their inputs in this one form: numba compiles anew for every other one.
    """
    flags = array.flags
    if flags.c_contiguous and not flags.writeable:
        return array
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def one_of(codes: Int32Array) -> Int32Array:
    """Return one code for all where a single number was broadcast over the rows, else the codes."""
    return codes[:1] if codes.strides == (0,) else codes


def scratch(count: int, kind: np.dtype[Kind]) -> npt.NDArray[Kind]:
    """Return an uninitialized array from Arrow's pool, which keeps its pages from one join to the next."""
    return allocate(count, kind)[1]


def check_rows(rows: Rows, what: str) -> None:
    """Check that the arrays of a side fit together.

    Raises:
        SchemaError: an array of another length or type, or more than 2**31 - 1 rows.
    """
    count = len(rows.codes)
    if rows.codes.dtype != np.int32 or rows.codes.ndim != 1 or count > MAX_ROWS:
        raise SchemaError(
            f"{what}.codes is {rows.codes.dtype} of shape {rows.codes.shape}: one int32 code per row, "
            f"at most {MAX_ROWS} rows",
            hint="split larger inputs by bucket or by date",
        )
    for name in ("event_ns", "known_ns", "sequence"):
        array: Int64Array | None = getattr(rows, name)
        if array is not None and (array.dtype != np.int64 or array.shape != (count,)):
            raise SchemaError(
                f"{what}.{name} is {array.dtype} of shape {array.shape}, where {count} rows need int64 "
                f"of shape ({count},)"
            )


def check_choice(value: str, choices: tuple[str, ...], what: str) -> str:
    """Return `value` if it is one of `choices`.

    Raises:
        DefinitionError: it is not.
    """
    if value not in choices:
        raise DefinitionError(f"{what} is {value!r}", hint=f"one of {', '.join(choices)}", value=value)
    return value
