"""The loader: an ordinary iterable of batches with a length, a position and a report."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from featurestore.core.arguments import text, whole
from featurestore.core.names import near
from featurestore.errors import LoaderStateError, NotFoundError
from featurestore.loaders.batch import Batch
from featurestore.loaders.buffers import BufferPool
from featurestore.loaders.fitting import fit_preprocessing
from featurestore.loaders.grain_source import GrainSource
from featurestore.loaders.host import host_gather
from featurestore.loaders.leakage import leakage_report
from featurestore.loaders.options import LoaderOptions, check_host, options_of, rank_of
from featurestore.loaders.prefetch import OrderedPrefetch, forks
from featurestore.loaders.prepare import Prepared, prepare
from featurestore.loaders.progress import Progress, open_progress
from featurestore.loaders.state import position_in, state_of
from featurestore.loaders.stats import Stats
from featurestore.resolve.preprocessing import Preprocessing
from featurestore.storage.shards import ShardSet

# Threads make so much at a time: enough to pay for handing it over, little enough to stay in cache.
GROUP_BYTES: Final = 4 << 20


class Feed(Protocol):
    """The batches of one epoch, from one step on."""

    @property
    def depth(self) -> int:
        """Batches that are ready and waiting."""
        ...

    def take(self) -> Batch | None:
        """Return the next batch, None after the last."""
        ...

    def close(self, *, wait: bool = True) -> None:
        """End threads and drop what is pending; without `wait` do not wait for what runs."""
        ...


class Tier(Protocol):
    """A way of making batches; every tier makes the same ones."""

    def feed(self, epoch: int, step: int, stats: Stats) -> Feed:
        """Begin an epoch at a step."""
        ...

    def report(self) -> dict[str, Any]:
        """Say what is used and why."""
        ...

    def close(self) -> None:
        """Free buffers."""
        ...


class HostTier:
    """The CPU tier: threads gather whole batches from the mapped shards."""

    def __init__(self, prepared: Prepared, *, reason: str = "") -> None:
        self.prepared = prepared
        self.reason = reason
        length = 1 if prepared.windows is None else prepared.windows.window.lookback
        batch_bytes = max(1, prepared.plan.batch * length * prepared.fields.row_bytes)
        self.group = max(1, min(16, GROUP_BYTES // batch_bytes))
        self.pool = BufferPool(idle=4 * (self.group * (prepared.prefetch + 1) + 3))
        self.gather = host_gather(prepared, self.pool)

    def feed(self, epoch: int, step: int, stats: Stats) -> OrderedPrefetch[Batch]:
        """Begin an epoch at a step."""
        prepared = self.prepared
        walk = prepared.step_rows()
        padded = prepared.plan.drop_last == "pad"

        begun = {walk.chunk_at(step)}

        def hint(number: int) -> Callable[[], object] | None:
            """Let a thread work out the next chunk's order when the first step of a chunk is handed out."""
            soon = walk.chunk_at(number) + 1
            if soon in begun or soon >= prepared.order.chunks or prepared.order.shuffle == "none":
                return None
            begun.add(soon)
            return partial(walk.chunk, epoch, soon)

        def build(number: int) -> Batch:
            rows, real = walk.rows(epoch, number)
            return self.finish(self.gather.batch(rows, real if padded else None))

        return OrderedPrefetch(
            build,
            step,
            prepared.plan.steps,
            threads=prepared.threads,
            ahead=prepared.prefetch,
            stats=stats,
            group=self.group,
            hint=hint,
        )

    def finish(self, batch: Batch) -> Batch:
        """Turn a batch of NumPy arrays into what is delivered; runs on the loader's threads."""
        return batch

    def report(self) -> dict[str, Any]:
        """Say what is used and why."""
        return {
            "tier": "cpu",
            "reason": self.reason,
            "path": "memory-mapped shards, one row gather per batch",
        }

    def close(self) -> None:
        """Nothing is held between epochs."""


