"""TrainingSet: a point-in-time join that can be materialized."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from featurestore.catalog.definition import Definition
from featurestore.catalog.entity import Entity, entity_names
from featurestore.catalog.label import Label
from featurestore.catalog.refs import Ref, reference
from featurestore.catalog.service import FeatureLike, FeatureService, feature_refs
from featurestore.catalog.source import Source
from featurestore.core.arguments import flag, listed, mapped
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
        what = f"training set {check_name(name, 'training set')!r}"
        if isinstance(features, FeatureService):
            service, features = features, ()
        if service is not None and features:
            raise DefinitionError(f"{what} has both features and a service", hint="give one")
        refs, views = ((), ()) if service is not None else feature_refs(what, features)
        names, objects = entity_names(what, entities)
        targets = listed(what, "labels", labels, "labels")
        self._put(
            name=name,
            spine=reference(what, "spine", spine, (Source,)),
            features=refs,
            service=None if service is None else reference(what, "service", service, (FeatureService,)),
            labels=tuple(reference(what, "labels", label, (Label,)) for label in targets),
            entities=names,
            key_map=_key_map(what, key_map),
            full_feature_names=flag(what, "full_feature_names", full_feature_names),
            objects=tuple(
                o for o in (spine, service, *views, *targets, *objects) if isinstance(o, Definition)
            ),
        )
        self._describe(owner, description, tags)

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
            **self.about(),
        }


def _key_map(what: str, key_map: KeyMap | None) -> dict[str, str | dict[str, str]]:
    form = '{"join_key": "spine_column"} or {"alias": {"join_key": "spine_column"}}'
    out: dict[str, str | dict[str, str]] = {}
    for key, value in mapped(what, "key_map", key_map, form).items():
        if isinstance(value, str):
            out[check_feature_name(key, "join key")] = check_feature_name(value, "spine column")
        elif isinstance(value, Mapping):
            out[check_name(key, "alias")] = {
                check_feature_name(k, "join key"): check_feature_name(v, "spine column")
                for k, v in value.items()
            }
        else:
            raise DefinitionError(f"{what}: key_map[{key!r}] is {value!r}", hint=f"write {form}")
    return out
