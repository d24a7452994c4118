"""OnDemandFeatureView: computed from other features and from the request itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import pyarrow as pa

from featurestore.catalog.definition import Definition
from featurestore.catalog.feature_view import Feature, FeatureView, view_features
from featurestore.catalog.refs import Ref, reference
from featurestore.core.arguments import listed, mapped
from featurestore.core.names import check_feature_name, check_name, check_output_name
from featurestore.errors import DefinitionError

REQUEST_TYPES: Final[Mapping[str, pa.DataType]] = {
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "timestamp": pa.timestamp("ns", "UTC"),
}
_PYTHON_TYPES: Final = {bool: "bool", int: "int64", float: "float64", str: "string"}
# As DuckDB reads them; "int" and "float" are left out, which mean other widths in Python than in SQL.
_SQL_TYPES: Final = {
    "boolean": "bool",
    "integer": "int32",
    "bigint": "int64",
    "real": "float32",
    "double": "float64",
    "varchar": "string",
    "text": "string",
    "timestamptz": "timestamp",
}


@dataclass(frozen=True, slots=True, eq=False, repr=False, init=False)
class OnDemandFeatureView(Definition):
    """Features computed at request time, and identically offline.

    Attributes:
        inputs: The features it reads; an expression names them by their feature name.
        request: Columns that the request (offline: the spine) brings, with their types: names of
            `REQUEST_TYPES`; given as such, as Arrow types, as `bool`, `int`, `float` and `str`, or as SQL
            types (`double`).
        features: SQL scalar expressions over inputs and request columns, in order.
    """

    kind: ClassVar[str] = "on_demand_feature_view"

    inputs: tuple[Ref, ...]
    request: Mapping[str, str]
    features: tuple[Feature, ...]
    input_objects: tuple[FeatureView, ...]

    def __init__(
        self,
        name: str,
        *,
        inputs: Sequence[FeatureView | str] = (),
        request: Mapping[str, Any] | None = None,
        features: Mapping[str, str] | Sequence[Feature],
        owner: str = "",
        description: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Validate and freeze.

        Raises:
            DefinitionError: no features, a request type that is not one of `REQUEST_TYPES`, or an
                expression that is not a function of one row (of Feature objects: at `plan`).
        """
        what = f"on-demand view {check_name(name, 'on-demand view')!r}"
        fields = mapped(what, "request", request, '{"field": "float64"}')
        made = view_features(what, features)
        names = [check_output_name(feature.name, "feature") for feature in made]
        if not made:
            raise DefinitionError(f"{what} has no features", hint='give a mapping {"name": "SQL expression"}')
        if len(set(names)) != len(names) or any(f.expression is None for f in made):
            raise DefinitionError(f"{what} has features {names}", hint="each once, each with its expression")
        given = listed(what, "inputs", inputs, "views and references")
        self._put(
            name=name,
            inputs=tuple(reference(what, "inputs", i, (FeatureView,)) for i in given),
            request={column: _request_type(what, column, kind) for column, kind in fields.items()},
            features=made,
            input_objects=tuple(i for i in given if isinstance(i, FeatureView)),
        )
        self._describe(owner, description, tags)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The output columns, in order."""
        return tuple(f.name for f in self.features)

    def spec(self) -> dict[str, Any]:
        """Return the view as plain JSON values."""
        return {
            "kind": self.kind,
            "name": self.name,
            "inputs": [str(i) for i in self.inputs],
            "request": dict(self.request),
            "features": [{"name": f.name, "expression": f.expression} for f in self.features],
            **self.about(),
        }


def _request_type(what: str, column: str, kind: Any) -> str:
    check_feature_name(column, "request field")
    given = _PYTHON_TYPES.get(kind, "") if isinstance(kind, type) else kind
    if isinstance(given, str):
        given = _SQL_TYPES.get(given.lower(), given)
    for name, arrow in REQUEST_TYPES.items():
        if given == (arrow if isinstance(given, pa.DataType) else name):
            return name
    raise DefinitionError(
        f"{what}: request field {column!r} has type {kind!r}",
        hint=f"one of {', '.join(REQUEST_TYPES)}, or the Arrow type",
    )
