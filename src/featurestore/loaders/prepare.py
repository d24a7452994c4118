"""From options to everything a tier needs: the one place where a loader is put together."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, Literal, SupportsIndex

from featurestore.core.arguments import listed, text, whole
from featurestore.core.names import near
from featurestore.errors import DefinitionError
from featurestore.loaders.entities import EntityIndex
from featurestore.loaders.fields import Fields, Fill, Layout, Nulls, plan_fields
from featurestore.loaders.order import (
    DEFAULT_BLOCK_ROWS,
    DEFAULT_BLOCKS,
    DEFAULT_STREAMS,
    ORDER_VERSION,
    Order,
    Shuffle,
)
from featurestore.loaders.selection import Selection, in_time_order, select
from featurestore.loaders.source import DatasetRows, Verify, open_rows
from featurestore.loaders.splits import Split
from featurestore.loaders.state import Identity, digest
from featurestore.loaders.steps import DropLast, StepPlan, StepRows
from featurestore.loaders.vocabulary import vocabulary_of
from featurestore.loaders.windows import Window, WindowIndex
from featurestore.storage.shards import ShardSet

HOST_IO: Final = ("auto", "cpu", "mmap")
DEVICE_IO: Final = ("auto", "resident", "pinned", "gds")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderOptions:
    """Everything that can be asked of a loader; `docs/loaders.md` says what each option means.

    Attributes:
        batch_size: Rows per rank; or `global_batch_size`, rows over all ranks, which survives a change of
            world size.
        columns: Features, in order; `features` is the same. None: all of them.
        label: One label, or `labels`; None: all labels of the dataset. `labels=[]` for none.
        shuffle: True (block shuffle), `"full"` (one exact permutation), False (time order).
        null_labels: `drop` rows whose label is null, or `keep` them as NaN.
        window: Rows that each sample carries; a number is `Window(lookback=…)`.
        dtype: Type of the feature matrix; None keeps stored types, one matrix per type.
        fill: What stands for a null: a number, or numbers by column with `"*"` for the rest.
        vocabularies: Values of string columns in the order of their codes, fitted elsewhere.
        time: Deliver event times; `entity`: entity codes.
        threads: None: as many as there are cores for this rank, at most 8; 0: none.
        prefetch: Batches built ahead of the consumer; None: threads + 1.
        rank: `"auto"`: from the framework's process group, or from RANK and WORLD_SIZE.
        streams, block_rows, blocks: Of the order; part of a loader's identity.
        memory_bytes: Bound of the pinned ring of the streamed tier.
        progress: Rank 0 shows how far a pass is on standard error: a bar on a terminal, else a line now
            and then.
    """

    batch_size: int | None = None
    global_batch_size: int | None = None
    columns: Sequence[str] | None = None
    features: Sequence[str] | None = None
    label: str | None = None
    labels: Sequence[str] | None = None
    weight: str | None = None
    split: Split | None = None
    subset: str | None = None
    shuffle: bool | Literal["full"] = True
    seed: int = 0
    drop_last: DropLast = True
    window: Window | int | None = None
    dtype: str | None = None
    label_dtype: str | None = None
    fill: Fill = 0.0
    nulls: Nulls = "fill"
    null_labels: Literal["drop", "keep"] = "drop"
    vocabularies: Mapping[str, Sequence[str]] | None = None
    layout: Layout = "matrix"
    time: bool = False
    entity: bool = False
    device: Any = "auto"
    io: str = "auto"
    threads: int | None = None
    prefetch: int | None = None
    rank: int | Literal["auto"] = "auto"
    world_size: int | Literal["auto"] = "auto"
    streams: int = DEFAULT_STREAMS
    block_rows: int = DEFAULT_BLOCK_ROWS
    blocks: int = DEFAULT_BLOCKS
    verify: Verify = "auto"
    memory_bytes: int = 1 << 30
    progress: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A loader's parts, ready for any tier."""

    options: LoaderOptions
    source: DatasetRows
    fields: Fields
    selection: Selection
    order: Order
    plan: StepPlan
    identity: Identity
    vocabularies: Mapping[str, tuple[str, ...]]
    entities: EntityIndex | None
    windows: WindowIndex | None
    threads: int
    prefetch: int

    def step_rows(self, *, spans: bool = False) -> StepRows:
        """Return a new walk over steps; with `spans` one that knows in which order rows read best."""
        return StepRows(self.order, self.selection, self.plan, spans=spans)


