"""FeatureService: the ordered features of one model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from featurestore.catalog.definition import Definition
from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.on_demand import OnDemandFeatureView
from featurestore.catalog.refs import Ref, reference
from featurestore.core.arguments import listed
from featurestore.core.names import check_name
from featurestore.errors import DefinitionError

FeatureLike = FeatureView | OnDemandFeatureView | str


@dataclass(frozen=True, slots=True, eq=False, repr=False, init=False)
class FeatureService(Definition):
    """The ordered features of one model: `[view, "view:feature", "view@2:feature", …]`."""

    kind: ClassVar[str] = "feature_service"

    features: tuple[Ref, ...]
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
        refs, objects = feature_refs(f"feature service {check_name(name, 'feature service')!r}", features)
        self._put(name=name, features=refs, view_objects=objects)
        self._describe(owner, description, tags)

    def spec(self) -> dict[str, Any]:
        """Return the service as plain JSON values."""
        return {
            "kind": self.kind,
            "name": self.name,
            "features": [str(f) for f in self.features],
            **self.about(),
        }


def feature_refs(
    what: str, features: Any
) -> tuple[tuple[Ref, ...], tuple[FeatureView | OnDemandFeatureView, ...]]:
    """Turn views and texts into references, in order, and return the views among them.

    Raises:
        DefinitionError: none given, or one given twice.
    """
    given = listed(what, "features", features, "features")
    if not given:
        raise DefinitionError(f"{what} has no features", hint="give a list of views and references")
    refs = tuple(reference(what, "features", f, (FeatureView, OnDemandFeatureView)) for f in given)
    repeated = [str(r) for r in refs if refs.count(r) > 1]
    if repeated:
        raise DefinitionError(f"{what} lists {repeated[0]!r} twice", hint="list each feature once")
    return refs, tuple(f for f in given if not isinstance(f, str))
