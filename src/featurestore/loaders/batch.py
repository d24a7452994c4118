"""Batches: frozen, mapping-like values, the same fields whatever made them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class Batch(Mapping[str, Any]):
    """Rows of one step. Fields that were not asked for are `None` or empty, and absent from the mapping.

    A batch owns its memory: it stays valid as long as anything refers to it, and may be written to.

    Attributes:
        x: Features. One matrix `(N, F)`; with several stored types and no `dtype` a dict of one matrix per
            type; with `layout="columns"` a dict of `(N,)` columns; with a window `(N, L, F)`.
        y: The label `(N,)`; a dict by name where there are several.
        w: `(N,)` weights; padded rows weigh 0.
        mask: 1 where a feature is valid, 0 where it was null; shaped like `x`. With `nulls="mask"`.
        codes: Strings as int32 codes by feature, 0 for null and unknown, `1 + place` in the vocabulary.
        extras: Features that fit no matrix, by name: timestamps as int64 ns, embeddings `(N, d)`.
        valid: `(N,)` 1 for real rows, 0 for padding; with `drop_last="pad"`.
        time: `(N,)` event time, int64 ns since 1970 UTC.
        entity: `(N,)` int32 entity code.
        window_mask: `(N, L)` 1 where the window holds a row, 0 where it is left padding.
        delta_ns: `(N, L)` age of each window row at the anchor's time, ns; 0 on padding.
    """

    x: Any = None
    y: Any = None
    w: Any = None
    mask: Any = None
    codes: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)
    valid: Any = None
    time: Any = None
    entity: Any = None
    window_mask: Any = None
    delta_ns: Any = None

    @property
    def xy(self) -> tuple[Any, Any]:
        """The pair that a training step takes."""
        return self.x, self.y

    @property
    def rows(self) -> int:
        """Rows in the batch, padding included."""
        return int(next(iter(self._leaves())).shape[0])

    def map(self, function: Callable[[Any], Any]) -> "Batch":
        """Return a batch with `function` applied to every array."""
        return replace(self, **{name: _mapped(value, function) for name, value in self.items()})

    def to(self, *args: Any, **kwargs: Any) -> "Batch":
        """Move every tensor, as `torch.Tensor.to` would."""
        return self.map(lambda value: value.to(*args, **kwargs))

    def pin_memory(self) -> "Batch":
        """Copy every tensor to pinned memory."""
        return self.map(lambda value: value.pin_memory())

    def clone(self) -> "Batch":
        """Copy every array."""
        return self.map(lambda value: value.clone() if hasattr(value, "clone") else value.copy())

    def numpy(self) -> "Batch":
        """Bring every array to the host as NumPy."""
        return self.map(_numpy)

    def __getitem__(self, name: str) -> Any:
        value = getattr(self, name, None) if name in _NAMES else None
        if _absent(value):
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return (name for name in _NAMES if not _absent(getattr(self, name)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        shown = (f"{name}={_shape(value)}" for name, value in self.items())
        return f"Batch({', '.join(shown)})"

    def _leaves(self) -> Iterator[Any]:
        for value in self.values():
            yield from value.values() if isinstance(value, Mapping) else (value,)


_NAMES = tuple(f.name for f in fields(Batch))


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, Mapping) and not value)


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {name: function(item) for name, item in value.items()}
    return function(value)


def _numpy(value: Any) -> Any:
    import numpy as np  # noqa: PLC0415 - batches of other libraries need none of it

    return np.asarray(value.cpu() if hasattr(value, "cpu") else value)


def _shape(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_shape(item)}" for name, item in value.items()) + "}"
    return f"{value.dtype}{list(value.shape)}"