def options_of(given: Mapping[str, Any]) -> LoaderOptions:
    """Build options from keywords.

    Raises:
        DefinitionError: an unknown option, or two names of one thing.
    """
    known = [f.name for f in fields(LoaderOptions)]
    for name in given:
        if name not in known:
            raise DefinitionError(f"a loader has no option {name!r}", hint=near(name, known), name=name)
    lists = [n for n in ("columns", "features", "labels") if given.get(n) is not None]
    read = {name: listed("a loader", name, given[name], "names") for name in lists}  # an iterator: once
    options = LoaderOptions(**{**given, **read})
    pairs = (("columns", "features"), ("label", "labels"), ("batch_size", "global_batch_size"))
    for one, other in pairs:
        if getattr(options, one) is not None and getattr(options, other) is not None:
            raise DefinitionError(f"{one} and {other} are given together", hint="give one of them")
    _check_kinds(options)
    if isinstance(options.window, int):
        options = replace(options, window=Window(lookback=options.window))
    if options.shuffle not in (True, False, "full"):
        raise DefinitionError(f"shuffle is {options.shuffle!r}", hint='True, False or "full"')
    if options.drop_last not in (True, False, "pad"):
        raise DefinitionError(f"drop_last is {options.drop_last!r}", hint='True, False or "pad"')
    return options


def _check_names(options: LoaderOptions) -> None:
    for name in ("columns", "features", "labels"):
        for column in getattr(options, name) or ():
            text("a loader", name, column)
    for name in ("label", "weight", "dtype", "label_dtype"):
        if getattr(options, name) is not None:
            text("a loader", name, getattr(options, name))


def _check_kinds(options: LoaderOptions) -> None:
    """Refuse values of the wrong kind by name.

    Raises:
        DefinitionError: what should be a whole number is none, `window` is no window, or `io` is unknown.
    """
    _check_names(options)
    for name in ("rank", "world_size"):
        if getattr(options, name) != "auto":
            whole("a loader", name, getattr(options, name), least=0)
    numbers = ("batch_size", "global_batch_size", "seed", "threads", "prefetch", "memory_bytes")
    for name in numbers:
        value = getattr(options, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, SupportsIndex)):
            raise DefinitionError(f"{name} is {value!r}", hint="a whole number", value=value)
    for name in ("threads", "prefetch"):
        if getattr(options, name) is not None:
            whole("a loader", name, getattr(options, name), least=0)
    if isinstance(options.window, bool) or not isinstance(options.window, (Window, int, type(None))):
        raise DefinitionError(f"window is {options.window!r}", hint="Window(lookback=…), or a number of rows")
    if options.io not in {*HOST_IO, *DEVICE_IO}:
        known = dict.fromkeys((*HOST_IO, *DEVICE_IO))
        raise DefinitionError(f"io is {options.io!r}", hint=f"one of {', '.join(known)}", value=options.io)


def check_host_io(options: LoaderOptions, what: str) -> None:
    """Refuse the tiers of a device where batches are made on the host.

    Raises:
        DefinitionError: `io` asks for one.
    """
    if options.io not in HOST_IO:
        raise DefinitionError(f"io is {options.io!r}, and {what}", hint=f"one of {', '.join(HOST_IO)}")


