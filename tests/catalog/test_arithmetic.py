"""Arithmetic in NumPy gives DuckDB's answers, for any expression and any values."""

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.catalog.arithmetic import compile_arithmetic, read_column, write_column
from featurestore.catalog.expressions import evaluate
from featurestore.catalog.parsing import expression_node
from featurestore.errors import ExpressionError
from featurestore.storage.duckdb_sql import sandbox

TYPES = {
    "x": pa.float64(),
    "y": pa.float64(),
    "n": pa.int64(),
    "k": pa.int8(),
    "u": pa.uint32(),
    "p": pa.bool_(),
    "q": pa.bool_(),
}
SPECIAL = [0.0, -0.0, 1.0, -1.5, 0.1, math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 2.0**53 + 2]
DOUBLES = st.none() | st.sampled_from(SPECIAL) | st.floats(width=64)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "x": DOUBLES,
    "y": DOUBLES,
    "n": st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3),
    "k": st.none() | st.integers(-128, 127),
    "u": st.none() | st.integers(0, 2**32 - 1),
    "p": st.none() | st.booleans(),
    "q": st.none() | st.booleans(),
}
ROWS = st.lists(st.fixed_dictionaries(VALUES), max_size=12)


def of(inner: st.SearchStrategy[str], *patterns: str) -> st.SearchStrategy[str]:
    """Return texts in which each `{}` of a pattern is an inner text."""
    return st.sampled_from(patterns).flatmap(
        lambda pattern: st.tuples(*[inner] * pattern.count("{}")).map(lambda parts: pattern.format(*parts))
    )


def grown(
    leaves: st.SearchStrategy[str], tests: st.SearchStrategy[str], depth: int
) -> st.SearchStrategy[str]:
    """Return double expressions over leaves and conditions."""
    if depth == 0:
        return leaves
    inner = grown(leaves, tests, depth - 1)
    return st.one_of(
        of(inner, "({} + {})", "({} - {})", "({} * {})", "({} / {})", "-({})", "abs({})", "coalesce({}, {})"),
        of(inner, "nullif({}, {})", "sqrt({})", "floor({})", "ceil({})"),
        st.tuples(tests, inner, inner).map(lambda t: f"CASE WHEN {t[0]} THEN {t[1]} ELSE {t[2]} END"),
        st.tuples(tests, inner, tests, inner).map(
            lambda t: f"CASE WHEN {t[0]} THEN {t[1]} WHEN {t[2]} THEN {t[3]} ELSE NULL END"
        ),
    )


NUMBERS = st.sampled_from(["x", "y", "x", "n", "k", "u", "1", "0", "2.5", "0.1", "1e3", "-7"])
COMPARED = of(
    st.sampled_from(["x", "y", "x / y", "1", "0.5"]), "{} = {}", "{} <> {}", "{} < {}", "{} <= {}", "{} > {}"
)
COUNTED = of(st.sampled_from(["n", "k", "u", "0", "3"]), "{} = {}", "{} >= {}", "{} < {}")
ATOMS = st.sampled_from(
    ["p", "q", "x IS NULL", "y IS NOT NULL", "isnan(x)", "isfinite(y)", "x BETWEEN y AND 2.5"]
)
TESTS = st.one_of(ATOMS, COMPARED, COUNTED)
LOGIC = st.one_of(TESTS, of(TESTS, "({} AND {})", "({} OR {})", "NOT ({})", "({} OR ({} AND NOT {}))"))


def duckdb_answer(sql: str, table: pa.Table) -> pa.Array:
    """Return DuckDB's own answer."""
    return sandbox().select(f"({sql}) AS a", table).column(0).combine_chunks()


def agree(ours: pa.Array, theirs: pa.Array) -> bool:
    """Compare bit for bit, but for the sign of a zero and the payload of a NaN."""
    return ours.type == theirs.type and all(
        a is b is None or (a is not None and b is not None and (a == b or (a != a and b != b)))  # noqa: PLR0124 -- NaN
        for a, b in zip(ours.to_pylist(), theirs.to_pylist(), strict=True)
    )


