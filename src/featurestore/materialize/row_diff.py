"""Rows that two tables do not share, counted as bags: equal rows count as often as they are there."""

from collections.abc import Sequence

import pyarrow as pa

from featurestore.storage.duckdb_sql import run_query


def partition_diff(old: pa.Table, new: pa.Table, identity: Sequence[str]) -> tuple[int, int, int]:
    """Count rows added, removed and changed.

    Args:
        identity: Columns that make two rows the same row; a row that is there before and after with equal
            identity and other values counts as changed.
    """
    gone = run_query("SELECT * FROM old EXCEPT ALL SELECT * FROM new", {"old": old, "new": new})
    come = run_query("SELECT * FROM new EXCEPT ALL SELECT * FROM old", {"old": old, "new": new})
    if gone.num_rows == 0 or come.num_rows == 0 or not identity:
        return come.num_rows, gone.num_rows, 0
    columns = ", ".join('"' + name.replace('"', '""') + '"' for name in identity)
    changed = run_query(
        f"SELECT {columns} FROM come INTERSECT ALL SELECT {columns} FROM gone",  # noqa: S608 -- quoted
        {"come": come, "gone": gone},
    ).num_rows
    return come.num_rows - changed, gone.num_rows - changed, changed