class Loader:
    """Batches of one immutable dataset version, in an order that depends on nothing else.

    Iterating again gives the next epoch. One pass at a time: a new one ends the one before.

    Attributes:
        fingerprint: Of everything that decides which rows and values come when; equal on all ranks.
    """

    def __init__(self, prepared: Prepared, tier: Tier) -> None:
        self.prepared = prepared
        self.tier = tier
        self.fingerprint = prepared.identity.fingerprint
        self._stats = Stats()
        self._epoch = 0
        self._step = 0
        self._begun = False
        self._current: LoaderIterator | None = None
        self._closed = False

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        return self.prepared.plan.steps

    def __iter__(self) -> "LoaderIterator":
        """Begin a pass: the rest of the epoch after a state was loaded, else a whole one.

        A pass of which nothing was taken does not count: trainers open iterators only to look at them.

        Raises:
            LoaderStateError: the loader is closed.
        """
        if self._closed:
            raise LoaderStateError("the loader is closed", hint="open it again")
        if self._current is not None:
            self._current.close()
        if self._begun or self._step >= len(self):
            self._epoch, self._step, self._begun = self._epoch + 1, 0, False
        self.before_pass()
        self._current = LoaderIterator(self)
        return self._current

    def before_pass(self) -> None:
        """Called before each pass; adapters compare ranks here."""

    @property
    def epoch(self) -> int:
        """The epoch of the pass that runs, or of the next one."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be epoch `epoch` from its start.

        Raises:
            DefinitionError: a negative epoch, or no whole number.
        """
        self._epoch, self._step, self._begun = whole("a pass", "epoch", epoch, least=0), 0, False

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last delivered batch: small JSON, equal on all ranks."""
        prepared = self.prepared
        return state_of(
            prepared.identity,
            seed=prepared.order.seed,
            epoch=self._epoch,
            step=self._step,
            global_batch=prepared.plan.global_batch,
            streams=prepared.order.streams,
        )

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Let the next pass continue behind the batches that a state counts. Costs nothing but the check.

        Raises:
            LoaderStateError: the state is of another loader; see `position_in`.
        """
        plan = self.prepared.plan
        epoch, step = position_in(
            state, self.prepared.identity, global_batch=plan.global_batch, strict=strict
        )
        if self._current is not None:
            self._current.close()
        self._epoch, self._step, self._begun = epoch, step, False

    # Grain's and Orbax's names for the same.
    get_state = state_dict
    set_state = load_state_dict

    def io_report(self) -> dict[str, Any]:
        """Say which tier feeds, by which path, and why; what is verified; how much is held in memory."""
        prepared = self.prepared
        source = prepared.source
        selection = prepared.selection
        return {
            **self.tier.report(),
            "threads": prepared.threads,
            "prefetch": prepared.prefetch,
            "rank": prepared.plan.rank,
            "world_size": prepared.plan.world,
            "verify": source.verify + (f" ({source.verify_reason})" if source.verify_reason else ""),
            "index_bytes": 0 if selection.rows is None else selection.rows.nbytes,
            "samples": selection.count,
            "rows": source.rows,
            "dataset": f"{source.manifest.name} version {source.manifest.version}",
        }

    def leakage_report(self) -> dict[str, Any]:
        """Count what the split removed from every subset and check that nothing overlaps; see `leakage`."""
        return leakage_report(self.prepared)

    def fit_preprocessing(self, kinds: Mapping[str, str] | str, *, name: str = "default") -> Preprocessing:
        """Fit transforms on this loader's samples, which must be a train split; see `fitting`."""
        return fit_preprocessing(self.prepared, kinds, name=name)

    def grain_source(self) -> GrainSource:
        """Return the samples as a random-access source for Grain: compatible, not fast."""
        return GrainSource(self.prepared)

    def stats(self) -> dict[str, Any]:
        """Return rows/s, share of time waited, queue depths since the loader was opened."""
        return self._stats.as_dict()

    @property
    def feature_names(self) -> tuple[str, ...] | dict[str, tuple[str, ...]]:
        """The columns of `x` in their order; by type where `x` is a dict of one matrix per type."""
        names = {matrix.name: matrix.features for matrix in self.prepared.fields.matrices}
        return names if len(names) > 1 else names.get("x", ())

    def vocabulary(self, name: str) -> tuple[str, ...]:
        """Return a string column's values in the order of their codes from 1 on.

        Raises:
            NotFoundError: no such column among the codes of a batch.
        """
        known = self.prepared.vocabularies
        if text("a loader", "vocabulary", name) not in known:
            raise NotFoundError(f"no string column {name!r} is loaded", hint=near(name, known), name=name)
        return known[name]

    def close(self) -> None:
        """End threads and free buffers; batches already delivered stay valid."""
        self._closed = True
        if self._current is not None:
            self._current.close()
        self.tier.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # Threads, buffers and mappings stay; what decides the batches travels.
        if type(self.tier) is not HostTier:
            raise LoaderStateError(
                f"a {self.tier.report()['tier']} {type(self).__name__} cannot be carried to another process",
                hint="open it there, and load the state",
            )
        return _reopened, (self.prepared, self.tier.reason, self._epoch, self._step)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        plan, manifest = self.prepared.plan, self.prepared.source.manifest
        return (
            f"{type(self).__name__}({manifest.name!r} version {manifest.version}, {len(self)} batches of "
            f"{plan.batch} rows, rank {plan.rank} of {plan.world})"
        )

    def _delivered(self) -> None:
        self._step += 1
        self._begun = True

    def _finished(self) -> None:
        self._epoch, self._step, self._begun = self._epoch + 1, 0, False
        self._current = None