def compared(sql: str, rows: list[dict[str, Any]]) -> bool:
    """Compute in both engines; returns whether NumPy took the expression."""
    table = pa.table({name: pa.array([r[name] for r in rows], kind) for name, kind in TYPES.items()})
    made = compile_arithmetic(expression_node(sql), TYPES)
    try:
        theirs = duckdb_answer(sql, table)
    except ExpressionError:  # an integer overflow, for example, which arithmetic leaves to DuckDB
        assert made is None, sql
        with pytest.raises(ExpressionError):
            evaluate({"a": sql}, table)
        return False
    assert agree(evaluate({"a": sql}, table)["a"], theirs), sql
    if made is None or made[0] != theirs.type:
        return False
    columns = {name: read_column(table.column(name).combine_chunks()) for name in TYPES}
    ours = write_column(made[1](columns), len(rows), made[0])
    assert agree(ours, theirs), sql
    return True


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=300, deadline=None)
@given(sql=grown(NUMBERS, LOGIC, 2) | grown(NUMBERS, LOGIC, 1) | LOGIC, rows=ROWS)
def test_any_expression_over_any_rows_has_duckdbs_answer(sql: str, rows: list[dict[str, Any]]) -> None:
    compared(sql, rows)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=20_000, deadline=None)
@given(sql=grown(NUMBERS, LOGIC, 3) | grown(NUMBERS, LOGIC, 2) | LOGIC, rows=ROWS)
def test_any_expression_at_length(sql: str, rows: list[dict[str, Any]]) -> None:
    compared(sql, rows)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "sql",
    [
        "(x + y) / 2",
        "x - y > 0.01",
        "x / nullif(y, 0)",
        "coalesce(x, y, 0)",
        "CASE WHEN p AND NOT q THEN x WHEN x > y THEN -x ELSE 0 END",
        "x BETWEEN y AND 10",
        "n / k",
        "n > 0 OR p",
        "abs(x - y) * 1e3",
        "sqrt(x) + floor(y) - ceil(x)",
        "isnan(x) OR x IS NULL",
    ],
)
def test_what_features_are_made_of_needs_no_query(sql: str) -> None:
    rows = [
        dict.fromkeys(TYPES, None),
        *({"x": a, "y": b, "n": 3, "k": -2, "u": 1, "p": a > b, "q": None} for a in SPECIAL for b in SPECIAL),
    ]
    assert compared(sql, rows)


@pytest.mark.parametrize(
    "sql",
    [
        "n + k",
        "n * 2",
        "n > 1.5",
        "x > n::DOUBLE",
        "upper('a')",
        "p + 1",
        "x % 2",
        "round(x, 2)",
        "ln(x)",
        "1 + 1",
        "n + 0.5",
        "greatest(x, y)",
        "p = q",
        "x = 'a'",
        "CASE WHEN p THEN n END",
        "p IS DISTINCT FROM q",
        "x ^ 2",
    ],
)
def test_what_is_not_exactly_the_same_is_left_to_duckdb(sql: str) -> None:
    assert compile_arithmetic(expression_node(sql), TYPES) is None


def test_a_slice_a_chunk_and_an_empty_table_are_read_right() -> None:
    whole = pa.table({"x": [1.0, None, 3.0, 4.0], "p": [True, False, None, True]})
    parts = pa.concat_tables([whole.slice(1, 2), whole.slice(3)])
    sql = {"a": "CASE WHEN p THEN x ELSE x * 2 END", "b": "x + 1"}
    assert evaluate(sql, parts)["a"].to_pylist() == [None, 6.0, 4.0]
    assert evaluate(sql, whole.slice(2, 1))["b"].to_pylist() == [4.0]
    assert evaluate(sql, whole.slice(4))["b"].to_pylist() == []
    assert evaluate({"a": "coalesce(2.5, x)"}, whole)["a"].to_pylist() == [2.5] * 4


@pytest.mark.parametrize("rows", [1, 2, 7, 1000])
def test_one_row_and_many_have_the_same_bits(rows: int) -> None:
    values = [0.1 * i - 3 for i in range(rows)]
    table = pa.table({"x": values, "y": values[::-1]})
    whole = evaluate({"a": "(x - y) / (x * x + 0.3) - y / 7"}, table)["a"]
    single = [
        evaluate({"a": "(x - y) / (x * x + 0.3) - y / 7"}, table.slice(i, 1))["a"][0].as_py()
        for i in range(rows)
    ]
    assert [v.hex() for v in whole.to_pylist()] == [v.hex() for v in single]
