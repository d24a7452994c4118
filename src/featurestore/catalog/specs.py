"""Definitions as plain JSON values, and back."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from featurestore.catalog.aggregation import aggregation_from_spec
from featurestore.catalog.definition import Definition
from featurestore.catalog.entity import Entity
from featurestore.catalog.feature_view import Feature, FeatureView
from featurestore.catalog.label import Label
from featurestore.catalog.on_demand import OnDemandFeatureView
from featurestore.catalog.service import FeatureService
from featurestore.catalog.source import Source
from featurestore.catalog.training_set import TrainingSet
from featurestore.errors import CorruptDataError

Spec = Mapping[str, Any]


def definition_from_spec(spec: Spec) -> Definition:
    """Read back what `Definition.spec` wrote; the two are equal.

    Raises:
        CorruptDataError: an unknown kind, or a field is missing.
        DefinitionError: the values are not a valid definition.
    """
    build = _BUILDERS.get(str(spec.get("kind")))
    if build is None:
        raise CorruptDataError(
            f"a definition of kind {spec.get('kind')!r} is not known",
            hint="it was written by a newer version of featurestore",
            kind=spec.get("kind"),
        )
    try:
        return build(spec)
    except KeyError as error:
        raise CorruptDataError(
            f"the {spec['kind']} {spec.get('name')!r} has no field {error.args[0]!r}", spec=dict(spec)
        ) from error


def _about(spec: Spec) -> dict[str, Any]:
    return {"owner": spec["owner"], "description": spec["description"], "tags": spec["tags"]}


def _entity(spec: Spec) -> Entity:
    return Entity(spec["name"], join_keys=spec["join_keys"], **_about(spec))


def _source(spec: Spec) -> Source:
    return Source(
        spec["name"],
        path=spec["path"],
        timestamp_field=spec["timestamp_field"],
        created_timestamp_column=spec["created_timestamp_column"],
        sequence_column=spec["sequence_column"],
        availability_delay=spec["availability_delay_ns"],
        entities=spec["entities"],
        query=spec["query"],
        format=spec["format"],
        **_about(spec),
    )


def _feature_view(spec: Spec) -> FeatureView:
    return FeatureView(
        spec["name"],
        source=spec["source"],
        entities=spec["entities"],
        features=[Feature(f["name"], f["expression"]) for f in spec["features"]],
        aggregations=[aggregation_from_spec(a) for a in spec["aggregations"]],
        ttl=spec["ttl_ns"],
        nulls=spec["nulls"],
        online=spec["online"],
        **_about(spec),
    )


def _on_demand(spec: Spec) -> OnDemandFeatureView:
    return OnDemandFeatureView(
        spec["name"],
        inputs=spec["inputs"],
        request=spec["request"],
        features=[Feature(f["name"], f["expression"]) for f in spec["features"]],
        **_about(spec),
    )


def _service(spec: Spec) -> FeatureService:
    return FeatureService(spec["name"], features=spec["features"], **_about(spec))


def _label(spec: Spec) -> Label:
    return Label(
        spec["name"],
        source=spec["source"],
        expression=spec["expression"],
        horizon=spec["horizon_ns"],
        **_about(spec),
    )


def _training_set(spec: Spec) -> TrainingSet:
    return TrainingSet(
        spec["name"],
        spine=spec["spine"],
        features=spec["features"],
        service=spec["service"],
        labels=spec["labels"],
        entities=spec["entities"],
        key_map=spec["key_map"],
        full_feature_names=spec["full_feature_names"],
        **_about(spec),
    )


_BUILDERS: Final[Mapping[str, Callable[[Spec], Definition]]] = {
    Entity.kind: _entity,
    Source.kind: _source,
    FeatureView.kind: _feature_view,
    OnDemandFeatureView.kind: _on_demand,
    FeatureService.kind: _service,
    Label.kind: _label,
    TrainingSet.kind: _training_set,
}
KINDS: Final = tuple(_BUILDERS)
