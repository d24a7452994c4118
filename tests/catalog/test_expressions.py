"""Expressions: functions of one row, typed at plan, exact in evaluation."""

import math
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.catalog.expressions import (
    check_expression,
    check_expressions,
    columns_of,
    evaluate,
    parse_expression,
    parse_many,
)
from featurestore.errors import DefinitionError, ExpressionError
from featurestore.storage.duckdb_sql import sandbox

NS = pa.timestamp("ns", "UTC")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SCHEMA = pa.schema(
    [
        ("bid", pa.float64()),
        ("ask", pa.float64()),
        ("n", pa.int64()),
        ("small", pa.int8()),
        ("sym", pa.dictionary(pa.int32(), pa.string())),
        ("ts", NS),
        ("flag", pa.bool_()),
        ("money", pa.decimal128(10, 2)),
        ("list", pa.list_(pa.float64())),
        ("vector", pa.list_(pa.float32(), 2)),
        ("start", pa.struct([("mid", pa.float64())])),
        ("age", pa.duration("ns")),
        ("odd name", pa.int32()),
    ]
)

IMPURE = {
    "the clock": "now()",
    "the clock by another name": "get_current_timestamp()",
    "the clock as an age": "age(ts)",
    "the clock inside a macro": "ago(INTERVAL 1 DAY)",
    "local time": "current_localtimestamp()",
    "today": "today()",
    "chance": "random()",
    "a random id": "uuid()",
    "a time-ordered id": "uuidv7()",
    "chance inside a lambda": "list_transform(list, lambda x: x + random())",
    "a sequence": "nextval('s')",
    "a setting": "current_setting('threads')",
    "a variable": "getvariable('x')",
    "the environment": "getenv('HOME')",
    "the build": "version()",
    "a hash of this build": "hash(bid)",
    "waiting": "sleep_ms(1)",
    "raising": "error('x')",
    "a log entry": "write_log('x')",
}
OTHER_ROWS = {
    "an aggregate": "sum(bid)",
    "a count": "count(*)",
    "a quantile": "median(bid)",
    "a window": "row_number() OVER ()",
    "a running sum": "sum(bid) OVER (ORDER BY ts)",
    "a lag": "lag(bid)",
    "a filtered aggregate": "max(bid) FILTER (WHERE flag)",
    "many rows out of one": "unnest(list)",
    "a subquery": "(SELECT 1)",
    "exists": "EXISTS (SELECT 1)",
    "in a subquery": "bid IN (SELECT 1)",
    "any of a list, a subquery in disguise": "bid = ANY(list)",
}
OUTSIDE = {
    "a text file": "read_text('/etc/passwd')",
    "a csv file": "read_csv('/etc/passwd')",
    "a glob": "glob('/*')",
    "another catalog": "system.main.now()",
    "a schema": "main.abs(bid)",
    "a pragma": "pragma_version()",
    "the plan of a query": "(FROM duckdb_settings())",
}
MORE = {
    "two columns": "bid, ask",
    "an alias": "bid AS x",
    "a from": "bid FROM t",
    "a where": "bid WHERE true",
    "an order": "bid ORDER BY 1",
    "a limit": "bid LIMIT 1",
    "distinct": "DISTINCT bid",
    "a second statement": "bid; SELECT 1",
    "another statement": "1; DROP TABLE x",
    "brackets that close ours": "bid) + (ask",
    "a comment that never ends": "bid /* x",
    "a star": "*",
    "a star of columns": "COLUMNS('b.*')",
    "a parameter": "$1",
    "a question mark": "?",
    "a position": "#1",
    "an arrow lambda": "list_transform(list, x -> x)",
    "default": "DEFAULT",
    "a union": "1 UNION SELECT 2",
    "nothing": "  ",
    "half a sum": "bid +",
}


