"""Who may learn from what: splits by time with purge and embargo, by entity, or both.

A subset is a half-open period `[start, end)` of event times. Where two subsets meet, information leaks two
ways: a training label reaches forward into the other period, and the other period's features look back over
the training labels. So for every other period `[b0, b1)`, with `H` the longest label horizon and `W` the
longest feature window, a sample at `t` is kept iff

- before it: its label, which tells of `t` to `t + H`, ends before the first feature window `(b0 - W, b0]`
  begins, or
- after it: its own window `(t - W, t]` begins after the last label, which tells of up to `b1 - 1 + H`, has
  ended.

A feature that reads one instant (`W = 0`) knows that instant.

What the horizon alone removes is called purged, what only the windows remove is called embargoed. Samples
are taken from the subset that matters less: train gives way to valid and test, valid to test.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from featurestore.core.arguments import number, whole
from featurestore.core.time import (
    INT64_MAX,
    INT64_MIN,
    Duration,
    Instant,
    Int64Array,
    duration_ns,
    format_instant,
    instant_ns,
)
from featurestore.errors import DefinitionError, LeakageError

BoolArray = npt.NDArray[np.bool_]
Period = tuple[Instant | None, Instant | None]
Subset = Literal["train", "valid", "test"]

SUBSETS: Final = ("train", "valid", "test")


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """Subsets by event time.

    Attributes:
        train: `(start, end)`, instants, the end not included, `None` for open; or the fraction of the rows,
            oldest first. Fractions are given for all subsets or for none.
        purge: `"auto"`: the dataset's longest label horizon; a duration; `None` for none.
        embargo: `"auto"`: the longest look-back window of the features used; a duration; `None` for none.

    Raises:
        DefinitionError: fractions above 1, a period that ends before it starts.
        LeakageError: periods overlap.
    """

    train: Period | float | None = None
    valid: Period | float | None = None
    test: Period | float | None = None
    purge: Duration | Literal["auto"] | None = "auto"
    embargo: Duration | Literal["auto"] | None = "auto"

    def __post_init__(self) -> None:
        given = [self.part(name) for name in SUBSETS if self.part(name) is not None]
        if not given:
            raise DefinitionError(
                "a time split needs a period for at least one subset",
                hint='train=(None, "2025-06-01"), valid=("2025-06-01", None)',
            )
        fractions = [part for part in given if isinstance(part, (int, float))]
        if fractions and len(fractions) != len(given):
            raise DefinitionError(
                "a time split mixes fractions and periods", hint="give all subsets the same way"
            )
        if fractions and (min(fractions) <= 0 or sum(fractions) > 1 + 1e-9):
            raise DefinitionError(
                f"the fractions of a time split are {fractions}", hint="each above 0, together at most 1"
            )
        if not fractions:
            _check_disjoint({name: _period_ns(self.part(name), name) for name in self.names})

    def part(self, name: str) -> Period | float | None:
        """Return what was given for a subset."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]

    @property
    def names(self) -> tuple[str, ...]:
        """The subsets that are given."""
        return tuple(name for name in SUBSETS if self.part(name) is not None)

    @property
    def fractions(self) -> dict[str, float] | None:
        """The fractions by subset; None where periods were given."""
        parts = {name: self.part(name) for name in self.names}
        out = {name: float(part) for name, part in parts.items() if isinstance(part, (int, float))}
        return out or None

    def periods(self) -> dict[str, tuple[int, int]]:
        """Return the periods by subset, ns; for a split by periods only."""
        return {name: _period_ns(self.part(name), name) for name in self.names}


