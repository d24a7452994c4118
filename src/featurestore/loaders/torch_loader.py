"""PyTorch: batches as tensors, alone or under DataLoader, and the device tiers over torch.cuda. The only file that imports torch."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featurestore.errors import DefinitionError
from featurestore.loaders.batch import Batch
from featurestore.loaders.loader import HostTier, Loader
from featurestore.loaders.prepare import LoaderOptions, Prepared, options_of, prepare, rank_of
from featurestore.storage.shards import ShardSet

# torch has no unsigned types beyond bytes that its operators take; the next wider signed type holds every value.
_WIDER = {np.dtype(np.uint16): np.int32, np.dtype(np.uint32): np.int64}


def to_tensor(array: Any) -> torch.Tensor:
    """Wrap an array without a copy; unsigned 16 and 32 bit integers become the next wider signed type.

    Raises:
        DefinitionError: unsigned 64 bit integers, which no tensor type holds.
    """
    if array.dtype in _WIDER:
        array = array.astype(_WIDER[array.dtype])
    if array.dtype == np.uint64:
        raise DefinitionError(
            "uint64 has no tensor type", hint='pass dtype="float32" or "int64", or leave it out'
        )
    return torch.from_numpy(array)


class TorchHostTier(HostTier):
    """The CPU tier with tensors over the same memory."""

    def finish(self, batch: Batch) -> Batch:
        """Wrap arrays as tensors."""
        return batch.map(to_tensor)


class TorchLoader(Loader):
    """Batches of tensors."""


def open_torch_loader(
    dataset: str | Path | ShardSet, version: int | None = None, **options: Any
) -> TorchLoader:
    """Open a loader of tensors; arguments as for `open_loader`."""
    chosen: LoaderOptions = options_of(options)
    rank, world = rank_of(chosen, _process_group())
    prepared: Prepared = prepare(dataset, version, chosen, rank=rank, world=world)
    return TorchLoader(prepared, TorchHostTier(prepared, reason="no CUDA device"))


def _process_group() -> tuple[int, int] | None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return None
