"""Which rows are samples: the rows of one subset, in stored order or in time order."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.core.time import INT64_MAX, INT64_MIN, Int64Array
from featurestore.errors import DefinitionError, SchemaError
from featurestore.loaders.entities import EntityIndex
from featurestore.loaders.source import DatasetRows
from featurestore.loaders.splits import (
    SUBSETS,
    EntitySplit,
    Split,
    TimePlan,
    TimeSplit,
    kept_rows,
    kept_spans,
    plan_time_split,
)

# int32 up to 2^31 rows, int64 above.
RowNumbers = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the rows of a dataset on the way to a subset."""

    rows: int = 0
    in_period: int = 0
    purged: int = 0
    embargoed: int = 0
    other_entities: int = 0
    null_labels: int = 0
    short_history: int = 0
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Selection:
    """The samples of a subset.

    Attributes:
        rows: Row number of each sample; None where every row is a sample and in its stored place. 4 bytes
            per sample up to 2^31 rows, else 8.
        count: Samples.
    """

    rows: RowNumbers | None
    count: int
    plan: TimePlan | None = None
    counts: Counts = field(default_factory=Counts)

    def rows_of(self, samples: RowNumbers) -> RowNumbers:
        """Give the row numbers of samples, in 4 bytes each where either comes in 4."""
        return samples if self.rows is None else self.rows[samples]

    def rows_in(self, samples: range) -> Int64Array:
        """Give the row numbers of evenly spaced samples; cheaper than `rows_of`."""
        if self.rows is None:
            return np.arange(samples.start, samples.stop, samples.step)
        return self.rows[samples.start : samples.stop : samples.step].astype(np.int64)


def check_split(
    split: Split | None, subset: str | None
) -> tuple[TimeSplit | None, EntitySplit | None, str | None]:
    """Take a split apart.

    Raises:
        DefinitionError: a subset that the split does not have, or the same kind of split twice.
    """
    parts = split if isinstance(split, tuple) else (() if split is None else (split,))
    times = [p for p in parts if isinstance(p, TimeSplit)]
    entities = [p for p in parts if isinstance(p, EntitySplit)]
    if len(times) > 1 or len(entities) > 1 or len(times) + len(entities) != len(parts):
        raise DefinitionError(
            f"split is {split!r}", hint="a TimeSplit, an EntitySplit, or a tuple with one of each"
        )
    if not parts:
        if subset is not None:
            raise DefinitionError(
                f"subset is {subset!r}, but there is no split", hint="pass split=TimeSplit(…)"
            )
        return None, None, None
    subset = subset or "train"
    known = [name for name in SUBSETS if all(name in p.names for p in parts)]
    if subset not in known:
        raise DefinitionError(f"the split has no subset {subset!r}", hint=f"it has {', '.join(known)}")
    return (times[0] if times else None), (entities[0] if entities else None), subset


def select(
    source: DatasetRows,
    *,
    split: Split | None,
    subset: str | None,
    horizons_ns: Mapping[str, int],
    windows_ns: Mapping[str, int | None],
    labels: Sequence[str],
    null_labels: str,
    entities: Callable[[], EntityIndex],
) -> Selection:
    """Find the samples of a subset; rows with a null in one of `labels` are none, unless they are kept.

    Cost: reads the event times of the shards that a period cuts, the entity codes where entities split, the
    labels of shards where they have nulls; nothing of other shards.
    """
    by_time, by_entity, name = check_split(split, subset)
    plan = None
    if by_time is not None and name is not None:
        fractions = by_time.fractions
        periods = by_time.periods() if fractions is None else fraction_periods(source, fractions)
        plan = plan_time_split(by_time, name, periods=periods, horizons_ns=horizons_ns, windows_ns=windows_ns)
    chosen = entities().chosen(by_entity, name) if by_entity is not None and name is not None else None
    masks: list[npt.NDArray[np.bool_] | None] = []
    totals = np.zeros(6, np.int64)  # in period, purged, embargoed, other entities, null labels, kept
    for part, shard in enumerate(source.manifest.shards):
        keep, counts = _part_rows(source, part, plan)
        if chosen is not None and (keep is None or keep.any()):
            index = entities()
            codes = index.codes_of(part, source.shards.shard(part).entity_codes)
            mine = np.append(chosen, False)[codes]
            counts[3] = shard.rows - mine.sum() if keep is None else (keep & ~mine).sum()
            keep = mine if keep is None else keep & mine
        keep = _drop_null_labels(source, part, labels, keep, counts, drop=null_labels == "drop")
        kept = shard.rows if keep is None else int(keep.sum())
        counts[5] = kept
        totals += counts
        masks.append(keep)
    numbers = dict(
        zip(
            ("in_period", "purged", "embargoed", "other_entities", "null_labels", "kept"),
            totals.tolist(),
            strict=True,
        )
    )
    counted = Counts(rows=source.rows, **numbers)
    if counted.kept == source.rows:
        return Selection(None, source.rows, plan, counted)
    samples = _rows_kept(source, masks)
    return Selection(samples, int(samples.size), plan, counted)


