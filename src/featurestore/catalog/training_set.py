"""TrainingSet: a point-in-time join that can be materialized."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, overload

from featurestore.catalog.definition import Definition, metadata_spec
from featurestore.catalog.entity import Entity, entity_names
from featurestore.catalog.label import Label
from featurestore.catalog.refs import Ref, parse_ref
from featurestore.catalog.service import FeatureLike, FeatureService, feature_refs
from featurestore.catalog.source import Source
from featurestore.core.names import check_feature_name, check_name
from featurestore.errors import DefinitionError

KeyMap = Mapping[str, str | Mapping[str, str]]


@dataclass(frozen=True, slots=True, eq=False, repr=False, init=False)
class TrainingSet(Definition):
    """One row per spine row: the spine's columns, then features as of its event timestamp, then labels.

    Attributes:
        spine: The name of the source whose rows are the examples.
        features: References in order; empty where `service` names them.
        service: The name of the feature service, or `None`.
        labels: Names of labels.
        entities: Whose keys place rows in buckets and shards; by default those of the spine.
        key_map: Where the spine names a join key otherwise: `{"symbol": "ticker"}`; or, for one view joined
            more than once, by alias: `{"origin": {"airport": "from_airport"}}` with features
            `["origin=airport:delay", …]`, whose columns are then named `origin__delay`.
        full_feature_names: Whether feature columns are named `view__feature`.
    """

    kind: ClassVar[str] = "training_set"

    spine: Ref
    features: tuple[Ref, ...]
    service: Ref | None
    labels: tuple[Ref, ...]
    entities: tuple[str, ...]
    key_map: KeyMap
    full_feature_names: bool
    owner: str
    description: str
    tags: Mapping[str, str]
    objects: tuple[Definition, ...]

    def __init__(
        self,
        name: str,
        *,
        spine: Source | str,
        features: Sequence[FeatureLike] | FeatureService = (),
        service: FeatureService | str | None = None,
        labels: Sequence[Label | str] = (),
        entities: Sequence[Entity | str] = (),
        key_map: KeyMap | None = None,
        full_feature_names: bool = False,
        owner: str = "",
        description: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Validate and freeze; the features are listed, or a service (object or name) lists them.

        Raises:
            DefinitionError: a bad name, no features, or a key_map that is not one of the two forms.
        """
        if isinstance(features, FeatureService):
            service, features = features, ()
        if service is not None and features:
            raise DefinitionError(f"training set {name!r} has both features and a service", hint="give one")
        put = object.__setattr__
        put(self, "name", check_name(name, "training set"))
        put(self, "spine", _ref_of(spine))
        put(
            self,
            "features",
            () if service is not None else feature_refs(f"training set {name!r}", features),
        )
        put(self, "service", _ref_of(service))
        put(
            self,
            "labels",
            tuple(_ref_of(x) for x in labels),
        )
        put(self, "entities", entity_names(f"training set {name!r}", entities))
        put(self, "key_map", _key_map(name, key_map or {}))
        put(self, "full_feature_names", full_feature_names)
        put(self, "owner", owner)
        put(self, "description", description)
        put(self, "tags", dict(tags or {}))
        given: list[object] = [spine, service, *features, *labels, *entities]
        put(self, "objects", tuple(o for o in given if isinstance(o, Definition)))

    def spec(self) -> dict[str, Any]:
        """Return the training set as plain JSON values."""
        return {
            "kind": self.kind,
            "name": self.name,
            "spine": str(self.spine),
            "features": [str(f) for f in self.features],
            "service": str(self.service) if self.service else None,
            "labels": [str(label) for label in self.labels],
            "entities": list(self.entities),
            "key_map": {k: v if isinstance(v, str) else dict(v) for k, v in self.key_map.items()},
            "full_feature_names": self.full_feature_names,
            **metadata_spec(self.owner, self.description, self.tags),
        }


@overload
def _ref_of(given: Definition | str) -> Ref: ...


@overload
def _ref_of(given: Definition | str | None) -> Ref | None: ...


def _ref_of(given: Definition | str | None) -> Ref | None:
    if given is None:
        return None
    return parse_ref(given) if isinstance(given, str) else Ref(given.name)


def _key_map(name: str, key_map: KeyMap) -> dict[str, str | dict[str, str]]:
    out: dict[str, str | dict[str, str]] = {}
    for key, value in key_map.items():
        if isinstance(value, str):
            out[check_feature_name(key, "join key")] = check_feature_name(value, "spine column")
        elif isinstance(value, Mapping):
            out[check_name(key, "alias")] = {
                check_feature_name(k, "join key"): check_feature_name(v, "spine column")
                for k, v in value.items()
            }
        else:
            raise DefinitionError(
                f"training set {name!r}: key_map[{key!r}] is {value!r}",
                hint='write {"join_key": "spine_column"} or {"alias": {"join_key": "spine_column"}}',
            )
    return out
