"""Plan: what an apply would do, as data."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from featurestore.catalog.commit import Entry
from featurestore.catalog.definition import METADATA_FIELDS
from featurestore.catalog.entity import Entity
from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.on_demand import OnDemandFeatureView
from featurestore.catalog.service import FeatureService
from featurestore.catalog.snapshot import KIND_WORDS, Record
from featurestore.catalog.source import Source
from featurestore.catalog.training_set import TrainingSet

MATERIALIZED: Final = (FeatureView.kind, TrainingSet.kind)
_LISTS: Final = ("features", "aggregations")


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field of a definition before and after; `None` stands for not there."""

    field: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Change:
    """What a plan does to one definition.

    Attributes:
        action: `add`; `change`: a new version; `describe`: metadata or recorded columns only, same version;
            `remove`; `restore`: an older version comes back into force.
        version: The version in force afterwards (before, for a removal).
        before: The version in force now, `None` for a new one.
        fields: What differs, field by field; lists of features name by name.
        because: Why a definition changes that was not touched itself, such as `source/quotes@1 → @2`.
        breaking: What would stop working for those who use it, empty for nothing.
    """

    action: str
    kind: str
    name: str
    version: int
    before: int | None
    fields: tuple[FieldChange, ...]
    because: tuple[str, ...]
    breaking: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the change as JSON values."""
        return {
            "action": self.action,
            "kind": self.kind,
            "name": self.name,
            "version": self.version,
            "before": self.before,
            "fields": [{"field": f.field, "before": f.before, "after": f.after} for f in self.fields],
            "because": list(self.because),
            "breaking": list(self.breaking),
        }

    def __str__(self) -> str:
        return f"{self.action} {KIND_WORDS[self.kind]} {self.name}@{self.version}"

    def lines(self) -> list[str]:
        """Return the change in text: itself, then field by field, why, and what breaks, indented."""
        fields = [f"{f.field}: {f.before!r} -> {f.after!r}" for f in self.fields]
        told = [*fields, *(f"because {b}" for b in self.because), *(f"breaking: {b}" for b in self.breaking)]
        return [str(self), *(f"    {line}" for line in told)]


@dataclass(frozen=True, slots=True)
class Plan:
    """What an apply would do; made without writing anything.

    Attributes:
        base: The catalog version it was made against.
        changes: In the order of dependency: what is read comes before what reads it.
        rematerialize: Views and training sets whose stored data is of an older version, in order.
        entries: What the commit would hold.
        notes: What a person should know and nothing has to change for.
    """

    base: int
    changes: tuple[Change, ...]
    rematerialize: tuple[str, ...]
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether applying would change nothing."""
        return not self.changes

    @property
    def is_breaking(self) -> bool:
        """Whether something that is used now would stop working."""
        return any(change.breaking for change in self.changes)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {
            "base": self.base,
            "breaking": self.is_breaking,
            "changes": [change.to_json() for change in self.changes],
            "rematerialize": list(self.rematerialize),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        if self.is_empty:
            return f"nothing to do: the catalog is at version {self.base}"
        return "\n".join(line for change in self.changes for line in change.lines())


def compare(old: Record | None, new: Record | None, action: str) -> Change:
    """Describe the step from one record to another as a change."""
    record = new or old
    assert record is not None  # noqa: S101 -- a change has at least one side
    return Change(
        action=action,
        kind=record.kind,
        name=record.name,
        version=record.version,
        before=old.version if old else None,
        fields=tuple(field_changes(old, new)) if old and new else (),
        because=tuple(_moved_pins(old, new)) if old and new else (),
        breaking=tuple(broken(old, new)) if old else (),
    )


def field_changes(old: Record, new: Record) -> list[FieldChange]:
    """Return the fields in which two records differ; features and aggregations name by name."""
    changes: list[FieldChange] = []
    for key in old.spec:
        before, after = old.spec[key], new.spec.get(key)
        if before == after:
            continue
        named = _by_name(key, before), _by_name(key, after)
        if named[0] is not None and named[1] is not None and named[0] != named[1]:
            changes.extend(_named_changes(key, named[0], named[1]))
        else:
            changes.append(FieldChange(key, before, after))
    if old.columns != new.columns and old.kind == Source.kind:
        changes.extend(_named_changes("columns", dict(old.columns), dict(new.columns)))
    return changes


def _by_name(key: str, value: Any) -> dict[str, Any] | None:
    if key in _LISTS and isinstance(value, list) and value and isinstance(value[0], Mapping):
        return {item["name"]: {k: v for k, v in item.items() if k != "name"} for item in value}
    return {} if key in _LISTS and value == [] else None


def _named_changes(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterable[FieldChange]:
    for name in dict.fromkeys([*before, *after]):
        if before.get(name) != after.get(name) or (name in before) != (name in after):
            yield FieldChange(f"{key}.{name}", _shown(before.get(name), name), _shown(after.get(name), name))


def _shown(value: Any, name: str) -> Any:
    if isinstance(value, Mapping) and set(value) == {"expression"}:
        return name if value["expression"] is None else value["expression"]
    return value


def _moved_pins(old: Record, new: Record) -> list[str]:
    before = {pin.partition("@")[0]: pin for pin in old.pins}
    return [
        f"{before[name]} → @{pin.rpartition('@')[2]}"
        for pin in new.pins
        if (name := pin.partition("@")[0]) in before and before[name] != pin
    ]


def broken(old: Record, new: Record | None) -> list[str]:
    """Say what a change takes away from those who use a definition now; empty for nothing."""
    if new is None:
        return [f"{KIND_WORDS[old.kind]} {old.name} is gone"]
    if old.version == new.version:
        return []
    before, after = dict(old.columns), dict(new.columns)
    lines = [f"{name} is gone" for name in before if name not in after]
    lines += [f"{n}: {before[n]} becomes {after[n]}" for n in before if n in after and before[n] != after[n]]
    lines += [
        f"{field}: {old.spec[field]} becomes {new.spec[field]}"
        for field in _IDENTITY.get(old.kind, ())
        if old.spec[field] != new.spec[field]
    ]
    if old.kind == FeatureService.kind and not lines and list(after)[: len(before)] != list(before):
        lines.append("the order of its features changes")
    return lines


_IDENTITY: Final[Mapping[str, Sequence[str]]] = {
    Entity.kind: ("join_keys",),
    Source.kind: ("timestamp_field",),
    FeatureView.kind: ("entities",),
    OnDemandFeatureView.kind: ("request",),
    TrainingSet.kind: ("spine",),
}


def means_the_same(old: Record, spec: Mapping[str, Any], pins: Sequence[str]) -> bool:
    """Tell whether a definition still means what a record says, metadata aside."""
    return list(old.pins) == list(pins) and all(
        old.spec.get(key) == value for key, value in spec.items() if key not in METADATA_FIELDS
    )
