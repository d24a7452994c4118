"""The loops of streams against plain Python; mutants of those over held rows against the same cases."""

import ast
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from tests.temporal.mutants import loaded, survivors

from featurestore.core.time import INT64_MIN
from featurestore.errors import FeatureStoreError
from featurestore.temporal import streaming_columns, streaming_rows
from featurestore.temporal.streaming_columns import HeldColumns
from featurestore.temporal.streaming_keys import KeyNumbers
from featurestore.temporal.streaming_rows import HeldRows

_LOOKS: Final = "it is looked at again, and nothing is found"
_ORDER: Final = "order is found less often"
_SEARCHED: Final = "a stretch is searched that holds nothing"

# Mutants that answer the same, by (function, changed line, change).
SAME: Final[dict[tuple[str, str, str], str]] = {
    ("take_times", "late += event[i] < bound", "Add to Sub"): "not 0 either",
    ("take_times", "late += event[i] < bound", "Lt to LtE"): _LOOKS,
    ("take_times", "return late, 0 if event[0] < before else -1", "Lt to LtE"): _ORDER,
    ("take_times", "late, falls = int(event[0] < bound), 0", "Lt to LtE"): _LOOKS,
    ("last_fall", "if event[i] < event[i - 1]:", "Lt to LtE"): _ORDER,
    ("sealed_rows", "if waiting > 0:", "Gt to GtE"): _SEARCHED,
}


def times_are_taken() -> bool:
    """Whether times are copied, counted where they are late, and known where they go back last."""
    rng = np.random.default_rng(0)
    for _ in range(150):
        rows, wanted = HeldRows(with_known=False), np.empty(0, np.int64)
        for _ in range(3):
            size, span = int(rng.integers(0, 6)), int(rng.choice([1, 3, 30]))
            times = (
                np.sort(rng.integers(0, span, size)) if rng.random() < 0.7 else rng.integers(0, span, size)
            )
            bound = int(rng.integers(0, span + 1))
            late, fall = rows.put_times(times, bound)
            rows.codes[rows.end : rows.end + size] = 0
            rows.add(size, fall)
            wanted = np.concatenate([wanted, times])
            view = rows.view(0, len(rows))
            falls = np.flatnonzero(wanted[1:] < wanted[:-1]) + 1
            if view.event_ns.tolist() != wanted.tolist() or (late == 0) != (int((times < bound).sum()) == 0):
                return False
            if rows.fall < (falls[-1] if len(falls) else 0) or (len(set(wanted)) == len(wanted) and (
                rows.fall != (falls[-1] if len(falls) else 0)
            )):  # fmt: skip
                return False
            kept = np.flatnonzero(rng.random(len(rows)) < 0.8)
            rows.keep(kept)
            wanted = wanted[kept]
    return True


def rows_are_sealed() -> bool:
    """Whether the rows before the first that has a key and is not older than the bound are counted."""
    rng = np.random.default_rng(1)
    for turn in range(60):
        count = int(rng.choice([0, 3, 9, 1500]))
        rows = HeldRows(with_known=False)
        event = rng.integers(0, 4, count) if turn % 2 else np.sort(rng.integers(0, 3 * count + 1, count))
        _, fall = rows.put_times(event, INT64_MIN)
        rows.codes[:count] = np.where(rng.random(count) < 0.4, -1, 0)
        rows.add(count, fall)
        bound = int(rng.integers(0, 5)) if turn % 2 else int(rng.integers(0, 3 * count + 2))
        waiting = [k for k in range(count) if rows.codes[k] >= 0 and event[k] >= bound]
        if rows.sealed(bound) != (waiting[0] if waiting else count):
            return False
    return True


def bits_are_kept() -> bool:
    """Whether nulls follow their values."""
    rng = np.random.default_rng(2)
    columns, wanted = HeldColumns(pa.schema({"v": pa.int8()})), []
    for _ in range(60):
        values = [
            None if rng.random() < 0.4 else int(v) for v in rng.integers(0, 9, int(rng.integers(0, 20)))
        ]
        columns.append(pa.table({"v": pa.array([None, *values], pa.int8()).slice(1)}))
        wanted += values
        if rng.random() < 0.3:
            kept = np.flatnonzero(rng.random(len(wanted)) < 0.6)
            columns.keep(kept)
            wanted = [wanted[place] for place in kept]
        if columns.table()["v"].to_pylist() != wanted:
            return False
    return True


def _key(rng: np.random.Generator) -> str | None:
    number = int(rng.integers(0, 150))
    if number % 11 == 0:
        return None
    # Up to 7 bytes a key is written into its hash; longer ones differ at either end, or in length alone.
    return ("", f"{number}", f"{number:07d}", f"{number:08d}", "x" * number, f"{number}" + "y" * 600)[
        number % 6
    ]


def keys_are_numbered() -> bool:
    """Whether keys get the number of their first appearance, whatever their layout."""
    rng = np.random.default_rng(3)
    texts = [[_key(rng) for _ in range(int(rng.integers(1, 120)))] for _ in range(8)]
    wide = [[None if t is None else len(t) * 31 % 97 * 2**40 - 2**41 for t in part] for part in texts]
    small = [[None if t is None else len(t) % 5 for t in part] for part in texts]
    forms: list[tuple[list[pa.DataType], list[Any]]] = [
        ([pa.string()], [texts]),
        ([pa.large_binary()], [texts]),
        ([pa.int64()], [wide]),
        ([pa.string(), pa.int64()], [texts, wide]),
        ([pa.int64(), pa.int16()], [wide, small]),
    ]
    for kinds, parts in forms:
        keys = KeyNumbers(("one", "other")[: len(kinds)])
        known: dict[tuple[Any, ...], int] = {}
        for pieces in zip(*parts, strict=True):
            columns = [
                pa.chunked_array([pa.array([None, *piece]).cast(kind).slice(1)])
                for kind, piece in zip(kinds, pieces, strict=True)
            ]
            out = np.empty(len(pieces[0]), np.int32)
            keys.code(columns, out)
            wanted = [
                -1 if None in key else known.setdefault(key, len(known)) for key in zip(*pieces, strict=True)
            ]
            if out.tolist() != wanted or len(keys) != len(known):
                return False
    return True


CASES: Final = {
    "streaming_kernels": (times_are_taken, rows_are_sealed, bits_are_kept),
    "streaming_key_kernels": (keys_are_numbered,),
}


@pytest.mark.parametrize("name", CASES)
def test_the_loops_of_streams_do_what_plain_python_does(name: str) -> None:
    assert all(case() for case in CASES[name])


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_no_mutant_of_the_loops_over_held_rows_survives(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(tree: ast.Module) -> None:
        found = loaded(tree, "streaming_kernels", {"is_valid": _is_valid})
        for module in (streaming_rows, streaming_columns):
            monkeypatch.setattr(module, "_kernels", found)

    def notices() -> bool:
        try:
            return not all(case() for case in CASES["streaming_kernels"])
        except (FeatureStoreError, pa.ArrowException, IndexError, ValueError, OverflowError):
            return True

    found = survivors("streaming_kernels", notices, load, SAME)
    assert not found, f"{len(found)} mutants survive:\n" + "\n".join(found)


def _is_valid(bitmap: npt.NDArray[np.uint8], place: int) -> bool:
    return len(bitmap) == 0 or bool((int(bitmap[place >> 3]) >> (place & 7)) & 1)
