"""JAX: batches as pytrees of (global) arrays. The only file that imports jax."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

try:
    import jax
except ImportError as missing:
    from featurestore.errors import MissingDependencyError

    raise MissingDependencyError(
        "JAX batches need jax, which is not installed", hint="pip install 'featurestore[jax]'"
    ) from missing

from featurestore.core.arguments import refuse
from featurestore.errors import DefinitionError, LoaderStateError, SchemaError
from featurestore.loaders.batch import Batch
from featurestore.loaders.loader import HostTier, Loader
from featurestore.loaders.options import LoaderOptions, check_host, options_of, rank_of
from featurestore.loaders.prepare import Prepared, prepare
from featurestore.storage.shards import ShardSet

_TIMES: Final = ("time", "delta_ns")
_INT32: Final = np.iinfo(np.int32)


class JaxHostTier(HostTier):
    """The CPU tier with arrays put on devices by the loader's threads, ahead of the consumer.

    JAX may read a host buffer later, or share it: the array keeps the buffer's lease until it does no more.
    """

    def __init__(self, prepared: Prepared, *, sharding: Any, reason: str) -> None:
        super().__init__(prepared, reason=reason)
        self._sharding = sharding
        self._wide = has_64_bits()

    def finish(self, batch: Batch) -> Batch:
        """Narrow what JAX would truncate, then place every array."""
        changed: dict[str, Any] = {}
        for name, value in batch.items():
            if isinstance(value, dict):
                changed[name] = {key: self._placed(item, f"{name}.{key}") for key, item in value.items()}
            else:
                changed[name] = self._placed(value, name)
        return Batch(**changed)

    def report(self) -> dict[str, Any]:
        """Say what is used and why."""
        return {
            **super().report(),
            "path": "memory-mapped shards, one row gather per batch, device_put on the loader's threads",
            "sharding": str(self._sharding),
        }

    def _placed(self, value: npt.NDArray[Any], name: str) -> jax.Array:
        if not self._wide:
            value = narrowed(value, name, self._is_time(name))
        if self._sharding is None:
            placed: jax.Array = jax.device_put(value)
            return placed
        world = self.prepared.plan.world
        shape = (value.shape[0] * world, *value.shape[1:])
        whole: jax.Array = jax.make_array_from_process_local_data(self._sharding, value, shape)  # type: ignore[no-untyped-call] # jax's own
        return whole

    def _is_time(self, name: str) -> bool:
        extra = name.removeprefix("extras.")
        schema = self.prepared.source.manifest.schema
        return name in _TIMES or (extra != name and str(schema.field(extra).type).startswith("timestamp"))


class JaxLoader(Loader):
    """Batches of JAX arrays; a batch is a pytree."""

    _compared = False

    def before_pass(self) -> None:
        """Compare fingerprints over processes, once.

        Raises:
            LoaderStateError: the processes do not load the same thing.
        """
        if self._compared or jax.process_count() == 1:
            return
        from jax.experimental import multihost_utils  # noqa: PLC0415 - only with several processes

        words = np.frombuffer(bytes.fromhex(self.fingerprint), np.uint32)
        mine = np.concatenate([words, np.asarray([self._epoch, self._step], np.uint32)])
        found = np.asarray(multihost_utils.process_allgather(mine))
        if (found != mine).any():
            raise LoaderStateError(
                "the processes do not load the same batches: fingerprints or positions differ",
                hint="open the same version with the same options, and load the same state, everywhere",
            )
        self._compared = True


def has_64_bits() -> bool:
    """Say whether JAX keeps 64-bit types now."""
    return bool(jax.dtypes.canonicalize_dtype(np.int64) == np.int64)


def narrowed(value: npt.NDArray[Any], name: str, is_time: bool) -> npt.NDArray[Any]:
    """Make 64-bit values 32-bit without ever losing an integer's bits in silence.

    Times become `(…, 2)` uint32: high word, low word. Other integers must fit.

    Raises:
        SchemaError: an integer that 32 bits cannot hold.
    """
    if is_time:
        return np.stack([(value >> 32).astype(np.uint32), (value & 0xFFFFFFFF).astype(np.uint32)], axis=-1)
    if value.dtype == np.float64:
        return value.astype(np.float32)
    if value.dtype.kind in "iu" and value.dtype.itemsize == 8:
        if value.size and (int(value.min()) < _INT32.min or int(value.max()) > _INT32.max):
            raise SchemaError(
                f"{name!r} holds integers beyond 32 bits, and JAX runs without 64",
                hint='jax.config.update("jax_enable_x64", True), or load the column as dtype="float32"',
                column=name,
            )
        return value.astype(np.int32)
    return value


def open_jax_loader(
    dataset: str | Path | ShardSet, version: int | None = None, *, sharding: Any = None, **options: Any
) -> JaxLoader:
    """Open a loader of JAX arrays; arguments as for `open_loader`.

    Args:
        sharding: A `NamedSharding` over the batch axis: arrays are global, their leading axis the global
            batch, in the order of the processes. None: arrays on the default device.

    Raises:
        DefinitionError: no sharding, or one that does not divide a batch; a `device`.
    """
    chosen: LoaderOptions = options_of(options)
    check_host(chosen, "JAX moves batches to devices by itself")
    found = (jax.process_index(), jax.process_count()) if jax.process_count() > 1 else None
    rank, world = rank_of(chosen, found)
    prepared = prepare(dataset, version, chosen, rank=rank, world=world)
    if sharding is not None:
        _check_sharding(sharding, prepared)
    if not has_64_bits():
        _warn_of_truncation(prepared)
    backend = jax.default_backend()
    reason = f"JAX's default backend is {backend}; its own transfers move the batches"
    return JaxLoader(prepared, JaxHostTier(prepared, sharding=sharding, reason=reason))


def _check_sharding(sharding: Any, prepared: Prepared) -> None:
    if not isinstance(sharding, jax.sharding.Sharding):
        refuse("a loader", "sharding", sharding, "give a jax.sharding.NamedSharding over the batch axis")
    rows = prepared.plan.global_batch
    if prepared.plan.drop_last is False:
        raise DefinitionError(
            "drop_last=False makes a last batch of another shape, which no sharding divides",
            hint='drop_last=True, or "pad"',
        )
    try:
        sharding.shard_shape((rows,))
    except ValueError as error:
        raise DefinitionError(
            f"a global batch of {rows} rows does not divide over {sharding}",
            hint="choose a multiple of its devices",
        ) from error


def _warn_of_truncation(prepared: Prepared) -> None:
    fields = prepared.fields
    wide = [m.name for m in fields.matrices if m.dtype in {"float64", "int64", "uint64"}]
    schema = prepared.source.manifest.schema
    wide += [s.name for s in fields.labels if (s.dtype or str(schema.field(s.name).type)) in _WIDE]
    times = [*(["time"] if fields.time else []), *(["delta_ns"] if prepared.windows is not None else [])]
    times += [n for n in fields.extras if str(schema.field(n).type).startswith("timestamp")]
    if wide or times:
        parts = [f"{', '.join(wide)} become 32-bit"] if wide else []
        parts += [f"{', '.join(times)} become two uint32 words (high, low)"] if times else []
        warnings.warn(
            f"JAX runs without 64-bit types: {'; '.join(parts)}. Pass dtype= and label_dtype=, or "
            'jax.config.update("jax_enable_x64", True)',
            UserWarning,
            stacklevel=3,
        )


_WIDE: Final = frozenset({"float64", "double", "int64", "uint64"})


def _flatten(batch: Batch) -> tuple[Iterable[Any], tuple[str, ...]]:
    names = tuple(batch)
    return [batch[name] for name in names], names


def _unflatten(names: tuple[str, ...], values: Iterable[Any]) -> Batch:
    return Batch(**dict(zip(names, values, strict=True)))


jax.tree_util.register_pytree_node(Batch, _flatten, _unflatten)
