"""A source's query: SQL over the table `source` in which every row is made from one row."""

from collections.abc import Iterator
from typing import Final

from featurestore.catalog.functions import Node, calls_other_rows, child_nodes
from featurestore.catalog.parsing import walk_checked
from featurestore.errors import DefinitionError, LeakageError
from featurestore.storage.duckdb_sql import parse_select

_TABLE: Final = "source"
# Words that mean the clock or the session where no column has their name.
_WORDS: Final = frozenset(
    {
        *("current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"),
        *("current_user", "session_user", "user", "current_role"),
        *("current_schema", "current_catalog", "current_database"),
    }
)
_CLAUSES: Final = {
    "modifiers": "DISTINCT, ORDER BY or LIMIT",
    "group_expressions": "GROUP BY",
    "group_sets": "GROUP BY",
    "having": "HAVING",
    "qualify": "QUALIFY",
    "sample": "a sample",
}
_HINT: Final = (
    "a query computes columns and filters rows: SELECT …, expression AS name FROM source WHERE …; what looks "
    "at other rows is an Aggregation of a view, which sees only what a reader may see"
)


def check_query(query: str, what: str) -> None:
    """Refuse a query in which a row depends on other rows, on the clock or on chance.

    Allowed are columns, expressions, WHERE, UNNEST, subqueries in FROM, WITH, and UNION ALL.

    Raises:
        LeakageError: a window, an aggregate, a join or anything else that reads other rows.
        DefinitionError: not one SELECT over `source`, or a function that is not pure.
    """
    _check_node(parse_select(query), query, what, frozenset({_TABLE}))


def _check_node(node: Node, query: str, what: str, tables: frozenset[str]) -> None:
    for entry in node.get("cte_map", {}).get("map", ()):
        _check_node(entry["value"]["query_node"], query, what, tables)
        tables |= {entry["key"]}
    if node["type"] == "SET_OPERATION_NODE" and node["setop_type"] == "UNION" and node["setop_all"]:
        if node.get("modifiers"):
            raise _reads_rows(what, query, _CLAUSES["modifiers"])
        for child in node["children"]:
            _check_node(child, query, what, tables)
        return
    if node["type"] != "SELECT_NODE":
        raise _reads_rows(what, query, node["type"].lower().replace("_", " "))
    for key, clause in _CLAUSES.items():
        if node.get(key):
            raise _reads_rows(what, query, clause)
    if node["aggregate_handling"] != "STANDARD_HANDLING":
        raise _reads_rows(what, query, "GROUP BY ALL")
    _check_from(node["from_table"], query, what, tables)
    for item in [*node["select_list"], *([node["where_clause"]] if node["where_clause"] else [])]:
        _check_item(item, query, what)


def _check_from(table: Node, query: str, what: str, tables: frozenset[str]) -> None:
    if table.get("sample"):
        raise _reads_rows(what, query, "a sample")
    if table["type"] == "SUBQUERY":
        _check_node(table["subquery"]["node"], query, what, tables)
    elif table["type"] == "JOIN":
        raise _reads_rows(what, query, "a join")
    elif table["type"] != "BASE_TABLE" or table["table_name"] not in tables or table.get("schema_name"):
        raise DefinitionError(
            f"{what}: its query reads {table.get('table_name') or table['type'].lower().replace('_', ' ')!r}",
            hint=f"the table is named {_TABLE!r}, and there is no other",
            sql=query,
        )


def _check_item(item: Node, query: str, what: str) -> None:
    for node in _all_nodes(item):
        if node["class"] in {"WINDOW", "SUBQUERY"} or calls_other_rows(node):
            called = node.get("function_name") or node["class"].lower()
            raise _reads_rows(what, query, called)
        if node["class"] == "COLUMN_REF" and node["column_names"][0].lower() in _WORDS:
            raise DefinitionError(
                f"{what}: its query reads {node['column_names'][0]}, which is not a column's value",
                hint="give a column of that name another one",
                sql=query,
            )
    for node in _scalar_roots(item):
        for _ in walk_checked(node, query):
            pass


def _all_nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in child_nodes(node):
        yield from _all_nodes(child)


def _scalar_roots(item: Node) -> Iterator[Node]:
    """Yield the expressions of an item: those in a star's REPLACE, those that UNNEST spreads, or itself."""
    unnest = item["class"] == "FUNCTION" and item["function_name"].lower() == "unnest"
    if item["class"] == "STAR" or unnest:
        yield from child_nodes(item)
    else:
        yield item


def _reads_rows(what: str, query: str, clause: str) -> LeakageError:
    return LeakageError(
        f"{what}: its query holds {clause}, so that a row would depend on other rows, later ones included",
        hint=_HINT,
        sql=query,
    )
