"""Label: the only definition that may look ahead."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from featurestore.catalog.definition import Definition
from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.label_terms import parse_label
from featurestore.catalog.refs import Ref, reference
from featurestore.catalog.source import Source
from featurestore.core.arguments import text
from featurestore.core.names import check_name
from featurestore.core.time import Duration, duration_ns
from featurestore.errors import DefinitionError


@dataclass(frozen=True, slots=True, eq=False, repr=False, init=False)
class Label(Definition):
    """What a model is to predict, from rows whose event timestamp lies in `(t, t + horizon]`.

    In the expression a plain column is its newest value in `(t, t + horizon]` (of a view with
    `nulls="last_known"` and of its features: as resolved at `t + horizon` from rows after t);
    `start.column` is the value that a feature would have at t. `count(*)`, `sum(c)`, `min(c)`, `max(c)`,
    `avg(c)`, `first(c)` and `last(c)` aggregate over `(t, t + horizon]`. Labels see corrections whenever
    they were made: the created timestamp does not hide rows from them, unless it is null (never known).

    Attributes:
        source: The name of the source or view.
        expression: SQL scalar text, for example `"mid / start.mid - 1"` or `"count(*) > 0"`.
        horizon_ns: How far it looks ahead.
    """

    kind: ClassVar[str] = "label"

    source: Ref
    expression: str
    horizon_ns: int
    source_object: Source | FeatureView | None

    def __init__(
        self,
        name: str,
        *,
        source: Source | FeatureView | str,
        expression: str,
        horizon: Duration,
        owner: str = "",
        description: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Validate and freeze.

        Raises:
            DefinitionError: a bad name, a horizon that is not positive, or an expression that is empty or no
                scalar one over plain columns, `start.column` and the aggregates above.
        """
        what = f"label {check_name(name, 'label')!r}"
        horizon_ns = duration_ns(horizon, what=f"horizon of {what}")
        if horizon_ns == 0 or not text(what, "expression", expression).strip():
            raise DefinitionError(
                f"{what} has horizon={horizon!r}, expression={expression!r}",
                hint="the horizon is positive and the expression not empty",
            )
        parse_label(expression)
        self._put(
            name=name,
            source=reference(what, "source", source, (Source, FeatureView)),
            expression=expression,
            horizon_ns=horizon_ns,
            source_object=None if isinstance(source, str) else source,
        )
        self._describe(owner, description, tags)

    @property
    def horizon(self) -> int:
        """How far it looks ahead, in nanoseconds, as the constructor takes it too."""
        return self.horizon_ns

    def spec(self) -> dict[str, Any]:
        """Return the label as plain JSON values."""
        return {
            "kind": self.kind,
            "name": self.name,
            "source": str(self.source),
            "expression": self.expression,
            "horizon_ns": self.horizon_ns,
            **self.about(),
        }
