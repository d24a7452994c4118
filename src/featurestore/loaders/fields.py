"""What a batch is made of: the plan from chosen columns to stored ones. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pyarrow as pa

from featurestore.core.names import near
from featurestore.errors import DefinitionError, NotFoundError, SchemaError
from featurestore.storage.manifest import Manifest

Nulls = Literal["fill", "mask", "nan"]
Layout = Literal["matrix", "columns"]
Fill = float | Mapping[str, float]

DTYPES: Final = (
    "float16", "float32", "float64",
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool",
)  # fmt: skip
_ARROW_NAMES: Final = {"halffloat": "float16", "float": "float32", "double": "float64"}


@dataclass(frozen=True, slots=True)
class Segment:
    """Some features of one pack, in one run of a matrix: `matrix[:, at:at + len(columns)]`."""

    pack: str
    columns: tuple[int, ...]
    at: int


@dataclass(frozen=True, slots=True)
class Matrix:
    """One `(N, F)` block of features of one type.

    Attributes:
        dtype: NumPy name of the type that is delivered.
        features: The columns in order.
        fills: What stands for a null, one per feature.
    """

    name: str
    dtype: str
    features: tuple[str, ...]
    segments: tuple[Segment, ...]
    fills: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value per row from a plain column or from inside a pack: a label, a weight, a time.

    Attributes:
        pack: The pack and the place in it, or None for a plain column.
        dtype: Delivered type; None keeps the stored one.
    """

    name: str
    pack: str | None
    column: int
    dtype: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """Everything one batch holds, by where it is stored."""

    matrices: tuple[Matrix, ...]
    labels: tuple[Scalar, ...]
    weight: Scalar | None
    codes: tuple[str, ...]
    extras: tuple[str, ...]
    time: bool
    entity: bool
    nulls: Nulls
    layout: Layout

    @property
    def features(self) -> tuple[str, ...]:
        """Every feature delivered, matrices first."""
        packed = tuple(name for matrix in self.matrices for name in matrix.features)
        return (*packed, *self.codes, *self.extras)

    @property
    def row_bytes(self) -> int:
        """Bytes of one delivered row, about."""
        wide = sum(np.dtype(m.dtype).itemsize * len(m.features) for m in self.matrices)
        return (
            wide + 8 * (len(self.labels) + len(self.extras) + self.time) + 4 * (len(self.codes) + self.entity)
        )


def dtype_name(arrow: str) -> str:
    """Give the NumPy name of a pack's Arrow type."""
    return _ARROW_NAMES.get(arrow, arrow)


def plan_fields(
    manifest: Manifest,
    *,
    columns: Sequence[str] | None,
    labels: Sequence[str] | None,
    weight: str | None,
    dtype: str | None,
    label_dtype: str | None,
    fill: Fill,
    nulls: Nulls,
    layout: Layout,
    time: bool,
    entity: bool,
) -> Fields:
    """Plan what a batch holds.

    Args:
        columns: Features in the order of the matrix; None takes all but the weight.
        labels: None takes all labels of the dataset.

    Raises:
        NotFoundError: no such column.
        SchemaError: a column whose type cannot be delivered, or not in `dtype`.
        DefinitionError: an unknown `dtype`, a repeated column, a fill for no column.
    """
    for asked, given in (("dtype", dtype), ("label_dtype", label_dtype)):
        _check_dtype(asked, given)
    roles = {column.name: column for column in manifest.columns}
    if columns is None:
        columns = [c.name for c in manifest.columns if c.role == "feature" and c.name != weight]
    labels = manifest.labels if labels is None else labels
    _check_known([*columns, *labels, *([weight] if weight else [])], roles, manifest)
    for name, group in (("columns", columns), ("labels", labels)):
        if len(set(group)) != len(group):
            raise DefinitionError(f"{name} are repeated: {', '.join(group)}", hint="name each once")
    fills = _fills(fill, columns)
    schema = manifest.schema
    places = _places(manifest)
    codes = [n for n in columns if n not in places and _is_text(schema.field(n).type)]
    extras = [n for n in columns if n not in places and n not in codes]
    for name in extras:
        _check_extra(name, schema.field(name).type)
    packed = [n for n in columns if n in places]
    return Fields(
        matrices=_matrices(packed, places, dtype=dtype, fills=fills, nulls=nulls),
        labels=tuple(_scalar(n, places, schema, label_dtype) for n in labels),
        weight=None if weight is None else _scalar(weight, places, schema, None),
        codes=tuple(codes),
        extras=tuple(extras),
        time=time,
        entity=entity,
        nulls=nulls,
        layout=layout,
    )


