"""Fitting preprocessing on the training split, and on nothing else."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from featurestore.core.arguments import mapped
from featurestore.core.time import Int64Array
from featurestore.errors import LeakageError, SchemaError
from featurestore.loaders.prepare import Prepared
from featurestore.resolve.preprocessing import Preprocessing, Transform, check_kind

_CHUNK: Final = 1 << 18
QUANTILES: Final = 1001


def fit_preprocessing(
    prepared: Prepared, kinds: Mapping[str, str] | str, *, name: str = "default"
) -> Preprocessing:
    """Fit transforms on a loader's samples, in stored order, whatever its batches are.

    Args:
        kinds: By column, or one kind for every number; strings are always coded, with the words of these
            samples.

    Raises:
        LeakageError: the loader's subset is valid or test.
        SchemaError: a column that cannot be transformed that way.

    Cost: one pass per column, and 16 bytes per sample while it runs. Sums are pairwise in stored order: the
    same bits for the same dataset version, whatever the machine's thread count.
    """
    subset = prepared.options.subset
    if prepared.options.split is not None and subset not in {None, "train"}:
        raise LeakageError(
            f"preprocessing would be fitted on the {subset} split", hint='fit on a loader with subset="train"'
        )
    fields, source = prepared.fields, prepared.source
    numbers = {feature: matrix.dtype for matrix in fields.matrices for feature in matrix.features}
    if isinstance(kinds, str):
        kinds = dict.fromkeys((*numbers, *fields.codes), kinds)
    wanted = mapped("fit_preprocessing", "kinds", kinds, '{"column": "standardize"}')
    rows = prepared.selection.rows_of(np.arange(prepared.selection.count))
    rows = np.sort(rows).astype(np.int64)
    transforms = {}
    for column in sorted(wanted):
        if column in fields.codes:
            transforms[column] = Transform(
                column=column, kind="codes", vocabulary=_words(prepared, column, rows), count=int(rows.size)
            )
        elif column in numbers:
            fitted = _fit_number(_values(prepared, column, rows), column, check_kind(wanted[column]))
            # Whole numbers are exact in float64, and so are their nulls as NaN.
            delivered = numbers[column] if np.dtype(numbers[column]).kind == "f" else "float64"
            transforms[column] = replace(fitted, dtype=delivered)
        else:
            raise SchemaError(
                f"column {column!r} is no number and no string of this loader",
                hint="fit what the loader's columns hold",
            )
    return Preprocessing(
        name=name,
        dataset=source.manifest.name,
        version=source.manifest.version,
        fingerprint=prepared.identity.fingerprint,
        transforms=transforms,
    )


def _fit_number(values: npt.NDArray[np.float64], column: str, kind: Any) -> Transform:
    """Fit over the non-null, non-NaN values.

    Raises:
        SchemaError: there is none, or codes were asked for.
    """
    if kind == "codes":
        raise SchemaError(
            f"column {column!r} holds numbers, codes are for strings",
            hint="fit standardize or quantile",
            column=column,
        )
    real = values[~np.isnan(values)]
    if real.size == 0:
        raise SchemaError(f"column {column!r} has no value to fit on", hint="leave it out", column=column)
    if kind == "quantile":
        cuts = np.quantile(real, np.linspace(0.0, 1.0, QUANTILES))
        return Transform(column=column, kind="quantile", quantiles=tuple(cuts.tolist()), count=int(real.size))
    mean = float(real.mean())
    return Transform(
        column=column, kind="standardize", mean=mean, std=float((real - mean).std()), count=int(real.size)
    )


def _values(prepared: Prepared, column: str, rows: Int64Array) -> npt.NDArray[np.float64]:
    """Read one feature as float64, nulls as NaN."""
    source = prepared.source
    pack = next(p for p in source.manifest.packs if column in p.features)
    stored = source.column(pack.column)
    place = np.asarray([pack.features.index(column)])
    out = np.empty((rows.size, 1), np.float64)
    fills = np.asarray([np.nan])
    for start in range(0, rows.size, _CHUNK):
        some = rows[start : start + _CHUNK]
        source.touch(some)
        stored.gather(some, place, out[start : start + _CHUNK], 0, fills)
    return out.reshape(-1)


def _words(prepared: Prepared, column: str, rows: Int64Array) -> tuple[str, ...]:
    """Return the distinct strings of the samples, in the order of their UTF-8 bytes."""
    source = prepared.source
    source.touch(rows)
    parts = source.index.parts_of(rows)
    found: set[str] = set()
    for part in np.unique(parts).tolist():
        local = rows[parts == part] - source.index.starts[part]
        values = source.shards.shard(part).column(column).take(local)
        found.update(v for v in values.unique().to_pylist() if v is not None)
    return tuple(sorted(found, key=str.encode))
