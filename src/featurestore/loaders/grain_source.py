"""The samples of a loader as a random-access source: what Grain (and anything map-style) asks for."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from featurestore.errors import DefinitionError
from featurestore.loaders.batch import Batch
from featurestore.loaders.buffers import BufferPool
from featurestore.loaders.host import HostGather, host_gather
from featurestore.loaders.prepare import Prepared


class GrainSource:
    """Sample `i` of a loader, in stored order (time order with `shuffle=False`), as a flat dict of arrays.

    Satisfies `grain.python.RandomAccessDataSource`; Grain shuffles and resumes by itself. Pickles by
    reopening. One record per call costs some 0.05 ms: use `__getitems__` for many, and the loader itself for
    speed.
    """

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._gather: HostGather | None = None

    def __len__(self) -> int:
        return self._prepared.selection.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one sample.

        Raises:
            IndexError: out of range, which ends map-style iteration.
        """
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"sample {index} of {count}")
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return samples with one gather.

        Raises:
            DefinitionError: an index out of range.
        """
        count = len(self)
        wanted = np.asarray(indices, np.int64)
        wanted = np.where(wanted < 0, wanted + count, wanted)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= count):
            raise DefinitionError(f"samples up to {wanted.max()} were asked for, there are {count}")
        batch = self._reader().batch(self._prepared.selection.rows_of(wanted).astype(np.int64))
        flat = _flat(batch)
        return [{name: values[i] for name, values in flat.items()} for i in range(wanted.size)]

    # Grain's name for batched reads.
    _getitems = __getitems__

    def __repr__(self) -> str:
        """Grain compares this text when it restores a checkpoint: it holds the fingerprint."""
        return f"GrainSource({self._prepared.identity.fingerprint}, samples={len(self)})"

    def __getstate__(self) -> dict[str, Any]:
        return {"_prepared": self._prepared, "_gather": None}

    def _reader(self) -> HostGather:
        if self._gather is None:
            prepared = self._prepared
            self._gather = host_gather(prepared, BufferPool(idle=8))
        return self._gather


def _flat(batch: Batch) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in batch.items():
        if hasattr(value, "items"):
            out |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            out[name] = value
    return out
