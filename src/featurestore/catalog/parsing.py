"""Expressions in text: parsed by DuckDB, and refused where they are more than a function of one row."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from featurestore.catalog.functions import PLAIN_NODES, ROW_HINT, Node, check_function, child_nodes
from featurestore.errors import DefinitionError
from featurestore.storage.duckdb_sql import sandbox

K = TypeVar("K")
T = TypeVar("T")

_BATCH: Final = 200
_REFUSED_CLASS: Final = {
    "SUBQUERY": "a subquery",
    "WINDOW": "a window function",
    "STAR": "a star",
    "PARAMETER": "a parameter",
    "POSITIONAL_REFERENCE": "a positional reference",
    "LAMBDA": "a lambda with an arrow (write lambda x: …)",
}
_OPERAND: Final = r"[\s(]*(?:[A-Za-z_]\w*|\d+(?:\.\d+)?)[\s)]*"
# Names and numbers with + - * / between: nothing in it to refuse, so DuckDB need not be loaded for it.
_ARITHMETIC: Final = re.compile(rf"{_OPERAND}(?:[-+*/]{_OPERAND})*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Expression:
    """A checked expression.

    Attributes:
        sql: The text as written.
        paths: The column references, each as its parts, in order of first use.
        bare_column: The column, where the expression is nothing but one.
    """

    sql: str
    paths: tuple[tuple[str, ...], ...]
    bare_column: str | None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns read, in order of first use."""
        return tuple(dict.fromkeys(path[0] for path in self.paths))


def columns_of(sql: str) -> set[str]:
    """Return the names of the columns that an expression reads.

    Raises:
        DefinitionError: it is not a scalar expression over one row.
    """
    return set(parse_expression(sql).columns)


def parse_expression(sql: str) -> Expression:
    """Parse an expression and refuse everything that is not a function of one row.

    Raises:
        DefinitionError: a syntax error, a subquery, an aggregate, a window, a parameter, a function that
            depends on anything but its arguments, or more than one expression.
    """
    known = _PARSED.get(_text(sql))
    return _checked(sql, expression_node(sql)) if known is None else known


def _checked(sql: str, node: Node) -> Expression:
    paths = tuple(dict.fromkeys(tuple(n["column_names"]) for n in walk_checked(node, sql)))
    bare = paths[0][0] if node["class"] == "COLUMN_REF" and len(paths[0]) == 1 else None
    return remember(_PARSED, sql, Expression(sql, paths, bare))


def check_scalar(sql: str) -> None:
    """Refuse, where it is defined, what is not a function of one row; plain arithmetic is left to `plan`.

    Raises:
        DefinitionError: as `parse_expression`.
    """
    if _ARITHMETIC.fullmatch(_text(sql)) is None:
        parse_expression(sql)


def expression_node(sql: str) -> Node:
    """Return the syntax tree of one expression, its functions not yet looked at.

    Raises:
        DefinitionError: a syntax error, or anything more than one expression.
    """
    return _parse_nodes([_text(sql)])[0]


def parse_many(expressions: Iterable[str]) -> None:
    """Parse expressions in few queries, so that `parse_expression` finds them done.

    Raises:
        DefinitionError: one of them is not a function of one row.
    """
    new = [sql for sql in dict.fromkeys(expressions) if _text(sql) not in _PARSED]
    for start in range(0, len(new), _BATCH):
        batch = new[start : start + _BATCH]
        for sql, node in zip(batch, _parse_nodes(batch), strict=True):
            _checked(sql, node)


def _text(sql: object) -> str:
    if not isinstance(sql, str) or not sql.strip():
        raise DefinitionError(f"{sql!r} is not an SQL expression", hint=ROW_HINT)
    return sql


def _parse_nodes(expressions: Sequence[str]) -> list[Node]:
    # Alone it shows what it is; in brackets, that it stays so where it is put into a query.
    texts = sandbox().rows(
        "SELECT json_serialize_sql('SELECT ' || x), json_serialize_sql('SELECT (\n' || x || '\n)') "
        "FROM (SELECT unnest(?::VARCHAR[]) AS x)",
        [list(expressions)],
    )
    nodes = []
    for sql, (alone, bracketed) in zip(expressions, texts, strict=True):
        node = _only_expression(json.loads(alone), sql)
        _only_expression(json.loads(bracketed), sql)
        nodes.append(node)
    return nodes


_CACHE_MAX: Final = 100_000
_PARSED: dict[str, Expression] = {}


def remember(cache: dict[K, T], key: K, value: T) -> T:
    """Keep a value in a cache that begins anew when it is full."""
    if len(cache) >= _CACHE_MAX:
        cache.clear()
    cache[key] = value
    return value


def _only_expression(parsed: Node, sql: str) -> Node:
    if parsed["error"]:
        raise DefinitionError(
            f"expression {sql!r} cannot be parsed: {parsed.get('error_message', 'not a SELECT')}",
            hint=ROW_HINT,
            sql=sql,
        )
    select: Node = parsed["statements"][0]["node"] if len(parsed["statements"]) == 1 else {}
    items = select.get("select_list", [])
    extras = [
        key
        for key in (
            "where_clause",
            "group_expressions",
            "group_sets",
            "having",
            "sample",
            "qualify",
            "modifiers",
        )
        if select.get(key)
    ]
    whole = (
        select.get("type") == "SELECT_NODE"
        and len(items) == 1
        and not extras
        and not select["cte_map"]["map"]
        and select["from_table"]["type"] == "EMPTY"
    )
    if not whole or items[0].get("alias"):
        raise DefinitionError(
            f"{sql!r} is more than one expression",
            hint="write one expression, without AS, FROM, WHERE or a second column",
            sql=sql,
        )
    node: Node = items[0]
    return node


def walk_checked(node: Node, sql: str, bound: frozenset[str] = frozenset()) -> Iterator[Node]:
    """Yield the column references under a node, checking every node on the way.

    Raises:
        DefinitionError: a node that is not a function of one row.
    """
    kind = node["class"]
    if kind == "COLUMN_REF":
        if node["column_names"][0] not in bound:
            yield node
        return
    if kind == "LAMBDA" and node.get("syntax_type") == "LAMBDA_KEYWORD":
        names = _lambda_names(node["lhs"])
        yield from walk_checked(node["expr"], sql, bound | names)
        return
    if kind == "FUNCTION":
        check_function(node, sql)
    elif kind not in PLAIN_NODES:
        what = _REFUSED_CLASS.get(kind, f"{kind.lower().replace('_', ' ')}")
        raise DefinitionError(f"expression {sql!r} holds {what}", hint=ROW_HINT, sql=sql)
    for child in child_nodes(node):
        yield from walk_checked(child, sql, bound)


def _lambda_names(lhs: Node) -> frozenset[str]:
    if lhs["class"] == "COLUMN_REF":
        return frozenset(lhs["column_names"])
    return frozenset(n["column_names"][0] for n in child_nodes(lhs) if n["class"] == "COLUMN_REF")
