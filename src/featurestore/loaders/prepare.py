"""From options to everything a tier needs: the one place where a loader is put together."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

from featurestore.errors import DefinitionError
from featurestore.loaders.entities import EntityIndex
from featurestore.loaders.fields import Fields, plan_fields
from featurestore.loaders.options import LoaderOptions
from featurestore.loaders.order import (
    ORDER_VERSION,
    Order,
    Shuffle,
)
from featurestore.loaders.selection import Selection, in_time_order, select
from featurestore.loaders.source import DatasetRows, open_rows
from featurestore.loaders.state import Identity, digest
from featurestore.loaders.steps import StepPlan, StepRows
from featurestore.loaders.vocabulary import vocabulary_of
from featurestore.loaders.windows import Window, WindowIndex
from featurestore.storage.shards import ShardSet


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
    shuffle: Shuffle = "full" if options.shuffle == "full" else "blocks" if options.shuffle else "none"
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
