"""Nanosecond times in SQL: where DuckDB would round to microseconds, and what is computed instead.

DuckDB casts nanosecond timestamps to microseconds by rounding to the nearest: 23:59:59.9999999 becomes
the next day, and an event moves into its own future. Here a calendar function or a cast takes the
microsecond that the time lies in, and arithmetic that would round without a word is refused.
"""

import copy
import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final

from featurestore.catalog.functions import Node, child_nodes
from featurestore.errors import DefinitionError
from featurestore.storage.duckdb_sql import sandbox

IsNanos = Callable[[tuple[str, ...]], bool]

_CALENDAR: Final = frozenset(
    {
        *(
            "hour",
            "minute",
            "second",
            "millisecond",
            "microsecond",
            "epoch",
            "epoch_ms",
            "epoch_us",
            "julian",
        ),
        *("day", "dayofmonth", "weekday", "dayofweek", "isodow", "dayofyear", "dayname", "last_day"),
        *("week", "weekofyear", "yearweek", "month", "monthname", "quarter", "year", "isoyear", "era"),
        *("decade", "century", "millennium", "date_part", "datepart", "date_trunc", "datetrunc"),
        *("time_bucket", "date_diff", "datediff", "date_sub", "datesub"),
    }
)
_SAME_TYPE: Final = frozenset(
    {"greatest", "least", "if", "ifnull", "nullif", "coalesce", "timezone", "max_by"}
)
_EXACT_TARGETS: Final = frozenset({"VARCHAR", "DATE", "TIMESTAMP_NS", "TIMESTAMPTZ_NS"})
_MICROS: Final = "make_timestamptz((epoch_ns(x) - ((epoch_ns(x) % 1000) + 1000) % 1000) // 1000)"


def exact_node(node: Node, is_nanos: IsNanos, sql: str) -> Node:
    """Return a tree in which nothing rounds nanoseconds; the same object where nothing had to change.

    Args:
        is_nanos: Whether a column path is a nanosecond timestamp.

    Raises:
        DefinitionError: a sum or difference of nanosecond times, which SQL would round.
    """
    kind = node["class"]
    if kind in {"COLUMN_REF", "CONSTANT"}:
        return node
    name = node["function_name"].lower() if kind == "FUNCTION" else ""
    if name in {"+", "-"} and any(_gives_nanos(child, is_nanos) for child in child_nodes(node)):
        raise DefinitionError(
            f"expression {sql!r} adds or subtracts nanosecond times, which SQL would round to microseconds",
            hint="write epoch_ns(a) - epoch_ns(b), or cast the time first: ts::TIMESTAMPTZ + INTERVAL 1 DAY",
            sql=sql,
        )
    rounds = name in _CALENDAR or (kind == "CAST" and _target(node) not in _EXACT_TARGETS)
    changed: dict[int, Node] = {}
    for child in child_nodes(node):
        inner = exact_node(child, is_nanos, sql)
        if rounds and _gives_nanos(child, is_nanos):
            inner = _floored(inner)
        if inner is not child:
            changed[id(child)] = inner
    return _with_children(node, changed) if changed else node


def _target(node: Node) -> str:
    return str(node["type_expr"].get("type_name", "")).upper()


def _gives_nanos(node: Node, is_nanos: IsNanos) -> bool:
    kind = node["class"]
    if kind == "COLUMN_REF":
        return is_nanos(tuple(node["column_names"]))
    if kind == "CAST":
        return "_NS" in _target(node)
    if kind == "FUNCTION":
        name = node["function_name"].lower()
        if name == "make_timestamp_ns":
            return True
        if name not in _SAME_TYPE:
            return False
    elif kind != "CASE" and node.get("type") != "OPERATOR_COALESCE":
        return False
    return any(_gives_nanos(child, is_nanos) for child in _values(node))


def _values(node: Node) -> Iterator[Node]:
    if node["class"] == "CASE":
        yield from (check["then_expr"] for check in node["case_checks"])
        yield node["else_expr"]
    else:
        yield from child_nodes(node)


def _floored(node: Node) -> Node:
    return _replaced(copy.deepcopy(_template()), node)


@lru_cache(maxsize=1)
def _template() -> Node:
    text = sandbox().rows("SELECT json_serialize_sql(?)", [f"SELECT {_MICROS}"])[0][0]
    node: Node = json.loads(text)["statements"][0]["node"]["select_list"][0]
    return node


def _replaced(template: Node, node: Node) -> Node:
    changed = {
        id(child): node if child.get("column_names") == ["x"] else _replaced(child, node)
        for child in child_nodes(template)
    }
    return _with_children(template, changed)


def _with_children(node: Node, changed: dict[int, Node]) -> Node:
    """Return a node with some of the nodes directly below it replaced."""

    def walk(value: object) -> object:
        if isinstance(value, list):
            return [walk(item) for item in value]
        if isinstance(value, dict):
            if "class" in value:
                return changed.get(id(value), value)
            return {key: walk(item) for key, item in value.items()}
        return value

    return {key: walk(value) for key, value in node.items()}


def text_of_node(node: Node) -> str:
    """Return the SQL text of one expression's tree."""
    select = json.loads(_empty_select())
    select["statements"][0]["node"]["select_list"] = [node]
    text: str = sandbox().rows("SELECT json_deserialize_sql(?::JSON)", [json.dumps(select)])[0][0]
    return text.removeprefix("SELECT ").strip()


@lru_cache(maxsize=1)
def _empty_select() -> str:
    text: str = sandbox().rows("SELECT json_serialize_sql('SELECT 1')")[0][0]
    return text
