"""Fitted preprocessing in answers: the columns a model was trained on, by the same code and the same bits."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import pyarrow as pa

from featurestore.core.names import near
from featurestore.errors import DefinitionError, NotFoundError, SchemaError
from featurestore.resolve.joins import OutputColumn
from featurestore.resolve.preprocessing import (
    Preprocessing,
    Transform,
    load_preprocessing,
    preprocessing_ref,
)
from featurestore.serve.codec import fixed_dtype, fixed_values
from featurestore.storage.files import AnyPath
from featurestore.storage.manifest import version_folder

FITTED: Final = "preprocessing"
Lookup = Callable[[str], Preprocessing]


def preprocessing_in(root: AnyPath) -> Lookup:
    """Return what finds `dataset@version[:name]` below a store's root."""

    def lookup(text: str) -> Preprocessing:
        ref = preprocessing_ref(text)
        return load_preprocessing(
            root / "datasets" / ref.dataset / "ipc" / version_folder(ref.version), ref.name
        )

    return lookup


def fitted_columns(
    columns: Sequence[OutputColumn], fitted: Preprocessing
) -> tuple[tuple[OutputColumn, ...], dict[int, Transform]]:
    """Return the output columns as they are after preprocessing, and each one's transform by position.

    Raises:
        NotFoundError: a fitted column is not among them.
        SchemaError: a column was fitted as another kind than it has now.
    """
    at_of = {column.name: at for at, column in enumerate(columns)}
    out = list(columns)
    transforms: dict[int, Transform] = {}
    for name, transform in fitted.transforms.items():
        if name not in at_of:
            raise NotFoundError(
                f"preprocessing {fitted.name!r} of {fitted.dataset}@{fitted.version} was fitted on {name!r}, "
                "which is not asked for",
                hint=near(name, at_of) + "; ask for the features of that dataset, under its names",
                column=name,
            )
        at = at_of[name]
        _check_fits(columns[at], transform)
        kind = pa.int32() if transform.kind == "codes" else pa.float32()
        out[at] = replace(columns[at], cell=(FITTED, name), type=kind)
        transforms[at] = transform
    return tuple(out), transforms


def transformed(transform: Transform, column: pa.Array) -> pa.Array:
    """Apply a transform to a column; missing values take what training gave them, so that none is null.

    Raises:
        SchemaError: a column without numbers, where numbers were fitted.
    """
    if transform.kind == "codes":
        return pa.array(transform.apply(column.to_pylist()))
    dtype = fixed_dtype(column.type)
    if dtype is None:
        raise SchemaError(f"{transform.column!r} is {column.type}, where numbers were fitted")
    numbers = fixed_values(column, dtype).astype(transform.dtype)
    if column.null_count:
        numbers[np.asarray(column.is_null())] = np.nan
    return pa.array(transform.apply(numbers))


def _check_fits(column: OutputColumn, transform: Transform) -> None:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (texts if transform.kind == "codes" else numeric):
        raise SchemaError(
            f"column {column.name!r} is {column.type}, and was fitted for {transform.kind}",
            hint="fit again on a version of the dataset that has this type",
            column=column.name,
        )


def no_preprocessing(text: str) -> Preprocessing:
    """Refuse: a backend without a root has no datasets.

    Raises:
        DefinitionError: always.
    """
    raise DefinitionError(
        f"preprocessing {text!r} was asked of a backend that knows no datasets", hint="open it with root=…"
    )
