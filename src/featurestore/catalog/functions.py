"""Which of DuckDB's functions an expression may call: scalar, and a function of their arguments alone."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from featurestore.core.names import near
from featurestore.errors import DefinitionError
from featurestore.storage.duckdb_sql import sandbox

Node = dict[str, Any]

ROW_HINT: Final = "an expression reads the columns of one row: operators, CASE, casts and scalar functions"
PLAIN_NODES: Final = frozenset(
    {"CONSTANT", "OPERATOR", "COMPARISON", "CONJUNCTION", "CASE", "CAST", "BETWEEN", "COLLATE", "TYPE"}
)
# DuckDB calls these consistent, yet they read the clock, the build or its internals.
_IMPURE: Final = frozenset(
    {"current_localtime", "current_localtimestamp", "version", "hash", "invoke", "remap_struct"}
)


def child_nodes(node: Node) -> Iterator[Node]:
    """Yield the nodes directly below one."""
    stack: list[Any] = list(reversed([v for v in node.values() if isinstance(v, (dict, list))]))
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack.extend(reversed(value))
        elif isinstance(value, dict):
            if "class" in value:
                yield value
            else:
                stack.extend(reversed([v for v in value.values() if isinstance(v, (dict, list))]))


def check_function(node: Node, sql: str) -> None:
    """Refuse a call that is not a pure scalar function.

    Raises:
        DefinitionError: an aggregate, a table function, a volatile function, or an unknown one.
    """
    name = node["function_name"].lower()
    known = _functions()
    refuse = _reason(name, node, known)
    if refuse is None:
        return
    hint = near(name, known) if name not in known else ROW_HINT
    raise DefinitionError(f"expression {sql!r} calls {name}(): {refuse}", hint=hint, sql=sql, function=name)


def calls_other_rows(node: Node) -> bool:
    """Tell whether a node is a call of an aggregate or window function."""
    known = _functions().get(node["function_name"].lower()) if node["class"] == "FUNCTION" else None
    return known is not None and known.aggregate


def _reason(name: str, node: Node, known: "Mapping[str, _Function]") -> str | None:
    function = known.get(name)
    if function is None:
        return "there is no such scalar function"
    if function.aggregate:
        return "it is an aggregate: it would read other rows"
    checks = (
        (node.get("schema") or node.get("catalog"), "a function is named without a schema"),
        (function.other, "it is not a scalar function of one row"),
        (
            name in _IMPURE or name.startswith("__internal") or not function.consistent,
            "its result depends on more than its arguments",
        ),
        (name == "age" and len(node["arguments"]) == 1, "with one argument it reads the clock"),
        (
            node.get("filter") or node.get("distinct") or node["order_bys"].get("orders"),
            "DISTINCT, FILTER and ORDER BY belong to aggregates",
        ),
    )
    return next((reason for fails, reason in checks if fails), None)


@dataclass(frozen=True, slots=True)
class _Function:
    aggregate: bool
    other: bool
    consistent: bool


@lru_cache(maxsize=1)
def _functions() -> dict[str, _Function]:
    found = sandbox().rows(
        "SELECT lower(function_name), list_distinct(list(function_type)), "
        "bool_and(coalesce(stability, 'CONSISTENT') = 'CONSISTENT'), list(macro_definition) "
        "FROM duckdb_functions() WHERE function_type NOT IN ('pragma', 'table_macro') GROUP BY ALL"
    )
    out: dict[str, _Function] = {}
    macros: dict[str, list[str]] = {}
    for name, kinds, consistent, bodies in found:
        out[name] = _Function(
            aggregate="aggregate" in kinds or "window" in kinds,
            other=not {"scalar", "macro"} & set(kinds),
            consistent=bool(consistent) and "macro" not in kinds,
        )
        if "macro" in kinds:
            macros[name] = [b for b in bodies if b]
    _allow_pure_macros(out, macros)
    return out


def _allow_pure_macros(known: dict[str, _Function], macros: Mapping[str, Sequence[str]]) -> None:
    """Let a macro be called where its own body is a pure expression."""
    pure = _Function(aggregate=False, other=False, consistent=True)
    bodies = [(name, body) for name, texts in macros.items() for body in texts]
    trees = sandbox().rows(
        "SELECT json_serialize_sql('SELECT ' || x) FROM unnest(?) AS t(x)", [[body for _, body in bodies]]
    )
    nodes: dict[str, list[Node]] = {}
    for (name, _), (text,) in zip(bodies, trees, strict=True):
        parsed = json.loads(text)
        item = {"class": "SUBQUERY"} if parsed["error"] else parsed["statements"][0]["node"]["select_list"][0]
        nodes.setdefault(name, []).append(item)
    for _ in range(4):  # macros call macros; the deepest chain is three
        for name, trees_of in nodes.items():
            if all(_is_pure(tree, known) for tree in trees_of):
                known[name] = pure


def _is_pure(node: Node, known: Mapping[str, _Function]) -> bool:
    if node["class"] == "FUNCTION":
        if _reason(node["function_name"].lower(), node, known) is not None:
            return False
    elif node["class"] == "COLUMN_REF":
        return not node["column_names"][-1].startswith("current_")
    elif node["class"] not in PLAIN_NODES:
        return False
    return all(_is_pure(child, known) for child in child_nodes(node))
