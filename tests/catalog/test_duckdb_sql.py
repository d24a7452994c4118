"""The SQL sandbox: reads the tables it is given, and nothing else."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurestore.errors import DefinitionError, ExpressionError, StorageError
from featurestore.storage.duckdb_sql import Sandbox, parse_select, query_schema, quoted, run_query

ROWS = pa.table(
    {"k": [3, 1, 2], "ts": pa.array([1_000_000_001, -1, 5], pa.timestamp("ns", "UTC")), "s": ["c", None, "b"]}
)


def test_a_query_keeps_row_order_and_nanoseconds() -> None:
    out = run_query("SELECT *, k * 2 AS twice FROM source", {"source": ROWS})
    assert out.select(["k", "ts", "s"]).equals(ROWS)
    assert out["twice"].to_pylist() == [6, 2, 4]


def test_a_query_reads_a_stream_of_batches() -> None:
    reader = pa.RecordBatchReader.from_batches(ROWS.schema, ROWS.to_batches(max_chunksize=1))
    assert run_query("SELECT k FROM source WHERE s IS NOT NULL", {"source": reader})["k"].to_pylist() == [
        3,
        2,
    ]


def test_a_query_joins_several_tables() -> None:
    names = pa.table({"k": [1, 2, 3], "name": ["one", "two", "three"]})
    out = run_query("SELECT name FROM a JOIN b USING (k) ORDER BY a.ts", {"a": ROWS, "b": names})
    assert out["name"].to_pylist() == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("kind", "read", "values"),
    [
        (pa.float16(), pa.float32(), [1.5, None, 65504.0]),
        (pa.list_(pa.float16(), 2), pa.list_(pa.float32(), 2), [[1.5, -0.25], None, [0.0, 2.0]]),
        (pa.duration("ns"), pa.int64(), [1, None, 1001]),
        (pa.struct([("age", pa.duration("ns"))]), pa.struct([("age", pa.int64())]), [{"age": 1}, None]),
        (pa.map_(pa.string(), pa.float16()), pa.map_(pa.string(), pa.float32()), [[("a", 1.5)], []]),
        (pa.large_list(pa.duration("ns")), pa.large_list(pa.int64()), [[1, None], []]),
    ],
    ids=str,
)
def test_sql_reads_exactly_what_it_has_no_type_for(
    kind: pa.DataType, read: pa.DataType, values: list[Any]
) -> None:
    rows = pa.table({"v": pa.array(values, read).cast(kind)})
    assert run_query("SELECT v FROM source", {"source": rows})["v"].to_pylist() == values
    stream = pa.RecordBatchReader.from_batches(rows.schema, rows.to_batches())
    assert run_query("SELECT v FROM source", {"source": stream})["v"].to_pylist() == values


def test_the_schema_of_a_query_needs_no_rows() -> None:
    found = query_schema("SELECT k + 1 AS k, ts FROM source", {"source": ROWS.schema})
    assert found == pa.schema([("k", pa.int64()), ("ts", pa.timestamp("ns", "UTC"))])


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM missing",
        "COPY (SELECT 1) TO 'x.csv'",
        "CREATE TABLE x (i INTEGER)",
        "INSERT INTO source VALUES (1)",
        "ATTACH 'x.db'",
        "INSTALL httpfs",
        "SET threads = 4",
        "PRAGMA version",
        "SELECT 1; SELECT 2",
        "DROP TABLE source",
        "",
    ],
)
def test_nothing_outside_the_tables_is_within_reach(
    sql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DefinitionError):
        run_query(sql, {"source": ROWS})
    assert not list(tmp_path.iterdir())


def test_python_variables_are_not_tables() -> None:
    hidden = ROWS
    with pytest.raises(DefinitionError, match="hidden"):
        run_query("SELECT * FROM hidden", {"source": hidden})


def test_a_value_that_fails_is_an_expression_error() -> None:
    with pytest.raises(ExpressionError, match="Division by zero"):
        run_query("SELECT k // 0 FROM source", {"source": ROWS})


def test_a_syntax_error_says_where() -> None:
    with pytest.raises(DefinitionError, match="syntax error"):
        parse_select("SELEC 1")


def test_a_closed_sandbox_says_so() -> None:
    box = Sandbox()
    box.close()
    box.close()
    with pytest.raises(StorageError, match="closed"):
        box.rows("SELECT 1")


@pytest.mark.parametrize("name", ["plain", 'with "quotes"', "semi;colon", "ünï"])
def test_any_name_can_be_quoted(name: str) -> None:
    table = pa.table({name: [1]})
    assert run_query(f"SELECT {quoted(name)} AS x FROM source", {"source": table})["x"].to_pylist() == [1]  # noqa: S608
