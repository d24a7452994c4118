"""OnDemandFeatureView: computed from other features and from the request itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import pyarrow as pa

from featurestore.catalog.definition import Definition, metadata_spec
from featurestore.catalog.expressions import check_scalar
from featurestore.catalog.feature_view import Feature, FeatureView
from featurestore.catalog.refs import Ref, parse_ref
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


@dataclass(frozen=True, slots=True, eq=False, repr=False, init=False)
class OnDemandFeatureView(Definition):
    """Features computed at request time, and identically offline.

    Attributes:
        inputs: The features it reads; an expression names them by their feature name.
        request: Columns that the request (offline: the spine) brings, with their types: names of
            `REQUEST_TYPES`; given as such, as Arrow types, or as `bool`, `int`, `float` and `str`.
        features: SQL scalar expressions over inputs and request columns, in order.
    """

    kind: ClassVar[str] = "on_demand_feature_view"

    inputs: tuple[Ref, ...]
    request: Mapping[str, str]
    features: tuple[Feature, ...]
    owner: str
    description: str
    tags: Mapping[str, str]
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
        typed = {column: _request_type(name, column, kind) for column, kind in (request or {}).items()}
        if not features:
            raise DefinitionError(f"on-demand view {name!r} has no features")
        if isinstance(features, Mapping):
            for expression in features.values():
                check_scalar(expression)
            features = [Feature(key, expression) for key, expression in features.items()]
        names = [check_output_name(feature.name, "feature") for feature in features]
        if len(set(names)) != len(names) or any(f.expression is None for f in features):
            raise DefinitionError(
                f"on-demand view {name!r} has features {names}", hint="each once, each with its expression"
            )
        put = object.__setattr__
        put(self, "name", check_name(name, "on-demand view"))
        put(
            self,
            "inputs",
            tuple(parse_ref(i) if isinstance(i, str) else Ref(i.name) for i in inputs),
        )
        put(self, "request", typed)
        put(self, "features", tuple(features))
        put(self, "owner", owner)
        put(self, "description", description)
        put(self, "tags", dict(tags or {}))
        put(self, "input_objects", tuple(i for i in inputs if isinstance(i, FeatureView)))

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
            **metadata_spec(self.owner, self.description, self.tags),
        }


def _request_type(view: str, column: str, kind: Any) -> str:
    check_feature_name(column, "request field")
    given = _PYTHON_TYPES.get(kind, "") if isinstance(kind, type) else kind
    for name, arrow in REQUEST_TYPES.items():
        if given == (arrow if isinstance(given, pa.DataType) else name):
            return name
    raise DefinitionError(
        f"on-demand view {view!r}: request field {column!r} has type {kind!r}",
        hint=f"one of {', '.join(REQUEST_TYPES)}, or the Arrow type",
    )
