"""PyTorch: batches as tensors, alone or under DataLoader, and the device tiers over torch.cuda.

The only file that imports torch.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

try:
    import torch
    import torch.distributed
except ImportError as missing:
    from featurestore.errors import MissingDependencyError

    raise MissingDependencyError(
        "PyTorch batches need torch, which is not installed", hint="pip install 'featurestore[torch]'"
    ) from missing

from featurestore.core.arguments import whole
from featurestore.errors import DefinitionError, LoaderStateError, MissingDependencyError, SchemaError
from featurestore.loaders.batch import Batch
from featurestore.loaders.device_tier import device_tier
from featurestore.loaders.loader import HostTier, Loader, Tier
from featurestore.loaders.options import LoaderOptions, options_of, rank_of
from featurestore.loaders.prepare import Prepared, prepare
from featurestore.loaders.state import position_in, state_of
from featurestore.storage.shards import ShardSet

# torch has few operations on wide unsigned integers; the next signed type holds every value.
_WIDER: Final = {"uint16": torch.int32, "uint32": torch.int64}


def to_tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    """Wrap an array without a copy; unsigned 16 and 32 bit integers become the next wider signed type.

    Raises:
        SchemaError: unsigned 64 bit integers, which torch cannot compute with.
    """
    if array.dtype.name in _WIDER:
        array = array.astype("int32" if array.dtype.itemsize == 2 else "int64")
    torch_type(array.dtype.name)
    return torch.from_numpy(array)


def torch_type(name: str) -> torch.dtype:
    """Give the torch type of a NumPy name.

    Raises:
        SchemaError: unsigned 64 bit integers.
    """
    if name == "uint64":
        raise SchemaError(
            "uint64 has no usable tensor type", hint='pass dtype="float64" or leave the column out'
        )
    found: torch.dtype = _WIDER.get(name) or getattr(torch, name)
    return found


class TorchDevice:
    """The `Device` of torch: CUDA with a side stream, or the CPU, where everything happens at once."""

    def __init__(self, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self.cuda = self.device.type == "cuda"
        self._side = torch.cuda.Stream(self.device) if self.cuda else None  # type: ignore[no-untyped-call] # torch's own

    @property
    def name(self) -> str:
        """Say which device."""
        return torch.cuda.get_device_name(self.device) if self.cuda else str(self.device)

    def free_bytes(self) -> int:
        """Return free device memory, with what torch's allocator holds and does not use."""
        if not self.cuda:
            return 1 << 30
        free = int(torch.cuda.mem_get_info(self.device)[0])
        return free + torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)

    def pinned(self, size: int) -> npt.NDArray[np.uint8]:
        """Allocate page-locked memory (ordinary memory for the CPU)."""
        memory: npt.NDArray[np.uint8] = torch.empty(size, dtype=torch.uint8, pin_memory=self.cuda).numpy()
        return memory

    def empty(self, size: int) -> torch.Tensor:
        """Allocate device bytes on the consumer's stream."""
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def copy(self, target: torch.Tensor, offset: int, source: npt.NDArray[np.uint8]) -> None:
        """Enqueue a copy on the side stream."""
        with torch.cuda.stream(self._side):
            target[offset : offset + source.size].copy_(torch.from_numpy(source), non_blocking=True)

    def side_event(self) -> Any:
        """Mark a point of the side stream."""
        return None if self._side is None else self._side.record_event()

    def consumer_event(self) -> Any:
        """Mark a point of the current stream."""
        return torch.cuda.current_stream(self.device).record_event() if self.cuda else None

    def side_wait(self, event: Any) -> None:
        """Let the side stream wait."""
        if self._side is not None and event is not None:
            self._side.wait_event(event)

    def consumer_wait(self, event: Any) -> None:
        """Let the current stream wait."""
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)

    def host_wait(self, event: Any) -> None:
        """Block until the event has happened."""
        if event is not None:
            event.synchronize()

    def upload(self, values: npt.NDArray[Any]) -> torch.Tensor:
        """Copy a small host array, without waiting for what the current stream still has to do."""
        wider = _WIDER.get(values.dtype.name)
        host = torch.from_numpy(np.array(values.astype(np.int64) if wider else values)).to(wider)
        if not self.cuda:
            return host
        # torch keeps the pinned copy until the stream has read it; from pageable memory the call would wait.
        return host.pin_memory().to(self.device, non_blocking=True)

    def view(self, buffer: torch.Tensor, offset: int, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
        """See device bytes as a tensor."""
        kind = torch_type(dtype)
        size = int(np.prod(shape)) * kind.itemsize
        return buffer[offset : offset + size].view(kind).reshape(shape)

    def take(self, array: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Gather rows into a new tensor."""
        return array.index_select(0, index)

    def cast(self, array: torch.Tensor, dtype: str) -> torch.Tensor:
        """Change the type."""
        return array.to(torch_type(dtype))

    def where(self, mask: torch.Tensor, array: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Choose by a mask."""
        return torch.where(mask != 0, array, other)

    def concat(self, arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        """Join along the last axis."""
        return torch.cat(list(arrays), dim=-1)

    def reshape(self, array: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """See in another shape."""
        return array.reshape(shape)


class TorchHostTier(HostTier):
    """The CPU tier with tensors over the same memory."""

    def finish(self, batch: Batch) -> Batch:
        """Wrap arrays as tensors."""
        return batch.map(to_tensor)


class TorchLoader(Loader, torch.utils.data.IterableDataset[Any]):
    """Batches of tensors. Give it to a trainer as it is: it needs no DataLoader around it.

    Under `DataLoader(loader, batch_size=None)` batches are dicts of tensors; in the workers of one it is its
    own `as_torch_dataset()`.
    """

    _compared = False
    _shared: "TorchBatches | None" = None

    def __iter__(self) -> Any:
        """Begin a pass; see `Loader`. In a worker of a `DataLoader`, over this worker's share of it."""
        return super().__iter__() if _outside() else iter(self._share())

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last delivered batch; in a worker, the worker's own."""
        return super().state_dict() if _outside() else self._share().state_dict()

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Set the position of the next pass; see `Loader`."""
        if _outside():
            super().load_state_dict(state, strict=strict)
        else:
            self._share().load_state_dict(state)

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process gets batches on the host, as a worker of a DataLoader makes them.
        return _reopened, (self.prepared, self._epoch, self._step)

    def _share(self) -> "TorchBatches":
        if self._shared is None:
            self._shared = self.as_torch_dataset()
        return self._shared

    def before_pass(self) -> None:
        """Compare fingerprints and positions over ranks, once: one small all-gather.

        Raises:
            LoaderStateError: the ranks do not load the same thing.
        """
        if self._compared or self.prepared.plan.world == 1 or _process_group() is None:
            return
        mine = (self.fingerprint, self._epoch, self._step)
        found: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(found, mine)
        if any(other != mine for other in found):
            shown = ", ".join(f"rank {i}: {f[0][:8]} epoch {f[1]} step {f[2]}" for i, f in enumerate(found))
            raise LoaderStateError(
                f"the ranks do not load the same batches: {shown}",
                hint="open the same version with the same options, and load the same state, on every rank",
            )
        self._compared = True

    def as_torch_dataset(self) -> "TorchBatches":
        """Return an `IterableDataset` of ready batches for `DataLoader(…, batch_size=None)`."""
        return TorchBatches(self)

    def as_node(self) -> Any:
        """Return a `torchdata.nodes.BaseNode` of batches.

        Raises:
            MissingDependencyError: torchdata is not installed.
        """
        return torchdata_node(self)


class TorchBatches(torch.utils.data.IterableDataset[dict[str, Any]]):
    """Batches for a `DataLoader`: worker `i` of `n` makes every `n`-th; they arrive in order.

    Each batch is a dict of tensors (what DataLoader can move between processes). Every pass is one epoch;
    with workers that are started anew for each pass, call `set_epoch` before it, since they cannot count
    for the process that owns this object.
    """

    def __init__(self, loader: TorchLoader) -> None:
        super().__init__()
        self._prepared = loader.prepared
        self._epoch, self._start = loader._epoch, loader._step
        self._share: tuple[int, int] | None = None  # (worker, workers) whose own next step `_start` is

    def __len__(self) -> int:
        return self._prepared.plan.steps - self._start

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be this epoch, from its start.

        Raises:
            DefinitionError: a negative epoch, or no whole number.
        """
        self._epoch, self._start, self._share = whole("a pass", "epoch", epoch, least=0), 0, None

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch that this object made, in the process that makes them.

        In a worker it is that worker's own position (what `StatefulDataLoader` collects from each). For
        torch's plain `DataLoader` with workers count in the training loop and take
        `{**loader.state_dict(), "epoch": e, "step": k}`.
        """
        prepared = self._prepared
        state = state_of(
            prepared.identity,
            seed=prepared.order.seed,
            epoch=self._epoch,
            step=self._start,
            global_batch=prepared.plan.global_batch,
            streams=prepared.order.streams,
        )
        return state if self._share is None else {**state, "share": list(self._share)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the position of the next pass.

        Raises:
            LoaderStateError: the state is of another loader, or of a worker beside another number of them.
        """
        prepared = self._prepared
        share, mine = state.get("share"), _worker()
        if share is not None and tuple(share) != mine:
            raise LoaderStateError(
                f"the state is of worker {share[0]} of {share[1]}, and this is {mine[0]} of {mine[1]}",
                hint="resume with as many workers as were saved, or from the loader's own state",
            )
        self._epoch, self._start = position_in(
            state, prepared.identity, global_batch=prepared.plan.global_batch
        )
        self._share = None if share is None else (share[0], share[1])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        prepared = self._prepared
        worker, workers = _worker()
        tier = TorchHostTier(prepared, reason="under a DataLoader")
        walk = prepared.step_rows()
        padded = prepared.plan.drop_last == "pad"
        epoch, start = self._epoch, self._start
        first = start + worker if self._share is None else start
        for step in range(first, prepared.plan.steps, workers):
            rows, real = walk.rows(epoch, step)
            batch = tier.finish(tier.gather.batch(rows, real if padded else None))
            self._start = step + workers
            self._share = (worker, workers) if workers > 1 else None
            yield dict(batch)
        self.set_epoch(epoch + 1)


def _outside() -> bool:
    return torch.utils.data.get_worker_info() is None


def _reopened(prepared: Prepared, epoch: int, step: int) -> TorchLoader:
    tier = TorchHostTier(prepared, reason="carried to another process, where batches are made on the host")
    loader = TorchLoader(prepared, tier)
    loader._epoch, loader._step = epoch, step
    return loader


def _worker() -> tuple[int, int]:
    """Return (worker, workers) of a `DataLoader`, (0, 1) outside of one."""
    info = torch.utils.data.get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def open_torch_loader(
    dataset: str | Path | ShardSet, version: int | None = None, **options: Any
) -> TorchLoader:
    """Open a loader of tensors; arguments as for `open_loader`.

    `device`: `"auto"` takes the current CUDA device where there is one; `io`: `auto`, `resident`, `pinned`
    (streamed), `gds`, or `cpu` (tensors on the host whatever the device).

    Raises:
        DefinitionError: an unknown `io`, a device that is not there.
    """
    chosen: LoaderOptions = options_of(options)
    rank, world = rank_of(chosen, _process_group())
    prepared = prepare(dataset, version, chosen, rank=rank, world=world)
    return TorchLoader(prepared, choose_tier(prepared))


def choose_tier(prepared: Prepared) -> Tier:
    """Choose the tier by what is there; `io_report()` says which and why.

    Raises:
        DefinitionError: an unknown `io`, a CUDA device that is not there.
    """
    options = prepared.options
    device = _device(options.device)
    if options.io in {"cpu", "mmap"}:
        return TorchHostTier(prepared, reason=f"io={options.io!r} was asked for")
    if device.type == "cpu" and options.io == "auto":
        why = "the device is the CPU" if torch.cuda.is_available() else "torch sees no CUDA device"
        return TorchHostTier(prepared, reason=why)
    return device_tier(prepared, TorchDevice(device))


def _device(wanted: Any) -> torch.device:
    if wanted == "auto":
        return (
            torch.device("cuda", torch.cuda.current_device())
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
    try:
        device = torch.device(wanted)
    except (TypeError, RuntimeError) as error:
        raise DefinitionError(
            f"device is {wanted!r}, which torch does not know", hint='"auto", "cpu", "cuda" or a torch.device'
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DefinitionError(
            f"device is {wanted!r}, but torch sees no CUDA device",
            hint='device="cpu", or install a CUDA build of torch',
        )
    return device


def _process_group() -> tuple[int, int] | None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return None


def torchdata_node(loader: TorchLoader) -> Any:
    """Wrap a loader as a `torchdata.nodes.BaseNode`.

    Raises:
        MissingDependencyError: torchdata is not installed.
    """
    try:
        nodes: Any = importlib.import_module("torchdata.nodes")
    except ImportError as error:
        raise MissingDependencyError("as_node() needs torchdata", hint="pip install torchdata") from error

    class LoaderNode(nodes.BaseNode):  # type: ignore[misc] # found at run time
        """One pass over (the rest of) an epoch at a time."""

        def reset(self, initial_state: dict[str, Any] | None = None) -> None:
            super().reset(initial_state)
            if initial_state is not None:
                loader.load_state_dict(initial_state)
            self._pass = iter(loader)

        def next(self) -> Batch:
            batch: Batch = next(self._pass)
            return batch

        def get_state(self) -> dict[str, Any]:
            return loader.state_dict()

    return LoaderNode()