def _rows_kept(source: DatasetRows, masks: Sequence[npt.NDArray[np.bool_] | None]) -> RowNumbers:
    """Number the rows that masks keep; a mask of None keeps its whole part."""
    found: list[RowNumbers] = []
    for part, (shard, keep) in enumerate(zip(source.manifest.shards, masks, strict=True)):
        start = int(source.index.starts[part])
        rows = np.arange(start, start + shard.rows) if keep is None else start + np.flatnonzero(keep)
        found.append(rows.astype(np.int32) if source.rows < 2**31 else rows)
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def in_time_order(source: DatasetRows, selection: Selection) -> Selection:
    """Put samples in the order of event time; equal times stay in stored order.

    Cost: reads the times of the selected shards; one merge sort per date where dates do not overlap.
    """
    rows = np.arange(source.rows) if selection.rows is None else selection.rows.astype(np.int64)
    if rows.size == 0:
        return selection
    parts = source.index.parts_of(rows)
    shards = source.manifest.shards
    pieces = []
    bounds: list[tuple[int, int]] = []
    dates = np.asarray([s.date for s in shards])[parts]
    edges = np.concatenate([[0], np.flatnonzero(dates[1:] != dates[:-1]) + 1, [rows.size]])
    for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        times = sample_times(source, rows[a:b])
        order = np.argsort(times, kind="stable")
        bounds.append((int(times[order[0]]), int(times[order[-1]])))
        pieces.append(rows[a:b][order])
    ordered = np.concatenate(pieces)
    if any(later[0] < earlier[1] for earlier, later in pairwise(bounds)):
        ordered = rows[np.argsort(sample_times(source, rows), kind="stable")]
    if selection.rows is None and np.array_equal(ordered, rows):
        return selection
    kind = np.int32 if source.rows < 2**31 else np.int64
    return Selection(ordered.astype(kind), selection.count, selection.plan, selection.counts)


def sample_times(source: DatasetRows, rows: Int64Array) -> Int64Array:
    """Read the event times of rows, ns."""
    parts = source.index.parts_of(rows)
    out = np.empty(rows.size, np.int64)
    for part in np.unique(parts).tolist():
        here = parts == part
        out[here] = source.times(part)[rows[here] - source.index.starts[part]]
    return out


def fraction_periods(source: DatasetRows, fractions: Mapping[str, float]) -> dict[str, tuple[int, int]]:
    """Turn fractions of the rows into periods, oldest first: a boundary is the time of the row at that rank.

    Rows of equal time stay together, in the later subset.

    Raises:
        DefinitionError: a subset would get no time at all.

    Cost:
        Reads the times of the dates that hold a boundary.
    """
    edges, total = [], 0.0
    for fraction in fractions.values():
        total += fraction
        edges.append(INT64_MAX if total >= 1 - 1e-9 else _time_at(source, int(source.rows * total)))
    starts = [INT64_MIN, *edges[:-1]]
    periods = dict(zip(fractions, zip(starts, edges, strict=True), strict=True))
    empty = [name for name, (a, b) in periods.items() if a >= b]
    if empty:
        raise DefinitionError(
            f"the fractions leave no time for {', '.join(empty)}: too many rows have the same time",
            hint="give the subsets as periods",
        )
    return periods


def _time_at(source: DatasetRows, rank: int) -> int:
    shards = source.manifest.shards
    # Shards are sorted by date and dates do not overlap in time, so only one date needs to be read.
    by_date: dict[str, list[int]] = {}
    for part, shard in enumerate(shards):
        by_date.setdefault(shard.date, []).append(part)
    for parts in by_date.values():
        rows = sum(shards[p].rows for p in parts)
        if rank < rows:
            times = np.concatenate([source.times(p) for p in parts])
            return int(np.partition(times, rank)[rank])
        rank -= rows
    return INT64_MAX


def _part_rows(
    source: DatasetRows, part: int, plan: TimePlan | None
) -> tuple[npt.NDArray[np.bool_] | None, Int64Array]:
    """Return the mask of a part's rows in the subset (None: all) and the first counts."""
    shard = source.manifest.shards[part]
    counts = np.zeros(6, np.int64)
    if plan is None:
        counts[0] = shard.rows
        return None, counts
    spans, start, end = kept_spans(plan)
    if shard.max_time_ns < start or shard.min_time_ns >= end:
        return np.zeros(shard.rows, np.bool_), counts
    if any(a <= shard.min_time_ns and shard.max_time_ns < b for a, b in spans):
        counts[0] = shard.rows
        return None, counts
    times = source.times(part)
    keep, purged, embargoed = kept_rows(plan, times)
    counts[0] = np.count_nonzero((times >= start) & (times < end))
    counts[1], counts[2] = np.count_nonzero(purged), np.count_nonzero(embargoed)
    return (None if keep.all() else keep), counts


def _drop_null_labels(
    source: DatasetRows,
    part: int,
    labels: Sequence[str],
    keep: npt.NDArray[np.bool_] | None,
    counts: Int64Array,
    *,
    drop: bool,
) -> npt.NDArray[np.bool_] | None:
    if not labels or (keep is not None and not keep.any()):
        return keep
    columns = [source.shards.shard(part).column(name) for name in labels]
    empty = [name for name, c in zip(labels, columns, strict=True) if c.null_count]
    if not empty:
        return keep
    if not drop:
        kinds = {name: source.manifest.schema.field(name).type for name in empty}
        for name, kind in kinds.items():
            if not pa.types.is_floating(kind):
                raise SchemaError(
                    f"label {name!r} is {kind} and has nulls, which it cannot show",
                    hint='null_labels="drop", or a floating-point label',
                )
        return keep
    source.open_part(part)
    valid = np.ones(source.manifest.shards[part].rows, np.bool_)
    for column in columns:
        valid &= np.asarray(column.is_valid().to_numpy(zero_copy_only=False))
    before = valid.size if keep is None else int(keep.sum())
    keep = valid if keep is None else keep & valid
    counts[4] = before - int(keep.sum())
    return keep
