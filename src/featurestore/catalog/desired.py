"""Desired: the catalog as it would be after an apply, in which references are looked up."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from featurestore.catalog.definition import Definition
from featurestore.catalog.entity import Entity
from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.label import Label
from featurestore.catalog.on_demand import OnDemandFeatureView
from featurestore.catalog.refs import Ref
from featurestore.catalog.service import FeatureService
from featurestore.catalog.snapshot import KIND_WORDS, CatalogSnapshot, Key, Record
from featurestore.catalog.source import Source
from featurestore.catalog.training_set import TrainingSet
from featurestore.core.names import near
from featurestore.errors import DefinitionError, LeakageError, NotFoundError

ROWS: Final = (Source.kind, FeatureView.kind)
FEATURES: Final = (FeatureView.kind, OnDemandFeatureView.kind)


@dataclass(frozen=True, slots=True)
class Dependency:
    """A reference that a definition makes, and where it may lead."""

    ref: Ref
    kinds: tuple[str, ...]


def dependencies(definition: Definition) -> list[Dependency]:
    """Return the references of a definition, in order."""
    match definition:
        case Source():
            return _entities(definition.entities)
        case FeatureView() | Label():
            entities = definition.entities if isinstance(definition, FeatureView) else ()
            return [Dependency(definition.source.whole(), ROWS), *_entities(entities)]
        case OnDemandFeatureView():
            return [Dependency(ref.whole(), FEATURES) for ref in definition.inputs]
        case FeatureService():
            return [Dependency(ref.whole(), FEATURES) for ref in definition.features]
        case TrainingSet():
            return [
                Dependency(definition.spine.whole(), (Source.kind,)),
                *(Dependency(ref.whole(), FEATURES) for ref in definition.features),
                *(
                    [Dependency(definition.service.whole(), (FeatureService.kind,))]
                    if definition.service
                    else []
                ),
                *(Dependency(ref.whole(), (Label.kind,)) for ref in definition.labels),
                *_entities(definition.entities),
            ]
        case _:
            return []


def _entities(names: Iterable[str]) -> list[Dependency]:
    return [Dependency(Ref(name), (Entity.kind,)) for name in names]


@dataclass(slots=True)
class Desired:
    """The catalog as it would be: what is in force, without what is removed, with what is given.

    Attributes:
        bound: Records made so far; they stand before those of the base.
    """

    base: CatalogSnapshot
    given: Mapping[Key, Definition] = field(default_factory=dict)
    removed: frozenset[Key] = frozenset()
    bound: dict[Key, Record] = field(default_factory=dict)

    def has(self, key: Key) -> bool:
        """Tell whether a definition would be in force."""
        return key in self.given or (key in self.base.heads and key not in self.removed)

    def definition(self, key: Key) -> Definition:
        """Return a definition that would be in force."""
        given = self.given.get(key)
        return given if given is not None else self.base.record(Ref(key[1]), key[0]).definition

    def key_of(self, holder: Definition, dependency: Dependency) -> Key | None:
        """Return what a reference leads to; `None` where it gives a version, which never moves.

        Raises:
            NotFoundError: nothing of that name.
            DefinitionError: more than one thing of that name, so that it is not clear which is meant.
            LeakageError: it leads to a label.
        """
        ref = dependency.ref
        keys = [(kind, ref.name) for kind in dependency.kinds]
        own = (holder.kind, holder.name)
        found = [key for key in keys if key != own and self.has(key)]
        if ref.version is not None:
            if any((*key, ref.version) in self.base.records for key in keys):
                return None
            found = [key for key in found if key in self.given]
        if len(found) > 1:
            kinds = " and a ".join(KIND_WORDS[kind] for kind, _ in found)
            raise DefinitionError(
                f"{described(holder)} reads {ref.name!r}, which is a {kinds}",
                hint="give one of the two another name",
                name=ref.name,
            )
        if not found:
            error = self._nothing(holder, dependency, own in keys)
            raise error
        return found[0]

    def _nothing(
        self, holder: Definition, dependency: Dependency, itself: bool
    ) -> DefinitionError | NotFoundError:
        ref, what = dependency.ref, " or ".join(KIND_WORDS[kind] for kind in dependency.kinds)
        if itself and ref.version is None and self.has((holder.kind, ref.name)) and holder.name == ref.name:
            return DefinitionError(
                f"{described(holder)} reads itself", hint="give its source, or another view"
            )
        if Label.kind not in dependency.kinds and self.has((Label.kind, ref.name)):
            return LeakageError(
                f"{described(holder)} reads label {ref.name!r}, whose value lies after its reader's time",
                hint="labels go into the labels=[…] of a training set, and nowhere else",
                name=ref.name,
            )
        names = {name for kind, name in (*self.base.heads, *self.given) if kind in dependency.kinds}
        was = any((kind, ref.name) in self.removed for kind in dependency.kinds)
        return NotFoundError(
            f"{described(holder)} refers to {what} {str(ref)!r}, which "
            + ("this plan removes" if was else "is not there"),
            hint="remove what refers to it as well" if was else near(ref.name, names - {holder.name}),
            name=ref.name,
        )

    def record(self, holder: Definition, dependency: Dependency) -> Record:
        """Return the record a reference leads to; see `key_of`.

        Raises:
            NotFoundError: nothing of that name or version.
        """
        key = self.key_of(holder, dependency)
        if key is None:
            return self.base.record(dependency.ref, *dependency.kinds)
        record = self.bound.get(key) or self.base.record(Ref(key[1]), key[0])
        if dependency.ref.version not in {None, record.version}:
            raise NotFoundError(
                f"{described(holder)} refers to {dependency.ref}, and its version would be {record.version}",
                hint="leave the version out",
            )
        return record


def described(definition: Definition) -> str:
    """Return what a message calls a definition, such as `feature view 'quote'`."""
    return f"{KIND_WORDS[definition.kind]} {definition.name!r}"
