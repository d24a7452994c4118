"""CatalogSnapshot: everything the catalog held at one of its versions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Final, TypeVar

import pyarrow as pa

from featurestore.catalog.definition import Definition
from featurestore.catalog.entity import Entity
from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.label import Label
from featurestore.catalog.on_demand import OnDemandFeatureView
from featurestore.catalog.refs import Ref, parse_ref
from featurestore.catalog.schemas import schema_of_spec
from featurestore.catalog.service import FeatureService
from featurestore.catalog.source import Source
from featurestore.catalog.specs import definition_from_spec
from featurestore.catalog.training_set import TrainingSet
from featurestore.core.names import an, near
from featurestore.errors import NotFoundError

Key = tuple[str, str]
AnyRef = Ref | str
D = TypeVar("D", bound=Definition)

# A name alone means the first of these kinds that has it.
PRECEDENCE: Final = (
    FeatureView.kind,
    OnDemandFeatureView.kind,
    FeatureService.kind,
    TrainingSet.kind,
    Label.kind,
    Source.kind,
    Entity.kind,
)
# Readers name these without saying what they are.
ASKED_BY_NAME: Final = frozenset(PRECEDENCE[:4])
KIND_WORDS: Final = {
    Entity.kind: "entity",
    Source.kind: "source",
    FeatureView.kind: "feature view",
    OnDemandFeatureView.kind: "on-demand view",
    FeatureService.kind: "feature service",
    Label.kind: "label",
    TrainingSet.kind: "training set",
}
_parse: Final[Callable[[str], Ref]] = lru_cache(maxsize=65536)(parse_ref)


def _ref_of(ref: object) -> Ref:
    if isinstance(ref, str):
        return _parse(ref)  # remembered: a catalog asks for the same ones again and again
    return ref if isinstance(ref, Ref) else parse_ref(ref)


@dataclass(frozen=True)
class Record:
    """One version of one definition, as the catalog holds it.

    Attributes:
        version: Its number; a change of meaning, its own or of what it reads, makes the next one.
        spec: The definition as JSON values.
        columns: Its schema as JSON values: a source's columns as read, a view's rows, a label's value.
        pins: What its references meant when it was applied, as `kind/name@version`.
        since: The catalog version that made it.
    """

    kind: str
    name: str
    version: int
    spec: Mapping[str, Any]
    columns: tuple[tuple[str, str], ...]
    pins: tuple[str, ...]
    since: int

    @property
    def key(self) -> Key:
        """Kind and name."""
        return self.kind, self.name

    @property
    def id(self) -> str:
        """The record among all: `kind/name@version`."""
        return f"{self.kind}/{self.name}@{self.version}"

    @cached_property
    def definition(self) -> Definition:
        """The definition, decoded at first use."""
        return definition_from_spec(self.spec)

    @cached_property
    def schema(self) -> pa.Schema:
        """The recorded schema, decoded at first use."""
        return schema_of_spec(self.columns)

    def pinned(self, name: str, *kinds: str) -> tuple[str, str, int] | None:
        """Return kind, name and version of what a reference by `name` meant."""
        for pin in self.pins:
            kind, pinned, version = split_id(pin)
            if pinned == name and kind in kinds:
                return kind, pinned, version
        return None


def split_id(text: str) -> tuple[str, str, int]:
    """Split `kind/name@version`."""
    kind, _, rest = text.partition("/")
    name, _, version = rest.partition("@")
    return kind, name, int(version)


@dataclass(frozen=True, eq=False)
class CatalogSnapshot:
    """What exists at a catalog version; immutable, shared by threads, decoded lazily.

    Attributes:
        version: The catalog version; 0 is the empty catalog.
        time_ns: When it was committed, ns since 1970 UTC.
        records: Every version of every definition so far, by (kind, name, version).
        heads: The version in force of each definition that is not removed.
        last: The last version number given to each, removed ones included.
    """

    version: int = 0
    time_ns: int = 0
    records: Mapping[tuple[str, str, int], Record] = field(default_factory=dict)
    heads: Mapping[Key, int] = field(default_factory=dict)
    last: Mapping[Key, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"CatalogSnapshot({self.version}, {len(self.heads)} definitions)"

    def get(self, ref: AnyRef, *kinds: str) -> Definition:
        """Return a definition by reference, the version in force unless the reference gives one.

        Args:
            kinds: Where to look, first to last; by default views, services, training sets, labels,
                sources, entities.

        Raises:
            NotFoundError: no such definition or version.
        """
        return self.record(ref, *kinds).definition

    def record(self, ref: AnyRef, *kinds: str) -> Record:
        """Return the record behind a reference; see `get`.

        Raises:
            NotFoundError: no such definition or version.
        """
        wanted = _ref_of(ref)
        for kind in kinds or PRECEDENCE:
            version = wanted.version or self.heads.get((kind, wanted.name))
            record = None if version is None else self.records.get((kind, wanted.name, version))
            if record is not None:
                return record
        error = self._not_found(wanted, kinds or PRECEDENCE)
        raise error

    def _not_found(self, ref: Ref, kinds: tuple[str, ...]) -> NotFoundError:
        what = KIND_WORDS[kinds[0]] if len(kinds) == 1 else "definition"
        at = f"version {self.version} of the catalog"
        last = next((self.last[k, ref.name] for k in kinds if (k, ref.name) in self.last), None)
        if last is None:
            names = [name for kind, name in self.heads if kind in kinds]
            other = next((KIND_WORDS[kind] for kind in PRECEDENCE if (kind, ref.name) in self.heads), None)
            found = f"no {what} {ref.name!r} in {at}" + (f": it is {an(other)}" if other else "")
            return NotFoundError(found, hint=near(ref.name, names), name=ref.name)
        if ref.version is None:
            return NotFoundError(
                f"{what} {ref.name!r} was removed before {at}",
                hint=f"its last version is still readable as {ref.name}@{last}",
                name=ref.name,
            )
        return NotFoundError(
            f"no version {ref.version} of {what} {ref.name!r} in {at}",
            hint="there is version 1" if last == 1 else f"there are versions 1 to {last}",
            name=ref.name,
        )

    def _typed(self, ref: AnyRef, kind: type[D]) -> D:
        found = self.record(ref, kind.kind).definition
        assert isinstance(found, kind)  # noqa: S101 -- the record's kind chose the class
        return found

    def entity(self, ref: AnyRef) -> Entity:
        """Return an entity."""
        return self._typed(ref, Entity)

    def source(self, ref: AnyRef) -> Source:
        """Return a source."""
        return self._typed(ref, Source)

    def view(self, ref: AnyRef) -> FeatureView:
        """Return a feature view."""
        return self._typed(ref, FeatureView)

    def on_demand(self, ref: AnyRef) -> OnDemandFeatureView:
        """Return an on-demand feature view."""
        return self._typed(ref, OnDemandFeatureView)

    def service(self, ref: AnyRef) -> FeatureService:
        """Return a feature service."""
        return self._typed(ref, FeatureService)

    def label(self, ref: AnyRef) -> Label:
        """Return a label."""
        return self._typed(ref, Label)

    def training_set(self, ref: AnyRef) -> TrainingSet:
        """Return a training set."""
        return self._typed(ref, TrainingSet)

    def definitions(self, kind: str | None = None) -> list[Definition]:
        """Return the definitions in force, of one kind or all, by kind and name."""
        return [record.definition for record in self.live(kind)]

    def live(self, kind: str | None = None) -> list[Record]:
        """Return the records in force, of one kind or all, by kind and name."""
        return [
            self.records[key[0], key[1], self.heads[key]]
            for key in sorted(self.heads)
            if kind is None or key[0] == kind
        ]

    def version_of(self, name: str, *kinds: str) -> int:
        """Return the version in force of a definition.

        Raises:
            NotFoundError: there is none of that name.
        """
        return self.record(Ref(name), *kinds).version

    def versions_of(self, ref: AnyRef, *kinds: str) -> list[Record]:
        """Return all versions of a definition, oldest first, removed or not."""
        wanted = _ref_of(ref)
        for kind in kinds or PRECEDENCE:
            last = self.last.get((kind, wanted.name), 0)
            found = [self.records.get((kind, wanted.name, v)) for v in range(1, last + 1)]
            if last:
                return [record for record in found if record is not None]
        return []

    def schema_of(self, ref: AnyRef, *kinds: str) -> pa.Schema:
        """Return the schema recorded at apply.

        A source: its columns as read. A view: its rows, that is keys, times, then features. A label: one
        column of its name. A service: its features. A training set: its whole output.

        Raises:
            NotFoundError: no such definition.
        """
        return self.record(ref, *kinds).schema

    def source_of(self, definition: Definition | AnyRef) -> Source | FeatureView:
        """Return what a view or a label reads, at the version its own version was applied with.

        Raises:
            NotFoundError: no such definition.
        """
        found = self.record_of_source(self.record_of(definition)).definition
        assert isinstance(found, (Source, FeatureView))  # noqa: S101 -- the kinds looked in
        return found

    def record_of_source(self, holder: Record) -> Record:
        """Return the record of what a view or a label reads.

        Raises:
            NotFoundError: it is not there.
        """
        ref = _parse(str(holder.spec["source"]))
        pinned = holder.pinned(ref.name, Source.kind, FeatureView.kind)
        if pinned is not None:
            kind, name, version = pinned
            return self.record(Ref(name, version), kind)
        return self.record(ref, Source.kind, FeatureView.kind)

    def record_of(self, definition: Definition | AnyRef) -> Record:
        """Return the record of a definition: the one it was read from, else the one in force.

        Raises:
            NotFoundError: no such definition.
        """
        if not isinstance(definition, Definition):
            return self.record(definition)
        key = (definition.kind, definition.name)
        for version in range(self.last.get(key, 0), 0, -1):
            record = self.records.get((*key, version))
            if record is not None and record.__dict__.get("definition") is definition:
                return record
        return self.record(Ref(definition.name), definition.kind)