@pytest.mark.parametrize(
    "sql", [pytest.param(v, id=k) for k, v in (IMPURE | OTHER_ROWS | OUTSIDE | MORE).items()]
)
def test_what_is_not_a_function_of_one_row_is_refused(sql: str) -> None:
    with pytest.raises(DefinitionError):
        parse_expression(sql)
    with pytest.raises(DefinitionError):
        check_expression(sql, SCHEMA)


@pytest.mark.parametrize("sql", [None, 5, b"bid", ["bid"]])
def test_what_is_no_text_is_refused(sql: Any) -> None:
    with pytest.raises(DefinitionError, match="not an SQL expression"):
        parse_expression(sql)


@pytest.mark.parametrize(
    ("sql", "kind", "columns"),
    [
        ("(bid + ask) / 2", pa.float64(), {"bid", "ask"}),
        ("n * 2", pa.int64(), {"n"}),
        ("n / 2", pa.float64(), {"n"}),
        ("small + small", pa.int8(), {"small"}),
        ("bid > ask", pa.bool_(), {"bid", "ask"}),
        ("CASE WHEN flag THEN bid ELSE 0 END", pa.float64(), {"flag", "bid"}),
        ("coalesce(bid, ask, 0)", pa.float64(), {"bid", "ask"}),
        ("nullif(n, 0)", pa.int64(), {"n"}),
        ("if(flag, 1, 2)", pa.int32(), {"flag"}),
        ("upper(sym)", pa.string(), {"sym"}),
        ("sym IN ('AIG', 'IBM')", pa.bool_(), {"sym"}),
        ("bid BETWEEN 1 AND ask", pa.bool_(), {"bid", "ask"}),
        ("money * 2", pa.decimal128(18, 2), {"money"}),
        ("epoch_ns(ts)", pa.int64(), {"ts"}),
        ("hour(ts)", pa.int64(), {"ts"}),
        ("ts::TIMESTAMPTZ + INTERVAL 1 DAY", pa.timestamp("us", "UTC"), {"ts"}),
        ("date_trunc('day', ts)", pa.timestamp("us", "UTC"), {"ts"}),
        ("greatest(ts, ts)", NS, {"ts"}),
        ("list_sum(list)", pa.float64(), {"list"}),
        ("list[1]", pa.float64(), {"list"}),
        ("[x * 2 FOR x IN list IF x > bid]", pa.list_(pa.field("l", pa.float64())), {"list", "bid"}),
        ("list_transform(list, lambda x: x + n)", pa.list_(pa.field("l", pa.float64())), {"list", "n"}),
        ("start.mid * 2", pa.float64(), {"start"}),
        ('"odd name" + 1', pa.int32(), {"odd name"}),
        ("TRY(1 // n)", pa.int64(), {"n"}),
        ("bid -- a comment", pa.float64(), {"bid"}),
        ("TRY_CAST(sym AS INTEGER)", pa.int32(), {"sym"}),
        ("1", pa.int32(), set()),
    ],
)
def test_types_and_columns_of_an_expression(sql: str, kind: pa.DataType, columns: set[str]) -> None:
    assert check_expression(sql, SCHEMA) == kind
    assert columns_of(sql) == columns


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        pytest.param("bidd", "did you mean 'bid'", id="a near name is told"),
        pytest.param("BID", "did you mean 'bid'", id="case counts"),
        pytest.param(
            "current_date", "'current_date', which is not there", id="a word that would be the clock"
        ),
        pytest.param("current_user", "which is not there", id="a word that would be the session"),
        pytest.param("bid.x", "has no field 'x'", id="a field of a number"),
        pytest.param("start.mud", "did you mean 'mid'", id="an unknown field"),
        pytest.param("bid + sym", "does not fit", id="a number and a text"),
        pytest.param(
            "ts + INTERVAL 1 DAY", "would round to microseconds", id="a calendar step of nanoseconds"
        ),
        pytest.param("epoch(ts - ts)", "epoch_ns\\(a\\) - epoch_ns\\(b\\)", id="a difference of nanoseconds"),
        pytest.param("coalesce(ts, ts) - ts", "would round", id="a difference behind coalesce"),
        pytest.param("make_timestamp_ns(n) + INTERVAL 1 DAY", "would round", id="a step of made nanoseconds"),
        pytest.param("abs(age)", "cannot hold exactly", id="a duration"),
        pytest.param("NULL", "always null", id="no type"),
        pytest.param("INTERVAL 1 MONTH", "no exact length", id="an interval"),
        pytest.param("upperr(sym)", "no such scalar function", id="an unknown function"),
    ],
)
def test_what_does_not_fit_the_columns_says_why(sql: str, says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        check_expression(sql, SCHEMA)


def test_columns_that_differ_in_case_alone_cannot_both_be_read() -> None:
    schema = pa.schema([("bid", pa.int64()), ("BID", pa.int64())])
    assert check_expression("BID", schema) == pa.int64()
    with pytest.raises(DefinitionError, match="one name in SQL"):
        check_expression("bid + BID", schema)


def test_one_wrong_expression_among_many_is_the_one_named() -> None:
    with pytest.raises(DefinitionError, match="'bid \\+ sym'"):
        check_expressions({"a": "bid", "b": "bid + sym", "c": "n"}, SCHEMA)


def test_parsing_many_is_parsing_each() -> None:
    texts = [f"bid * {i} + ask" for i in range(450)]
    parse_many(texts)
    assert [columns_of(t) for t in texts[:3]] == [{"bid", "ask"}] * 3
    with pytest.raises(DefinitionError, match="more than one expression"):
        parse_many(["bid + 1", "bid, ask"])


def test_nanoseconds_stay_exact_through_an_expression() -> None:
    times = [1_234_567_891_234_567_891, -1, 0, None, 2**62]
    table = pa.table({"ts": pa.array(times, NS), "later": pa.array([t and t + 108 for t in times], NS)})
    out = evaluate(
        {
            "same": "coalesce(ts, later)",
            "gap": "epoch_ns(later) - epoch_ns(ts)",
            "max": "greatest(ts, later)",
        },
        table,
    )
    assert out["same"].type == NS
    assert out["same"].cast(pa.int64()).to_pylist() == times
    assert out["max"].cast(pa.int64()).to_pylist() == [
        t if t is None else max(t, t and t + 108) for t in times
    ]
    assert [g for g in out["gap"].to_pylist() if g] == [108, 108, 108]


INSTANTS = [0, -1, 1, 999, 1_000, 86_399_999_999_999, 86_400_000_000_000, -86_400_000_000_001, 10**18 + 999]


@pytest.mark.parametrize("unit", [NS, pa.timestamp("ns")], ids=["UTC", "naive"])
def test_calendar_functions_take_the_instant_that_a_time_lies_in(unit: pa.DataType) -> None:
    """DuckDB itself would round 23:59:59.9999999 up to the next day."""
    table = pa.table({"ts": pa.array(INSTANTS, unit), "other": pa.array(INSTANTS[::-1], unit)})
    out = evaluate(
        {
            "hour": "hour(ts)",
            "day": "date_part('day', coalesce(ts, other))",
            "date": "ts::DATE",
            "micros": "epoch_us(ts)",
            "cast": "epoch_us(ts::TIMESTAMPTZ)",
            "cut": "epoch_us(date_trunc('hour', ts))",
            "text": "strftime(ts, '%H:%M:%S.%n')",
            "later": "epoch_us(CASE WHEN ts > other THEN ts ELSE other END)",
        },
        table,
    )
    seconds = [t // 10**9 for t in INSTANTS]
    days = [EPOCH + timedelta(seconds=s) for s in seconds]
    assert out["hour"].to_pylist() == [d.hour for d in days]
    assert out["day"].to_pylist() == [d.day for d in days]
    assert out["date"].to_pylist() == [d.date() for d in days]
    assert out["micros"].to_pylist() == out["cast"].to_pylist() == [t // 1_000 for t in INSTANTS]
    assert out["cut"].to_pylist() == [s // 3600 * 3600 * 10**6 for s in seconds]
    assert out["text"].to_pylist() == [
        f"{d:%H:%M:%S}.{t % 10**9:09d}" for d, t in zip(days, INSTANTS, strict=True)
    ]
    assert out["later"].to_pylist() == [
        max(a, b) // 1_000 for a, b in zip(INSTANTS, INSTANTS[::-1], strict=True)
    ]


@settings(deadline=None)
@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=20))
def test_no_time_is_ever_rounded_up(times: list[int]) -> None:
    out = evaluate({"us": "epoch_us(ts::TIMESTAMP WITH TIME ZONE)"}, pa.table({"ts": pa.array(times, NS)}))
    assert out["us"].to_pylist() == [t // 1_000 for t in times]


def test_nan_null_and_infinity_stay_apart() -> None:
    table = pa.table({"x": pa.array([math.nan, None, math.inf, -0.0, 1.5])})
    out = evaluate({"same": "x * 1", "null": "x IS NULL", "nan": "isnan(x)", "half": "x / 0"}, table)
    assert math.isnan(out["same"][0].as_py())
    assert out["same"].to_pylist()[1:3] == [None, math.inf]
    assert math.copysign(1, out["same"][3].as_py()) == -1
    assert out["null"].to_pylist() == [False, True, False, False, False]
    assert out["nan"].to_pylist()[:2] == [True, None]
    assert out["half"][4].as_py() == math.inf


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.none() | st.integers(-(2**31), 2**31), st.none() | st.floats(width=64)), max_size=40
    )
)
def test_rows_keep_their_order_and_python_agrees(rows: list[tuple[int | None, float | None]]) -> None:
    table = pa.table(
        {"a": pa.array([r[0] for r in rows], pa.int64()), "x": pa.array([r[1] for r in rows], pa.float64())}
    )
    out = evaluate({"double": "a * 2", "sum": "x + x", "known": "a IS NOT NULL AND x IS NOT NULL"}, table)
    assert out["double"].to_pylist() == [a and a * 2 for a, _ in rows]
    expected = pa.array([None if x is None else x + x for _, x in rows], pa.float64())
    assert out["sum"].equals(expected) or repr(out["sum"].to_pylist()) == repr(expected.to_pylist())
    assert out["known"].to_pylist() == [a is not None and x is not None for a, x in rows]


