"""Rows that two tables do not share, counted as bags: equal rows count as often as they are there."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from featurestore.core.table_rows import filter_rows, take_rows
from featurestore.core.time import BoolArray, Int64Array
from featurestore.storage.duckdb_sql import Sandbox, quoted
from featurestore.temporal.keys import code_keys
from featurestore.temporal.order import group_positions

# Rows of each side that are copied side by side to be compared.
_BLOCK_ROWS: Final = 1 << 16


def partition_diff(old: pa.Table, new: pa.Table, identity: Sequence[str]) -> tuple[int, int, int]:
    """Count rows added, removed and changed.

    Args:
        identity: Columns that make two rows the same row; a row that is there before and after with equal
            identity and other values counts as changed.

    Cost:
        One comparison of each column for rows that have a partner of the same identity; only the rest, and
        rows that differ, are hashed as a whole. Memory: a block of both sides, and the rows that differ.
    """
    box = Sandbox()
    try:
        old, new = _without_equal(box, old, new, identity)
        gone = box.query("SELECT * FROM old EXCEPT ALL SELECT * FROM new", {"old": old, "new": new})
        come = box.query("SELECT * FROM new EXCEPT ALL SELECT * FROM old", {"old": old, "new": new})
        if gone.num_rows == 0 or come.num_rows == 0 or not identity:
            return come.num_rows, gone.num_rows, 0
        columns = ", ".join(map(quoted, identity))
        changed = box.query(
            f"SELECT {columns} FROM come INTERSECT ALL SELECT {columns} FROM gone",  # noqa: S608 -- quoted
            {"come": come, "gone": gone},
        ).num_rows
    finally:
        box.close()
    return come.num_rows - changed, gone.num_rows - changed, changed


def _without_equal(
    box: Sandbox, old: pa.Table, new: pa.Table, identity: Sequence[str]
) -> tuple[pa.Table, pa.Table]:
    """Leave out pairs of equal rows: two bags differ by the same rows without one that both hold.

    Which rows are held against each other is a guess, so that one that is wrong costs time and nothing else.
    """
    places, partners = _partners(old, new, identity)
    in_old, in_new = np.ones(len(old), np.bool_), np.ones(len(new), np.bool_)
    same = " AND ".join(f"old.{c} IS NOT DISTINCT FROM new.{c}" for c in map(quoted, new.column_names))
    for begin in range(0, len(places), _BLOCK_ROWS):
        mine, theirs = places[begin : begin + _BLOCK_ROWS], partners[begin : begin + _BLOCK_ROWS]
        found = box.query(
            f"SELECT {same} AS same FROM old POSITIONAL JOIN new",  # noqa: S608 -- quoted
            {"old": take_rows(old, theirs), "new": take_rows(new, mine)},
        )
        equal: BoolArray = found.column("same").to_numpy()
        in_new[mine[equal]] = False
        in_old[theirs[equal]] = False
    return filter_rows(old, in_old), filter_rows(new, in_new)


def _partners(old: pa.Table, new: pa.Table, identity: Sequence[str]) -> tuple[Int64Array, Int64Array]:
    """Return rows of `new`, ascending, and for each a row of `old` of its identity: for the n-th the n-th."""
    nothing = np.empty(0, np.int64)
    types = [(old.schema.field(n).type, new.schema.field(n).type) for n in identity]
    if not types or any(one != other for one, other in types):
        return nothing, nothing
    coded = code_keys([[side.column(n) for n in identity] for side in (old, new)], identity, threads=1)
    rows = [np.flatnonzero(codes >= 0) for codes in coded.codes]
    codes = [side[kept] for side, kept in zip(coded.codes, rows, strict=True)]
    (before, ends), (after, new_ends) = (group_positions(side, coded.entities) for side in codes)
    group = codes[1][after]
    counts, new_counts = np.diff(ends, prepend=0), np.diff(new_ends, prepend=0)
    nth = np.arange(len(after)) - (new_ends - new_counts)[group]
    paired = nth < counts[group]
    partner = np.full(len(new), -1, np.int64)
    partner[rows[1][after[paired]]] = rows[0][before[(ends - counts)[group[paired]] + nth[paired]]]
    places = np.flatnonzero(partner >= 0)
    return places, partner[places]