@dataclass(frozen=True, slots=True)
class EntitySplit:
    """Subsets by entity: each entity belongs to one subset, by a salted hash of its key.

    Attributes:
        frac: Share of the entities in train.
        valid: Share in valid; the rest is test.
        salt: Another salt, another draw.
    """

    frac: float = 0.8
    salt: int | str = 0
    valid: float = 0.0

    def __post_init__(self) -> None:
        for name in ("frac", "valid"):
            number("an entity split", name, getattr(self, name), least=0, most=1)
        if not (0 < self.frac < 1 and self.valid >= 0 and self.frac + self.valid <= 1):
            raise DefinitionError(
                f"an entity split of frac={self.frac} and valid={self.valid}",
                hint="frac between 0 and 1, valid from 0, together at most 1",
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The subsets that can have entities."""
        rest = 1 - self.frac - self.valid
        return ("train", *(["valid"] if self.valid > 0 else []), *(["test"] if rest > 1e-12 else []))

    def bounds(self, subset: str) -> tuple[float, float]:
        """Return the range of hash values, of [0, 1), that a subset takes."""
        edges = (0.0, self.frac, self.frac + self.valid, 1.0)
        place = SUBSETS.index(subset)
        return edges[place], edges[place + 1]


Split = TimeSplit | EntitySplit | tuple[TimeSplit | EntitySplit, ...]


def walk_forward(
    start: Instant,
    end: Instant,
    *,
    folds: int,
    test: Duration,
    train: Duration | None = None,
    purge: Duration | Literal["auto"] | None = "auto",
    embargo: Duration | Literal["auto"] | None = "auto",
) -> list[TimeSplit]:
    """Cut folds whose tests follow one another up to `end`, each trained on what came before it.

    Args:
        test: Length of each test period.
        train: Length of each training period (rolling); None trains on everything since `start` (expanding).

    Raises:
        DefinitionError: the folds do not fit between start and end.
    """
    whole("walk_forward", "folds", folds, least=1)
    first, last = instant_ns(start, what="start"), instant_ns(end, what="end")
    length = duration_ns(test, what="test")
    begin = last - folds * length
    if length < 1 or begin <= first:
        raise DefinitionError(
            f"{folds} folds with tests of {test!r} do not fit between {format_instant(first)} and "
            f"{format_instant(last)}",
            hint="fewer folds or shorter tests: something must be left to train on",
        )
    reach = INT64_MAX if train is None else duration_ns(train, what="train")
    splits = []
    for fold in range(folds):
        edge = begin + fold * length
        period = (max(first, edge - reach), edge)
        splits.append(TimeSplit(train=period, test=(edge, edge + length), purge=purge, embargo=embargo))
    return splits


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePlan:
    """A time split with every number known.

    Attributes:
        subset: The one that is loaded.
        periods: `[start, end)` ns by subset.
        horizon_ns: How far labels reach (0 where purging is off).
        window_ns: How far features look back (0 where there is no embargo).
        unbounded: Features without a bounded window; they count as reading one instant.
    """

    subset: str
    periods: Mapping[str, tuple[int, int]]
    horizon_ns: int
    window_ns: int
    unbounded: tuple[str, ...] = ()

    @property
    def others(self) -> tuple[str, ...]:
        """Subsets to which this one gives way."""
        later = SUBSETS[SUBSETS.index(self.subset) + 1 :]
        return tuple(name for name in later if name in self.periods)

    def span(self) -> tuple[int, int]:
        """Return the subset's own period."""
        return self.periods[self.subset]


def plan_time_split(
    split: TimeSplit,
    subset: str,
    *,
    periods: Mapping[str, tuple[int, int]],
    horizons_ns: Mapping[str, int],
    windows_ns: Mapping[str, int | None],
) -> TimePlan:
    """Derive purge and embargo. Pure.

    Args:
        periods: By subset; computed from the rows where the split is by fractions.
        horizons_ns: Of the labels used.
        windows_ns: Of the features used; None where a feature reads one instant or looks back for ever.
    """
    bounded = [w for w in windows_ns.values() if w is not None]
    horizon = max(horizons_ns.values(), default=0) if split.purge == "auto" else _length(split.purge, "purge")
    window = max(bounded, default=0) if split.embargo == "auto" else _length(split.embargo, "embargo")
    unbounded = tuple(name for name, w in windows_ns.items() if w is None)
    return TimePlan(
        subset=subset, periods=dict(periods), horizon_ns=horizon, window_ns=window, unbounded=unbounded
    )


def kept_rows(plan: TimePlan, times: Int64Array) -> tuple[BoolArray, BoolArray, BoolArray]:
    """Say which samples stay.

    Args:
        times: `(n,)` event times, ns, any order.

    Returns:
        Three `(n,)` masks: kept; purged (removed, the label reaches the other period or lies after it
        within the horizon); embargoed (removed for the windows alone). A sample of another period is in
        none.
    """
    start, end = plan.span()
    inside = (times >= start) & (times < end)
    clear = np.ones(times.size, np.bool_)
    untouched = np.ones(times.size, np.bool_)
    reach = max(plan.window_ns - 1, 0)  # the window (s - W, s] holds W instants, and at least s itself
    for name in plan.others:
        low, high = plan.periods[name]
        clear &= _apart(times, low, high, plan.horizon_ns, reach)
        untouched &= _apart(times, low, high, plan.horizon_ns, 0)
    return inside & clear, inside & ~untouched, inside & untouched & ~clear


def kept_spans(plan: TimePlan) -> tuple[list[tuple[int, int]], int, int]:
    """Give the spans `[start, end)` that are kept whole, and the subset's own bounds."""
    start, end = plan.span()
    reach = max(plan.window_ns - 1, 0)
    spans = [(start, end)]
    for name in plan.others:
        low, high = plan.periods[name]
        before = _clamp(low - reach - plan.horizon_ns)  # first time that is not kept
        after = _clamp(high + plan.horizon_ns + reach)  # first time after it that is kept
        cut = []
        for a, b in spans:
            cut += [(a, min(b, before)), (max(a, after), b)]
        spans = [(a, b) for a, b in cut if a < b]
    return spans, start, end


def _apart(times: Int64Array, low: int, high: int, horizon: int, reach: int) -> BoolArray:
    before = times < _clamp(low - reach - horizon)
    after = times >= _clamp(high + horizon + reach)
    # An open end reaches to the last instant there is: nothing lies after it.
    out: BoolArray = before | (
        after if high + horizon + reach < INT64_MAX else np.zeros(times.size, np.bool_)
    )
    return out


def _clamp(value: int) -> int:
    return max(INT64_MIN, min(INT64_MAX, value))


def _length(value: Duration | None, what: str) -> int:
    return 0 if value is None else duration_ns(value, what=what)


def _period_ns(part: Period | float | None, name: str) -> tuple[int, int]:
    if not isinstance(part, (tuple, list)) or len(part) != 2:
        raise DefinitionError(f"{name} is {part!r}: not a period", hint='give ("2024-01-01", "2024-06-01")')
    start = INT64_MIN if part[0] is None else instant_ns(part[0], what=f"{name} start")
    end = INT64_MAX if part[1] is None else instant_ns(part[1], what=f"{name} end")
    if start >= end:
        raise DefinitionError(
            f"{name} ends before it starts: {part!r}", hint="the start is included, the end is not"
        )
    return start, end


def _check_disjoint(periods: Mapping[str, tuple[int, int]]) -> None:
    ordered = sorted(periods.items(), key=lambda item: item[1])
    for (name, (_, end)), (following, (start, _)) in pairwise(ordered):
        if start < end:
            raise LeakageError(
                f"{name} ends at {format_instant(end)}, after {following} starts at {format_instant(start)}",
                hint="periods are half-open; let one end where the next starts",
            )