def test_a_million_rows_keep_their_order() -> None:
    table = pa.table({"a": pa.array(range(1_000_000), pa.int64())})
    assert evaluate({"b": "a * 3 - a"}, table)["b"].equals(pa.array(range(0, 2_000_000, 2), pa.int64()))


def test_chunks_do_not_change_the_answer() -> None:
    whole = pa.table({"a": [1, 2, 3, None, 5], "s": ["x", None, "y", "z", ""]})
    split = pa.concat_tables([whole.slice(0, 2), whole.slice(2, 0), whole.slice(2)])
    expressions = {"b": "a + length(s)", "t": "s || 'é'"}
    assert evaluate(expressions, whole) == evaluate(expressions, split)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", None, "b"]).dictionary_encode(),
        pa.array([b"ab", None, b"cd"], pa.binary(2)),
        pa.array([1, None, 3], pa.duration("ns")),
        pa.array([1.5, None, 2.5], pa.float16()),
        pa.array([[1, 2], None, [3, 4]], pa.list_(pa.float32(), 2)),
        pa.array([Decimal("1.25"), None, Decimal("2.50")], pa.decimal256(50, 2)),
        pa.array([{"a": 1}, None, {"a": 2}]),
        pa.array(["a", None, "b"], pa.large_string()),
        pa.array([1, None, 3], pa.timestamp("us", "Europe/Berlin")),
    ],
    ids=lambda c: str(c.type),
)
def test_an_expression_that_is_a_column_gives_it_unchanged(column: pa.Array) -> None:
    table = pa.table({"x y": column, "n": [1, 2, 3]})
    out = evaluate({"copy": '"x y"', "more": "n + 1"}, table)
    assert out["copy"].equals(column)
    assert out["copy"].type == column.type == check_expression('"x y"', table.schema)
    assert list(out) == ["copy", "more"]


