"""Entity keys as they are typed: `--key symbol=AIG`, `--key origin=FRA,carrier=LH`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from featurestore.catalog.entity import Entity
from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.on_demand import OnDemandFeatureView
from featurestore.catalog.refs import Ref
from featurestore.core.table_rows import decoded_type
from featurestore.errors import DefinitionError

if TYPE_CHECKING:
    from featurestore.catalog.snapshot import CatalogSnapshot

Keys = Annotated[
    list[str], typer.Option("--key", "-k", help="symbol=AIG; for a composite key: origin=FRA,carrier=LH.")
]

_BOOLEANS: Final = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


def read_keys(texts: Sequence[str], snapshot: "CatalogSnapshot") -> list[dict[str, Any]]:
    """Read one mapping per text, each value in the type that the catalog recorded for its column.

    Raises:
        DefinitionError: a text is not `column=value`, a value is not of its column's type, or two texts
            name different columns.
    """
    kinds = column_kinds(snapshot)
    rows = [_entity_row(text, kinds) for text in texts]
    if len({tuple(sorted(row)) for row in rows}) > 1:
        raise DefinitionError(
            f"the keys {' and '.join(texts)} do not name the same columns",
            hint="one --key is one entity: join its columns by commas, --key symbol=AIG,size=100",
        )
    return rows


def column_kinds(snapshot: "CatalogSnapshot") -> dict[str, str]:
    """Return what the catalog knows of key and request columns: their types, as text."""
    kinds: dict[str, str] = {}
    for view in snapshot.definitions(OnDemandFeatureView.kind):
        if isinstance(view, OnDemandFeatureView):
            kinds |= view.request
    keys = {k for e in snapshot.definitions(Entity.kind) if isinstance(e, Entity) for k in e.join_keys}
    for view in snapshot.definitions(FeatureView.kind):
        schema = snapshot.schema_of(Ref(view.name))
        kinds |= {f.name: str(decoded_type(f.type)) for f in schema if f.name in keys}
    return kinds


def _entity_row(text: str, kinds: Mapping[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise DefinitionError(
                f"--key {text!r} is not a key", hint="write --key symbol=AIG, once per entity"
            )
        row[name.strip()] = _typed(name.strip(), value, kinds.get(name.strip(), "string"))
    return row


def _typed(name: str, value: str, kind: str) -> Any:
    try:
        if "int" in kind:
            return int(value)
        if "float" in kind or "double" in kind:
            return float(value)
    except ValueError as error:
        raise DefinitionError(
            f"--key {name}={value}: {value!r} is not of type {kind}", hint=f"the column holds {kind}"
        ) from error
    if kind == "bool" and value.lower() not in _BOOLEANS:
        raise DefinitionError(f"--key {name}={value}: {value!r} is not of type bool", hint="true or false")
    return _BOOLEANS[value.lower()] if kind == "bool" else value
