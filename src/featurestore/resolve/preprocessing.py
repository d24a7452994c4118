"""Preprocessing that travels: fitted on the training split, stored with the dataset, applied alike.

Pure NumPy on one column at a time, so that a training loop and a server compute the same bits.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from featurestore.core.canonical import canonical_json
from featurestore.core.names import check_name, near
from featurestore.errors import CorruptDataError, DefinitionError, NotFoundError
from featurestore.storage.files import AnyPath, make_folders, read_file, replace_file

Kind = Literal["standardize", "quantile", "codes"]
KINDS: Final = ("standardize", "quantile", "codes")
FORMAT: Final = 1
DEFAULT_NAME: Final = "default"
_REF: Final = re.compile(r"(?P<dataset>[^@:]+)@(?P<version>[0-9]+)(:(?P<name>[^@:]+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """What happens to one column.

    - `standardize`: `(x - mean) / std`, nulls and NaN become 0 (the mean); a column that never varied
      becomes 0.
    - `quantile`: the share of training values not above x, linear between the stored quantiles, NaN becomes
      0.5.
    - `codes`: strings to int32, 1 + place in the vocabulary, 0 for null and unknown.

    Attributes:
        dtype: The type in which the loader that was fitted delivers the column. Values are brought to it
            first, so that stored ones and delivered ones give the same bits.
    """

    column: str
    kind: Kind
    dtype: str = "float64"
    mean: float = 0.0
    std: float = 1.0
    count: int = 0
    quantiles: tuple[float, ...] = ()
    vocabulary: tuple[str, ...] = ()

    def apply(self, values: Any) -> npt.NDArray[Any]:
        """Transform `(n,)` values; float32 for numbers, int32 for codes."""
        if self.kind == "codes":
            return self._codes(values)
        numbers = np.asarray(values)
        if numbers.dtype.kind not in "fiub":  # a list with None in it
            numbers = np.asarray(values, np.float64)
        numbers = numbers.astype(self.dtype).astype(np.float64)
        missing = np.isnan(numbers)
        if self.kind == "standardize":
            scale = 1.0 / self.std if self.std > 0 else 0.0
            out = np.where(missing, 0.0, (numbers - self.mean) * scale)
        else:
            levels = np.linspace(0.0, 1.0, len(self.quantiles))
            out = np.where(missing, 0.5, np.interp(numbers, self.quantiles, levels))
        return out.astype(np.float32)

    def _codes(self, values: Any) -> npt.NDArray[np.int32]:
        places = {word: place for place, word in enumerate(self.vocabulary, start=1)}
        distinct, inverse = np.unique(
            np.asarray(["" if v is None else f"v{v}" for v in values], dtype=object).astype(str),
            return_inverse=True,
        )
        found = np.asarray([places.get(word[1:], 0) if word else 0 for word in distinct.tolist()], np.int32)
        return found[inverse]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """Transforms of one dataset version's columns.

    Attributes:
        fingerprint: Of the loader they were fitted on: dataset version, split, subset.
    """

    name: str
    dataset: str
    version: int
    fingerprint: str
    transforms: Mapping[str, Transform] = field(default_factory=dict)

    def apply(self, values: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """Transform columns by name; columns without a transform come back as they are.

        Raises:
            NotFoundError: a fitted column is not among the values.
        """
        missing = [name for name in self.transforms if name not in values]
        if missing:
            raise NotFoundError(
                f"preprocessing {self.name!r} was fitted on {missing[0]!r}, which is not given",
                hint=near(missing[0], values),
            )
        return {
            name: self.transforms[name].apply(column) if name in self.transforms else np.asarray(column)
            for name, column in values.items()
        }

    def apply_matrix(
        self, matrix: npt.NDArray[Any], columns: tuple[str, ...] | list[str]
    ) -> npt.NDArray[np.float32]:
        """Transform an `(n, F)` matrix whose columns are named."""
        parts = [
            self.transforms[name].apply(matrix[:, place])
            if name in self.transforms
            else matrix[:, place].astype(np.float32)
            for place, name in enumerate(columns)
        ]
        return np.stack(parts, axis=1)

    @property
    def vocabularies(self) -> dict[str, tuple[str, ...]]:
        """Vocabularies by column, as loaders take them."""
        return {name: t.vocabulary for name, t in self.transforms.items() if t.kind == "codes"}

    def to_json(self) -> str:
        """Write canonical JSON; floats keep every bit."""
        return canonical_json({"format": FORMAT, **asdict(self)})

    def save(self, folder: str | AnyPath) -> AnyPath:
        """Store under `preprocessing/NAME.json` of a dataset version's folder, atomically."""
        path = _path(folder, self.name)
        make_folders(path.parent)
        replace_file(path, self.to_json().encode())
        return path