def test_half_precision_is_computed_as_single_precision() -> None:
    half = pa.array([1.5, None, 65504.0, -(2.0**-24)], pa.float16())
    table = pa.table({"h": half, "n": pa.array([2, 2, 2, 2], pa.int32())})
    out = evaluate({"x": "h * n"}, table)["x"]
    assert out.type == check_expression("h * n", table.schema) == pa.float32()
    assert out.to_pylist() == [3.0, None, 131008.0, -(2.0**-23)]


def test_a_constant_has_a_value_for_every_row() -> None:
    assert evaluate({"one": "1"}, pa.table({"a": [1, 2, 3]}))["one"].to_pylist() == [1, 1, 1]
    assert evaluate({"one": "1"}, pa.table({"a": pa.array([], pa.int64())}))["one"].to_pylist() == []
    assert evaluate({}, pa.table({"a": [1]})) == {}


def test_the_type_at_plan_is_the_type_at_evaluation() -> None:
    table = SCHEMA.empty_table()
    for sql in ["money * 2", "n / 2", "upper(sym)", "list[1]", "start.mid", "flag AND bid > 1", "small + 1"]:
        assert evaluate({"x": sql}, table)["x"].type == check_expression(sql, SCHEMA)


def test_a_value_that_fails_names_its_expression_and_feature() -> None:
    table = pa.table({"n": [1, 0], "m": pa.array([2**63 - 1, 1], pa.int64())})
    with pytest.raises(ExpressionError, match="bad = '1 // n'") as raised:
        evaluate({"good": "n + 1", "bad": "1 // n"}, table)
    assert raised.value.context["name"] == "bad"
    with pytest.raises(ExpressionError, match=r"[Oo]verflow"):
        evaluate({"over": "m + 1"}, table)
    assert evaluate({"good": "TRY(1 // n)"}, table)["good"].to_pylist() == [1, None]


