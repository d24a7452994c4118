"""FeatureService: the ordered features of one model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from featurestore.catalog.definition import Definition, metadata_spec
from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.on_demand import OnDemandFeatureView
from featurestore.catalog.refs import Ref, parse_ref
from featurestore.core.names import check_name
from featurestore.errors import DefinitionError

FeatureLike = FeatureView | OnDemandFeatureView | str


@dataclass(frozen=True, slots=True, eq=False, repr=False, init=False)
class FeatureService(Definition):
    """The ordered features of one model: `[view, "view:feature", "view@2:feature", …]`."""

    kind: ClassVar[str] = "feature_service"

    features: tuple[Ref, ...]
    owner: str
    description: str
    tags: Mapping[str, str]
    view_objects: tuple[FeatureView | OnDemandFeatureView, ...]

    def __init__(
        self,
        name: str,
        *,
        features: Sequence[FeatureLike],
        owner: str = "",
        description: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Validate and freeze.

        Raises:
            DefinitionError: no features, or one given twice.
        """
        put = object.__setattr__
        put(self, "name", check_name(name, "feature service"))
        put(self, "features", feature_refs(f"feature service {name!r}", features))
        put(self, "owner", owner)
        put(self, "description", description)
        put(self, "tags", dict(tags or {}))
        put(self, "view_objects", tuple(f for f in features if not isinstance(f, str)))

    def spec(self) -> dict[str, Any]:
        """Return the service as plain JSON values."""
        return {
            "kind": self.kind,
            "name": self.name,
            "features": [str(f) for f in self.features],
            **metadata_spec(self.owner, self.description, self.tags),
        }


def feature_refs(what: str, features: Sequence[FeatureLike]) -> tuple[Ref, ...]:
    """Turn views and texts into references, in order.

    Raises:
        DefinitionError: none given, or one given twice.
    """
    if isinstance(features, str) or not features:
        raise DefinitionError(f"{what} has features={features!r}", hint="give a list of features")
    refs = tuple(parse_ref(f) if isinstance(f, str) else Ref(f.name) for f in features)
    repeated = [str(r) for r in refs if refs.count(r) > 1]
    if repeated:
        raise DefinitionError(f"{what} lists {repeated[0]!r} twice", hint="list each feature once")
    return refs
