"""Collecting definitions: what was given, and what that holds by reference."""

from collections.abc import Iterable, Iterator

from featurestore.catalog.definition import Definition
from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.label import Label
from featurestore.catalog.on_demand import OnDemandFeatureView
from featurestore.catalog.service import FeatureService
from featurestore.catalog.snapshot import KIND_WORDS, Key
from featurestore.catalog.source import Source
from featurestore.catalog.training_set import TrainingSet
from featurestore.core.arguments import listed
from featurestore.errors import DefinitionError


def collect(objects: Iterable[Definition] | Definition) -> dict[Key, Definition]:
    """Return the given definitions and all they hold as objects, by kind and name.

    Raises:
        DefinitionError: something that is no definition, or two different ones of one kind and name.
    """
    found: dict[Key, Definition] = {}
    given = (objects,) if isinstance(objects, Definition) else objects
    waiting = list(listed("a plan", "objects", given, "definitions"))
    waiting.reverse()
    while waiting:
        item = waiting.pop()
        if not isinstance(item, Definition):
            raise DefinitionError(
                f"{item!r} is no definition",
                hint="give entities, sources, views, services, labels and training sets",
            )
        key = (item.kind, item.name)
        other = found.get(key)
        if other is None:
            found[key] = item
            waiting.extend(reversed(list(held(item))))
        elif other is not item and other.spec() != item.spec():
            raise DefinitionError(
                f"two different {KIND_WORDS[item.kind]} definitions are named {item.name!r}: "
                + "; ".join(difference(other, item)),
                hint="give one of them another name",
                name=item.name,
            )
    return found


def held(item: Definition) -> Iterator[Definition]:
    """Yield the definitions that one holds as objects."""
    match item:
        case Source():
            yield from item.entity_objects
        case FeatureView():
            if item.source_object is not None:
                yield item.source_object
            yield from item.entity_objects
        case OnDemandFeatureView():
            yield from item.input_objects
        case FeatureService():
            yield from item.view_objects
        case Label():
            if item.source_object is not None:
                yield item.source_object
        case TrainingSet():
            yield from item.objects
        case _:
            return


def difference(old: Definition, new: Definition) -> list[str]:
    """Say in which fields two definitions differ, a line each."""
    before, after = old.spec(), new.spec()
    return [f"{key} {before[key]!r} and {after[key]!r}" for key in before if before[key] != after.get(key)]
