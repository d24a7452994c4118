"""What a split removed, and the proof that what is left does not overlap."""

from dataclasses import asdict
from functools import cache, partial
from typing import Any, Final

import numpy as np

from featurestore.core.time import Int64Array, format_instant
from featurestore.loaders.entities import EntityIndex
from featurestore.loaders.prepare import Prepared, samples_of
from featurestore.loaders.selection import Selection, check_split, sample_times
from featurestore.loaders.splits import SUBSETS
from featurestore.loaders.windows import WindowIndex

_CHUNK: Final = 1 << 20


def leakage_report(prepared: Prepared) -> dict[str, Any]:
    """Count what was removed from each subset, and compare the samples that are left.

    For each pair of subsets the proof takes the samples themselves, not the plan: the latest label end of
    the one before against the earliest instant that a feature of the one after can have read, windows of
    rows included.

    Returns:
        `horizon_ns`, `window_ns`, `unbounded` (features whose look-back has no bound and counts as one
        instant), `subsets` (counts by subset), `pairs` (for each, the margin in ns; `overlap` where it is
        not positive) and
        `leaks`: whether any pair overlaps.

    Cost: one pass over the event times of every subset.
    """
    options, source = prepared.options, prepared.source
    by_time, by_entity, _ = check_split(options.split, options.subset)
    parts = [p for p in (by_time, by_entity) if p is not None]
    names = [n for n in SUBSETS if parts and all(n in p.names for p in parts)]
    entities = cache(partial(EntityIndex, source))
    found: dict[str, tuple[Selection, WindowIndex | None]] = {
        name: samples_of(source, options, prepared.fields, entities, name) for name in names
    }
    plan = prepared.selection.plan
    report: dict[str, Any] = {
        "subsets": {name: asdict(selection.counts) for name, (selection, _) in found.items()},
        "horizon_ns": 0 if plan is None else plan.horizon_ns,
        "window_ns": 0 if plan is None else plan.window_ns,
        "unbounded": [] if plan is None else list(plan.unbounded),
        "pairs": {},
    }
    if not names:
        report["subsets"]["all"] = asdict(prepared.selection.counts)
    if plan is not None:
        horizon = max(
            (
                h
                for n, h in source.manifest.horizons_ns.items()
                if n in {s.name for s in prepared.fields.labels}
            ),
            default=0,
        )
        windows = [source.manifest.windows_ns.get(n) or 0 for n in prepared.fields.features]
        reach = max(max(windows, default=0) - 1, 0)
        spans = {name: _span(prepared, *found[name], horizon=horizon, reach=reach) for name in names}
        for place, name in enumerate(names):
            for other in names[place + 1 :]:
                report["pairs"][f"{name}/{other}"] = _pair(spans[name], spans[other])
    report["leaks"] = any(pair["overlap"] for pair in report["pairs"].values())
    return report


def _span(
    prepared: Prepared, selection: Selection, windows: WindowIndex | None, *, horizon: int, reach: int
) -> dict[str, Int64Array]:
    """Give, for the samples in time order, how far each reaches back and forward."""
    source = prepared.source
    rows = np.arange(source.rows) if selection.rows is None else selection.rows.astype(np.int64)
    times, firsts = [], []
    for start in range(0, rows.size, _CHUNK):
        some = rows[start : start + _CHUNK]
        times.append(sample_times(source, some))
        firsts.append(times[-1] if windows is None else sample_times(source, windows.oldest(some)))
    if not times:
        return {"time": np.zeros(0, np.int64), "first": np.zeros(0, np.int64), "last": np.zeros(0, np.int64)}
    time = np.concatenate(times)
    order = np.argsort(time, kind="stable")
    return {
        "time": time[order],
        "first": np.concatenate(firsts)[order] - reach,
        "last": time[order] + horizon,
    }


def _pair(one: dict[str, Int64Array], other: dict[str, Int64Array]) -> dict[str, Any]:
    """Compare two subsets whose periods do not interleave; the one may lie on both sides of the other."""
    if not one["time"].size or not other["time"].size:
        return {"margin_ns": None, "overlap": False}
    split = int(np.searchsorted(one["time"], other["time"][0], side="left"))
    margins = []
    if split:
        label_end = int(one["last"][:split].max())
        feature_start = int(other["first"].min())
        margins.append((feature_start - label_end, label_end, feature_start))
    if split < one["time"].size:
        label_end = int(other["last"].max())
        feature_start = int(one["first"][split:].min())
        margins.append((feature_start - label_end, label_end, feature_start))
    margin, label_end, feature_start = min(margins)
    return {
        "margin_ns": margin,
        "overlap": margin <= 0,
        "latest_label_end": format_instant(label_end),
        "earliest_feature": format_instant(feature_start),
    }
