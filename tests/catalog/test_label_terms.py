"""Label expressions taken apart into what lies after t, what is summed over it, and what was known at t."""

import pyarrow as pa
import pytest

from featurestore.catalog.expressions import evaluate
from featurestore.catalog.label_terms import LabelTerm, parse_label
from featurestore.errors import DefinitionError


@pytest.mark.parametrize(
    ("sql", "plain", "terms", "start"),
    [
        ("mid / start.mid - 1", ("mid",), [], ("mid",)),
        ("count(*) > 0", (), [("*", "count", "count(*)")], ()),
        ("sum(size) / count(size)", (), [("size", "sum", "sum(size)"), ("size", "count", "count(size)")], ()),
        ("avg(price) - start.price", (), [("price", "mean", "mean(price)")], ("price",)),
        (
            "max(p) > 1.01 * start.p AND min(p) < p",
            ("p",),
            [("p", "max", "max(p)"), ("p", "min", "min(p)")],
            ("p",),
        ),
        ("last(mid) - first(mid)", (), [("mid", "last", "last(mid)"), ("mid", "first", "first(mid)")], ()),
        ("count(DISTINCT venue)", (), [("venue", "n_distinct", "n_distinct(venue)")], ()),
        ("sum(size) + sum(size)", (), [("size", "sum", "sum(size)")], ()),
        ("CASE WHEN sum(v) > 0 THEN 'up' END", (), [("v", "sum", "sum(v)")], ()),
        ('"odd name" > start."odd name"', ("odd name",), [], ("odd name",)),
    ],
)
def test_a_label_falls_into_its_parts(
    sql: str, plain: tuple[str, ...], terms: list[tuple[str, str, str]], start: tuple[str, ...]
) -> None:
    parsed = parse_label(sql)
    assert parsed.plain == plain
    assert list(parsed.terms) == [LabelTerm(*t) for t in terms]
    assert parsed.start == start


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        pytest.param("start.mid", "nothing after t", id="only the past"),
        pytest.param("1", "nothing after t", id="a constant"),
        pytest.param("start", "start alone", id="the start of nothing"),
        pytest.param("sum(a * b)", "reads one column", id="an aggregate of an expression"),
        pytest.param("sum(start.mid)", "reads one column", id="an aggregate of the start"),
        pytest.param("sum(x) FILTER (WHERE y)", "reads one column", id="a filtered aggregate"),
        pytest.param("first(x ORDER BY y)", "reads one column", id="an ordered aggregate"),
        pytest.param("sum(DISTINCT x)", "reads one column", id="a distinct sum"),
        pytest.param("max(x, 2)", "reads one column", id="the two greatest"),
        pytest.param("median(x)", "aggregate", id="an aggregate that no kernel has"),
        pytest.param("sum(sum(x))", "reads one column", id="an aggregate of an aggregate"),
        pytest.param("mid + now()", "arguments", id="the clock"),
        pytest.param("sum(x) OVER ()", "window", id="a window"),
        pytest.param("(SELECT max(x))", "subquery", id="a subquery"),
        pytest.param("mid, bid", "more than one", id="two expressions"),
    ],
)
def test_what_is_no_label_says_why(sql: str, says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        parse_label(sql)


def test_the_rewritten_expression_computes_over_terms_and_start() -> None:
    parsed = parse_label("sum(size) / count(*) + last(mid) / start.mid - mid")
    table = pa.table(
        {
            "sum(size)": [10, 9],
            "count(*)": [4, 3],
            "last(mid)": [3.0, 8.0],
            "mid": [1.0, None],
            "start": pa.array([{"mid": 2.0}, {"mid": 4.0}]),
        }
    )
    assert evaluate({"y": parsed.expression}, table)["y"].to_pylist() == [10 / 4 + 1.5 - 1.0, None]