def _check_dtype(asked: str, dtype: str | None) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise DefinitionError(
            f"{asked} is {dtype!r}", hint=f"one of {', '.join(DTYPES)}, or None for stored types", value=dtype
        )


def _check_known(names: Sequence[str], roles: Mapping[str, object], manifest: Manifest) -> None:
    for name in names:
        if name not in roles:
            raise NotFoundError(
                f"dataset {manifest.name!r} version {manifest.version} has no column {name!r}",
                hint=near(name, roles),
                name=name,
            )


def _fills(fill: Fill, columns: Sequence[str]) -> dict[str, float]:
    if not isinstance(fill, Mapping):
        return dict.fromkeys(columns, fill)
    unknown = set(fill) - set(columns) - {"*"}
    if unknown:
        raise DefinitionError(f"fill names {sorted(unknown)}, which are no columns", hint=near("", columns))
    return {name: fill.get(name, fill.get("*", 0.0)) for name in columns}


def _places(manifest: Manifest) -> dict[str, tuple[str, int, str]]:
    return {
        name: (pack.column, number, dtype_name(pack.dtype))
        for pack in manifest.packs
        for number, name in enumerate(pack.features)
    }


def _matrices(
    packed: Sequence[str],
    places: Mapping[str, tuple[str, int, str]],
    *,
    dtype: str | None,
    fills: Mapping[str, float],
    nulls: Nulls,
) -> tuple[Matrix, ...]:
    groups: dict[str, list[str]] = {}
    for name in packed:
        groups.setdefault(dtype or places[name][2], []).append(name)
    out = []
    for kind, names in groups.items():
        for name in names:
            _check_cast(name, places[name][2], kind)
        if nulls == "nan" and np.dtype(kind).kind != "f":
            raise SchemaError(
                f'nulls="nan" needs floating point, and {", ".join(names[:3])} come as {kind}',
                hint='pass dtype="float32", or nulls="fill" or "mask"',
            )
        chosen = tuple(np.nan if nulls == "nan" else fills[n] for n in names)
        out.append(Matrix(kind, kind, tuple(names), _segments(names, places), chosen))
    if len(out) == 1:
        only = out[0]
        return (Matrix("x", only.dtype, only.features, only.segments, only.fills),)
    return tuple(out)


def _segments(names: Sequence[str], places: Mapping[str, tuple[str, int, str]]) -> tuple[Segment, ...]:
    """Cut the columns into runs that come from one pack."""
    runs: list[tuple[str, list[int], int]] = []
    for at, name in enumerate(names):
        pack, column, _ = places[name]
        if runs and runs[-1][0] == pack:
            runs[-1][1].append(column)
        else:
            runs.append((pack, [column], at))
    return tuple(Segment(pack, tuple(columns), at) for pack, columns, at in runs)


def _check_cast(name: str, stored: str, wanted: str) -> None:
    of, to = np.dtype(stored).kind, np.dtype(wanted).kind
    if stored != wanted and to != "f" and not (of in "iub" and to in "iu"):
        raise SchemaError(
            f"column {name!r} is stored as {stored} and cannot come as {wanted}",
            hint="a matrix takes floats from anything, integers from integers and booleans; "
            "leave the column out, or leave dtype out to get one matrix per stored type",
            column=name,
        )


def _scalar(
    name: str, places: Mapping[str, tuple[str, int, str]], schema: pa.Schema, dtype: str | None
) -> Scalar:
    if name in places:
        return Scalar(name, places[name][0], places[name][1], dtype)
    kind = schema.field(name).type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise SchemaError(
            f"column {name!r} is {kind} and cannot be a label or weight",
            hint="labels and weights are numbers or booleans",
            column=name,
        )
    return Scalar(name, None, 0, dtype)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(check(kind) for check in checks)


def _check_extra(name: str, kind: pa.DataType) -> None:
    embedding = pa.types.is_fixed_size_list(kind) and (
        pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
    )
    if not (embedding or pa.types.is_timestamp(kind)):
        raise SchemaError(
            f"column {name!r} is {kind}, which no batch can hold",
            hint="numbers, booleans, strings, timestamps and fixed-size lists of numbers can be loaded; "
            "choose others by columns=[…]",
            column=name,
            type=str(kind),
        )
