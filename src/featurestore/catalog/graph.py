"""Order in a graph of definitions."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from featurestore.catalog.snapshot import KIND_WORDS, Key
from featurestore.errors import DefinitionError


def topological_order(reads: Mapping[Key, AbstractSet[Key]]) -> list[Key]:
    """Return keys so that what is read comes before what reads it; among equals by kind and name.

    Args:
        reads: What each reads directly; nothing outside the keys.

    Raises:
        DefinitionError: they run in a circle, which is named; `context["circle"]` holds its keys.
    """
    order: list[Key] = []
    done: set[Key] = set()
    for start in sorted(reads):
        if start in done:
            continue
        path = [start]
        rests = [iter(sorted(reads[start]))]
        while path:
            following = next((k for k in rests[-1] if k not in done), None)
            if following is None:
                done.add(path[-1])
                order.append(path.pop())
                rests.pop()
                continue
            if following in path:
                error = _circle([*path[path.index(following) :], following])
                raise error
            path.append(following)
            rests.append(iter(sorted(reads[following])))
    return order


def _circle(keys: list[Key]) -> DefinitionError:
    return DefinitionError(
        "definitions run in a circle: " + " → ".join(f"{KIND_WORDS[kind]} {name!r}" for kind, name in keys),
        hint="a chain of views ends in a source",
        circle=keys,
    )