class LoaderIterator(Iterator[Batch]):
    """One pass over (the rest of) an epoch."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._process = forks()
        self._sizes: dict[int, int] = {}  # bytes of a batch by its rows
        self._begin()

    def _begin(self) -> None:
        loader = self._loader
        self._feed = loader.tier.feed(loader._epoch, loader._step, loader._stats)
        self._open = True
        self._progress: Progress | None = None
        if loader.prepared.options.progress and loader.prepared.plan.rank == 0:
            self._progress = open_progress(loader._epoch, loader._step, len(loader))
        loader._stats.paused()

    def __next__(self) -> Batch:
        loader = self._loader
        if not self._open:
            if loader._current is not self and loader._current is not None:
                raise LoaderStateError(
                    "this pass ended when another began",
                    hint="open a second loader to read two passes at once",
                )
            raise StopIteration
        if forks() != self._process:
            raise LoaderStateError(
                "a running pass was carried into another process",
                hint="begin the pass in the process that uses it: iter(loader) after the fork",
            )
        asked = loader._stats.asked()
        try:
            batch = self._feed.take()
        except BaseException:
            self.close()
            raise
        if batch is None:
            self.close()
            loader._finished()
            raise StopIteration
        rows = loader.prepared.plan.rows_in(loader._step)
        if rows not in self._sizes:
            self._sizes[rows] = batch_bytes(batch)
        loader._stats.delivered(asked, rows=rows, size=self._sizes[rows], depth=self._feed.depth)
        loader._delivered()
        if self._progress is not None:
            self._progress.advance(loader._step, loader._stats)
        return batch

    def get_state(self) -> dict[str, Any]:
        """Return the loader's state; with `set_state` what Grain and Orbax ask of an iterator."""
        return self._loader.state_dict()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on behind the batches that a state counts, in this very pass.

        Raises:
            LoaderStateError: the state is of another loader, or another pass has begun.
        """
        loader = self._loader
        if loader._current is not self and loader._current is not None:
            raise LoaderStateError(
                "this pass ended when another began", hint="set the state of the newest one"
            )
        loader.load_state_dict(state)
        loader._current = self
        self._begin()

    def close(self, *, wait: bool = True) -> None:
        """End the pass."""
        if self._open:
            self._open = False
            if forks() == self._process:
                self._feed.close(wait=wait)
                if self._progress is not None:
                    self._progress.end(self._loader._stats)

    def __del__(self) -> None:
        # The collector may run on a thread of the feed, which cannot wait for itself.
        if getattr(self, "_open", False):
            self.close(wait=False)


def batch_bytes(batch: Batch) -> int:
    """Bytes of all arrays of a batch."""
    total = 0
    for value in batch.values():
        for array in value.values() if isinstance(value, Mapping) else (value,):
            total += int(array.nbytes)
    return total


def _reopened(prepared: Prepared, reason: str, epoch: int, step: int) -> Loader:
    loader = Loader(prepared, HostTier(prepared, reason=reason))
    loader._epoch, loader._step = epoch, step
    return loader


def open_loader(dataset: str | Path | ShardSet, version: int | None = None, **options: Any) -> Loader:
    """Open a loader of NumPy batches.

    Args:
        dataset: A dataset's `ipc` folder, one version's folder, or its opened shards.
        version: None takes the newest.
        **options: See `LoaderOptions`.

    Raises:
        DefinitionError: options that cannot be right.
        NotFoundError: no such dataset, version or column.
        CorruptDataError: a damaged manifest, a truncated shard.
    """
    chosen: LoaderOptions = options_of(options)
    check_host(chosen, "NumPy batches live on the host")
    rank, world = rank_of(chosen)
    prepared = prepare(dataset, version, chosen, rank=rank, world=world)
    return Loader(prepared, HostTier(prepared, reason="batches of NumPy arrays were asked for"))
