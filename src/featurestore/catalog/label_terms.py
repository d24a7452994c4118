"""Label expressions, taken apart: what lies after t, what is summed over it, and what was known at t."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from featurestore.catalog.functions import Node, check_function, child_nodes
from featurestore.catalog.nanoseconds import text_of_node
from featurestore.catalog.parsing import expression_node, parse_expression
from featurestore.errors import DefinitionError

START: Final = "start"
# SQL's name of an aggregate → the window function that computes it over (t, t + horizon].
TERM_FUNCTIONS: Final[Mapping[str, str]] = {
    "count_star": "count",
    "count": "count",
    "sum": "sum",
    "avg": "mean",
    "mean": "mean",
    "min": "min",
    "max": "max",
    "first": "first",
    "last": "last",
}


@dataclass(frozen=True, slots=True)
class LabelTerm:
    """One aggregate over `(t, t + horizon]`.

    Attributes:
        column: The column it reads; `"*"` counts rows.
        function: The window function: count, sum, mean, min, max, first, last or n_distinct.
        name: The column under which `ParsedLabel.expression` reads its value, such as `sum(size)`.
    """

    column: str
    function: str
    name: str


@dataclass(frozen=True, slots=True)
class ParsedLabel:
    """A label's expression as a scalar one over plain columns, term columns and the struct `start`.

    Attributes:
        expression: The scalar SQL expression.
        plain: Columns read at their newest value in `(t, t + horizon]`.
        terms: The aggregates, each once.
        start: Columns read as `start.column`: their value at t.
    """

    expression: str
    plain: tuple[str, ...]
    terms: tuple[LabelTerm, ...]
    start: tuple[str, ...]


@dataclass(slots=True)
class _Found:
    sql: str
    terms: dict[str, LabelTerm] = field(default_factory=dict)


@lru_cache(maxsize=4096)
def parse_label(expression: str) -> ParsedLabel:
    """Take a label's expression apart.

    Raises:
        DefinitionError: it is no scalar expression once its aggregates are replaced, an aggregate reads
            more than one plain column, or `start` is used otherwise than as `start.column`.
    """
    found = _Found(expression)
    rewritten = _without_terms(expression_node(expression), found)
    scalar = text_of_node(rewritten)
    parsed = parse_expression(scalar)
    plain: dict[str, None] = {}
    start: dict[str, None] = {}
    for path in parsed.paths:
        if path[0] == START:
            if len(path) == 1:
                raise DefinitionError(
                    f"label {expression!r} reads start alone",
                    hint='write start.column: the value of "column" at t; a column of the name "start" needs '
                    "another name",
                )
            start[path[1]] = None
        elif path[0] not in found.terms:
            plain[path[0]] = None
    if not (plain or found.terms):
        raise DefinitionError(
            f"label {expression!r} reads nothing after t",
            hint='name a column, such as "mid / start.mid - 1", or an aggregate, such as "count(*) > 0"',
        )
    return ParsedLabel(scalar, tuple(plain), tuple(found.terms.values()), tuple(start))


def _without_terms(node: Node, found: _Found) -> Node:
    """Return the tree with each aggregate replaced by a column of its name."""
    if node["class"] == "FUNCTION" and node["function_name"].lower() in TERM_FUNCTIONS:
        return _term_column(node, found)
    if node["class"] == "FUNCTION":
        check_function(node, found.sql)
    return {key: _replaced(value, found) for key, value in node.items()}


def _replaced(value: Any, found: _Found) -> Any:
    if isinstance(value, list):
        return [_replaced(item, found) for item in value]
    if isinstance(value, dict):
        if "class" in value:
            return _without_terms(value, found)
        return {key: _replaced(item, found) for key, item in value.items()}
    return value


def _term_column(node: Node, found: _Found) -> Node:
    called = node["function_name"].lower()
    arguments = list(child_nodes(node))
    paths = [a.get("column_names", []) for a in arguments]
    whole = called == "count_star"
    fits = not arguments if whole else (len(paths) == 1 and len(paths[0]) == 1)
    ordered = node["order_bys"].get("orders") or node.get("filter")
    if not fits or ordered or (node.get("distinct") and called != "count"):
        raise DefinitionError(
            f"label {found.sql!r}: {called.replace('_star', '')}() reads one column over (t, t + horizon]",
            hint="make a feature view with the inner expression as a feature and the label's source, "
            "then aggregate that feature",
            function=called,
        )
    column = "*" if whole else paths[0][0]
    function = "n_distinct" if node.get("distinct") else TERM_FUNCTIONS[called]
    name = f"{function}({column})"
    found.terms[name] = LabelTerm(column, function, name)
    return {
        "class": "COLUMN_REF",
        "type": "COLUMN_REF",
        "alias": "",
        "query_location": 0,
        "query_location_length": 0,
        "column_names": [name],
    }