def test_a_failure_leaves_the_next_evaluation_sound() -> None:
    for _ in range(3):
        with pytest.raises(ExpressionError):
            evaluate({"bad": "1 // n"}, pa.table({"n": [0]}))
        assert evaluate({"bad": "1 // n"}, pa.table({"n": [1]}))["bad"].to_pylist() == [1]


def test_a_column_that_is_missing_at_evaluation_is_named() -> None:
    with pytest.raises(DefinitionError, match="'n', which is not there"):
        evaluate({"x": "n + 1"}, pa.table({"m": [1]}))


def test_the_same_expressions_over_other_types_are_bound_anew() -> None:
    assert evaluate({"x": "n + n"}, pa.table({"n": [1]}))["x"].type == pa.int64()
    assert evaluate({"x": "n + n"}, pa.table({"n": [1.5]}))["x"].to_pylist() == [3.0]
    assert evaluate({"x": "n + n"}, pa.table({"n": pa.array([1], pa.int8())}))["x"].type == pa.int8()


def test_threads_evaluate_side_by_side() -> None:
    results: dict[int, list[int]] = {}

    def work(seed: int) -> None:
        for _ in range(20):
            results[seed] = evaluate({"x": "n * 2"}, pa.table({"n": [seed, seed + 1]}))["x"].to_pylist()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: [2 * i, 2 * i + 2] for i in range(6)}


def test_many_different_expressions_do_not_pile_up() -> None:
    for i in range(300):
        assert evaluate({"x": f"n + {i}"}, pa.table({"n": [1]}))
    assert len(sandbox()._prepared) <= 256
