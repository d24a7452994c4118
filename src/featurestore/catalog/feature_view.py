"""FeatureView: the features of an entity that share a source and a clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Union

from featurestore.catalog.aggregation import Aggregation
from featurestore.catalog.definition import Definition
from featurestore.catalog.entity import Entity, entity_names
from featurestore.catalog.expressions import check_scalar
from featurestore.catalog.refs import Ref, reference
from featurestore.catalog.source import Source
from featurestore.core.arguments import flag, listed, mapped, refuse, text
from featurestore.core.names import check_name, check_output_name
from featurestore.core.time import Duration, duration_ns
from featurestore.errors import DefinitionError

NULLS: Final = ("keep", "last_known")


@dataclass(frozen=True, slots=True)
class Feature:
    """One output column of a view.

    Attributes:
        name: The feature's name.
        expression: SQL scalar text over one row of the source; `None` is the column of that name.
    """

    name: str
    expression: str | None = None


@dataclass(frozen=True, slots=True, eq=False, repr=False, init=False)
class FeatureView(Definition):
    """A named group of features that share a source, an entity and a clock.

    Attributes:
        source: The name of the source, or of the view, that it reads.
        entities: The names of its entities; their join keys, in order, identify a row's entity.
        features: Columns and expressions, in order; aggregations follow them in a reader's output.
        ttl_ns: The greatest age a value may have when read, counted from its event timestamp, bound
            included. `None`: values never expire. Zero is refused, not read as "never". Aggregations
            are bounded by their window alone.
        nulls: `keep`: the newest row decides, nulls included. `last_known`: each source column takes its
            newest non-null value, each with its own age against the ttl; expressions see those values.
        online: Whether the newest values are written to the online store.
    """

    kind: ClassVar[str] = "feature_view"

    source: Ref
    entities: tuple[str, ...]
    features: tuple[Feature, ...]
    aggregations: tuple[Aggregation, ...]
    ttl_ns: int | None
    nulls: str
    online: bool
    source_object: "Source | FeatureView | None"
    entity_objects: tuple[Entity, ...]

    def __init__(
        self,
        name: str,
        *,
        source: Union[Source, "FeatureView", str],
        entities: Sequence[Entity | str],
        features: Sequence[str | Feature] | Mapping[str, str] = (),
        aggregations: Sequence[Aggregation] = (),
        ttl: Duration | None = None,
        nulls: str = "keep",
        online: bool = True,
        owner: str = "",
        description: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Validate and freeze.

        Raises:
            DefinitionError: no features, a repeated name, no entity, an unknown `nulls`, a ttl that is not
                positive, or an expression that is not a function of one row (of Feature objects: at `plan`).
        """
        what = f"feature view {check_name(name, 'feature view')!r}"
        names, objects = entity_names(what, entities)
        if not names:
            refuse(what, "entities", entities, "give a list with at least one entity")
        if nulls not in NULLS:
            refuse(what, "nulls", nulls, f"one of {', '.join(NULLS)}")
        self._put(
            name=name,
            source=reference(what, "source", source, (Source, FeatureView)),
            entities=names,
            features=view_features(what, features),
            aggregations=_aggregations(what, aggregations),
            ttl_ns=_ttl_ns(what, ttl),
            nulls=nulls,
            online=flag(what, "online", online),
            source_object=None if isinstance(source, str) else source,
            entity_objects=objects,
        )
        self._describe(owner, description, tags)
        _check_names(what, self.feature_names)

    @property
    def ttl(self) -> int | None:
        """The ttl in nanoseconds, as the constructor takes it too; `None`: values never expire."""
        return self.ttl_ns

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The output columns in order: features, then aggregations."""
        return tuple(f.name for f in self.features) + tuple(a.name for a in self.aggregations)

    def spec(self) -> dict[str, Any]:
        """Return the view as plain JSON values."""
        return {
            "kind": self.kind,
            "name": self.name,
            "source": str(self.source),
            "entities": list(self.entities),
            "features": [{"name": f.name, "expression": f.expression} for f in self.features],
            "aggregations": [a.spec() for a in self.aggregations],
            "ttl_ns": self.ttl_ns,
            "nulls": self.nulls,
            "online": self.online,
            **self.about(),
        }


def view_features(what: str, features: Any) -> tuple[Feature, ...]:
    """Return features given as names, as Feature objects or as a mapping from name to expression.

    Raises:
        DefinitionError: anything else, or an expression that is not a function of one row.
    """
    if isinstance(features, Mapping):
        for expression in mapped(what, "features", features, '{"name": "SQL expression"}').values():
            check_scalar(text(what, "an expression", expression))
        return tuple(Feature(name, expression) for name, expression in features.items())
    given = listed(what, "features", features, 'names or a mapping {"name": "SQL expression"}')
    made = tuple(f if isinstance(f, Feature) else Feature(f) for f in given)
    for feature in made:
        if feature.expression is not None:
            text(what, f"features: the expression of {feature.name!r}", feature.expression)
    return made


def _aggregations(what: str, aggregations: Any) -> tuple[Aggregation, ...]:
    given = listed(what, "aggregations", aggregations, "aggregations")
    for one in given:
        if not isinstance(one, Aggregation):
            refuse(what, "aggregations", one, "give a list of Aggregation objects")
    return given


def _check_names(what: str, feature_names: Sequence[str]) -> None:
    if not feature_names:
        raise DefinitionError(f"{what} has no features", hint="give features or aggregations")
    for feature in feature_names:
        check_output_name(feature, "feature")
    repeated = sorted({f for f in feature_names if feature_names.count(f) > 1})
    if repeated:
        raise DefinitionError(
            f"{what} has more than one feature named {repeated[0]!r}",
            hint="rename one; an aggregation takes name=…",
            feature=repeated[0],
        )


def _ttl_ns(what: str, ttl: Duration | None) -> int | None:
    if ttl is None:
        return None
    nanos = duration_ns(ttl, what=f"ttl of {what}")
    if nanos == 0:
        raise DefinitionError(
            f"{what} has ttl={ttl!r}: only a value of its very instant could be read",
            hint='None means that values never expire; "1ns" is the least',
        )
    return nanos