def preprocessing_from_json(text: str | bytes, *, path: str = "") -> Preprocessing:
    """Read back what `Preprocessing.to_json` wrote.

    Raises:
        CorruptDataError: it is something else.
    """
    try:
        spec = json.loads(text)
        found = spec.pop("format")
        spec["transforms"] = {
            name: Transform(**{**t, "quantiles": tuple(t["quantiles"]), "vocabulary": tuple(t["vocabulary"])})
            for name, t in spec["transforms"].items()
        }
        read = Preprocessing(**spec)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptDataError(f"{path or 'the text'} is not preprocessing: {error}", path=path) from error
    if found != FORMAT:
        raise CorruptDataError(
            f"{path or 'the text'} has format {found}, this release reads {FORMAT}", path=path
        )
    return read


def load_preprocessing(folder: str | AnyPath, name: str = DEFAULT_NAME) -> Preprocessing:
    """Read `preprocessing/NAME.json` of a dataset version's folder.

    Raises:
        NotFoundError: there is none of that name.
        CorruptDataError: it is damaged.
    """
    path = _path(folder, name)
    try:
        text = read_file(path)
    except NotFoundError as error:
        known = preprocessing_names(folder)
        raise NotFoundError(
            f"no preprocessing {name!r} is stored in {str(folder)!r}",
            hint=near(name, known) if known else "fit it on the train split and save it with the version",
            name=name,
        ) from error
    return preprocessing_from_json(text, path=str(path))


def preprocessing_names(folder: str | AnyPath) -> tuple[str, ...]:
    """Name what is stored in a dataset version's folder."""
    home = _path(folder, DEFAULT_NAME).parent
    return tuple(sorted(path.stem for path in home.glob("*.json"))) if home.is_dir() else ()


@dataclass(frozen=True, slots=True)
class PreprocessingRef:
    """Which preprocessing of which dataset version."""

    dataset: str
    version: int
    name: str


def preprocessing_ref(text: object) -> PreprocessingRef:
    """Read `dataset@version[:name]`; without a name it is the one called `default`.

    Raises:
        DefinitionError: it is something else, or gives no version: a model is served with what it was
            trained with, never with the newest.
    """
    match = _REF.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise DefinitionError(
            f"{text!r} names no preprocessing",
            hint='write "dataset@version" or "dataset@version:name"',
            ref=text,
        )
    return PreprocessingRef(
        check_name(match["dataset"], "dataset"),
        int(match["version"]),
        check_name(match["name"] or DEFAULT_NAME, "preprocessing"),
    )


def check_kind(kind: str) -> Kind:
    """Return a known kind.

    Raises:
        DefinitionError: it is none.
    """
    for known in KINDS:
        if kind == known:
            return known
    raise DefinitionError(f"preprocessing kind {kind!r}", hint=f"one of {', '.join(KINDS)}")


def _path(folder: str | AnyPath, name: str) -> AnyPath:
    home = Path(folder) if isinstance(folder, str) else folder
    return home / "preprocessing" / f"{check_name(name, 'preprocessing')}.json"
