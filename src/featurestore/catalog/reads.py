"""Which columns of what it reads each output column of a definition is made from."""

from collections.abc import Mapping

from featurestore.catalog.aggregation import Aggregation
from featurestore.catalog.definition import Definition
from featurestore.catalog.expressions import columns_of
from featurestore.catalog.feature_view import Feature, FeatureView
from featurestore.catalog.label import Label
from featurestore.catalog.label_terms import parse_label
from featurestore.catalog.on_demand import OnDemandFeatureView


def columns_by_output(definition: Definition) -> Mapping[str, tuple[str, ...]]:
    """Return the columns that each output of a view or label is computed from; keys and times aside."""
    match definition:
        case FeatureView():
            features = {f.name: _feature_columns(f) for f in definition.features}
            return features | {a.name: _window_columns(a) for a in definition.aggregations}
        case OnDemandFeatureView():
            return {f.name: _feature_columns(f) for f in definition.features}
        case Label():
            parsed = parse_label(definition.expression)
            terms = (term.column for term in parsed.terms if term.column != "*")
            return {definition.name: tuple(dict.fromkeys((*parsed.plain, *terms, *parsed.start)))}
        case _:
            return {}


def _feature_columns(feature: Feature) -> tuple[str, ...]:
    if feature.expression is None:
        return (feature.name,)
    return tuple(sorted(columns_of(feature.expression)))


def _window_columns(aggregation: Aggregation) -> tuple[str, ...]:
    return () if aggregation.column == "*" else (aggregation.column,)


def columns_read(definition: Definition) -> set[str]:
    """Return all columns that a view or label computes from; keys and times aside."""
    return {column for columns in columns_by_output(definition).values() for column in columns}