def prepare(
    dataset: str | Path | ShardSet, version: int | None, options: LoaderOptions, *, rank: int, world: int
) -> Prepared:
    """Plan fields, find the samples, fix order and identity.

    Cost: reads the manifest, and what `select` needs; independent of the position resumed later.
    """
    source = open_rows(dataset, version, verify=options.verify)
    manifest = source.manifest
    columns = options.columns if options.columns is not None else options.features
    labels = [options.label] if options.label is not None else options.labels
    planned = plan_fields(
        manifest,
        columns=columns,
        labels=labels,
        weight=options.weight,
        dtype=options.dtype,
        label_dtype=options.label_dtype,
        fill=options.fill,
        nulls=options.nulls,
        layout=options.layout,
        time=options.time,
        entity=options.entity,
    )
    entities = cache(partial(EntityIndex, source))
    selection, windows = samples_of(source, options, planned, entities, options.subset)
    vocabularies = {name: vocabulary_of(source, name, options.vocabularies) for name in planned.codes}
    identity = _identity(options, manifest.fingerprint, selection, planned, vocabularies)
    shuffle: Shuffle = {True: "blocks", False: "none", "full": "full"}[options.shuffle]  # type: ignore[assignment]
    order = Order(
        fingerprint=digest([identity.order["dataset"], identity.order["selection"]]),
        seed=options.seed,
        samples=selection.count,
        shuffle=shuffle,
        streams=options.streams,
        block_rows=options.block_rows,
        blocks=options.blocks,
    )
    plan = StepPlan(
        samples=selection.count,
        batch=_rank_batch(options, world),
        rank=rank,
        world=world,
        drop_last=options.drop_last,
    )
    plan.check(options.streams)
    threads = min(8, max(1, _cores() // world)) if options.threads is None else options.threads
    return Prepared(
        options=options,
        source=source,
        fields=planned,
        selection=selection,
        order=order,
        plan=plan,
        identity=identity,
        vocabularies=vocabularies,
        entities=entities() if options.entity else None,
        windows=windows,
        threads=threads,
        prefetch=threads + 1 if options.prefetch is None else options.prefetch,
    )


def samples_of(
    source: DatasetRows,
    options: LoaderOptions,
    planned: Fields,
    entities: Callable[[], EntityIndex],
    subset: str | None,
) -> tuple[Selection, WindowIndex | None]:
    """Find the samples of a subset, in the order that `shuffle` permutes, and their windows."""
    manifest = source.manifest
    label_names = [label.name for label in planned.labels]
    selection = select(
        source,
        split=options.split,
        subset=subset,
        horizons_ns={n: h for n, h in manifest.horizons_ns.items() if n in label_names},
        windows_ns={n: w for n, w in manifest.windows_ns.items() if n in planned.features},
        labels=label_names,
        null_labels=options.null_labels,
        entities=entities,
    )
    windows = None
    if options.window is not None:
        assert isinstance(options.window, Window)  # noqa: S101 - options_of made it one
        windows = WindowIndex(source, options.window, entities(), selection)
        selection = windows.anchors(selection)
    if options.shuffle is False:
        selection = in_time_order(source, selection)
    return selection, windows


def rank_of(options: LoaderOptions, found: tuple[int, int] | None = None) -> tuple[int, int]:
    """Return (rank, world size): as given, as `found` in a process group, or from RANK and WORLD_SIZE.

    Raises:
        DefinitionError: one is given and the other is not, or the environment holds no numbers.
    """
    if options.rank != "auto" and options.world_size != "auto":
        return options.rank, options.world_size
    if options.rank != "auto" or options.world_size != "auto":
        raise DefinitionError(
            f"rank is {options.rank!r} and world_size is {options.world_size!r}", hint="give both or neither"
        )
    if found is not None:
        return found
    rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None or world is None:
        return 0, 1
    if not (rank.isdigit() and world.isdigit()):
        raise DefinitionError(
            f"RANK={rank!r} and WORLD_SIZE={world!r} are not numbers", hint="pass rank= and world_size="
        )
    return int(rank), int(world)


def _rank_batch(options: LoaderOptions, world: int) -> int:
    if options.global_batch_size is None:
        if options.batch_size is None:
            raise DefinitionError("no batch size", hint="pass batch_size (per rank) or global_batch_size")
        return options.batch_size
    if options.global_batch_size % world:
        raise DefinitionError(
            f"a global batch of {options.global_batch_size} does not divide over {world} ranks",
            hint="choose a multiple of the world size",
        )
    return options.global_batch_size // world


def _identity(
    options: LoaderOptions,
    dataset: str,
    selection: Selection,
    planned: Fields,
    vocabularies: Mapping[str, Sequence[str]],
) -> Identity:
    plan = None if selection.plan is None else asdict(selection.plan)
    # The time plan holds the derived numbers; of the rest of a split only entity hashing decides.
    split = options.split if isinstance(options.split, tuple) else (options.split,)
    entity = [repr(part) for part in split if part is not None and not hasattr(part, "purge")]
    window = asdict(options.window) if isinstance(options.window, Window) else None
    return Identity(
        order={
            "dataset": digest(dataset),
            "selection": digest([plan, options.subset, entity, asdict(selection.counts), window]),
            "shuffle": digest(
                [ORDER_VERSION, options.shuffle, options.streams, options.block_rows, options.blocks]
            ),
            "seed": digest(options.seed),
        },
        content={
            "columns": digest([[asdict(m) for m in planned.matrices], planned.codes, planned.extras]),
            "labels": digest(
                [[asdict(s) for s in planned.labels], planned.weight and asdict(planned.weight)]
            ),
            "nulls": digest([planned.nulls, planned.layout, options.drop_last]),
            "vocabularies": digest({name: list(words) for name, words in vocabularies.items()}),
        },
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
