"""Carried state: the few earlier rows that a later reader may still need, handed on from date to date.

A chain of tasks carries it in memory and leaves it behind on disk, so that the next run goes on from there
instead of reading history again.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from featurestore.core.canonical import digest_json
from featurestore.core.table_rows import filter_rows, take_rows
from featurestore.core.time import DAY_NS, INT64_MAX, INT64_MIN, day_of_text, day_text
from featurestore.errors import CorruptDataError, NotFoundError
from featurestore.materialize.changes import Comparison
from featurestore.materialize.job import Job, Rows
from featurestore.materialize.plan import Input, Task, is_long
from featurestore.materialize.staging import (
    BEGINNING,
    EVERY_BUCKET,
    FileSpan,
    Part,
    Place,
    concat_parts,
    parked,
)
from featurestore.resolve.program import ViewProgram
from featurestore.resolve.retain import retained_rows
from featurestore.storage.files import AnyPath
from featurestore.storage.state_files import State, StateIndex, StateWriter, read_state
from featurestore.temporal.times import times_ns

# Raised when the same rows would leave other rows behind than before.
_SEMANTICS: Final = 1
# A state of at most so many rows is written at the end of every run; a larger one only when at least as many
# rows came in as it holds. States so never take more room than the sources, and a run never reads more rows
# again than a state holds.
_SMALL_ROWS: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Carryover:
    """What a run may take over from an earlier version.

    Attributes:
        folder: The earlier version's folder.
        index: Its states that still hold.
        known: Times of the sources' unchanged files, by source.
        saves: Whether the run leaves states of its own.
    """

    folder: AnyPath | None = None
    index: StateIndex = field(default_factory=StateIndex)
    known: Mapping[str, tuple[FileSpan, ...]] = field(default_factory=dict)
    saves: bool = True

    def days(self) -> dict[tuple[str, int], tuple[int, ...]]:
        """Return the dates at whose end there is a state, ascending, by source and bucket."""
        out: dict[tuple[str, int], list[int]] = {}
        for state in self.index.states:
            out.setdefault((state.source, state.bucket), []).append(day_of_text(state.date))
        return {place: tuple(sorted(days)) for place, days in out.items()}

    def sound(self, chosen: Iterable[tuple[str, int, int]]) -> "Carryover":
        """Leave out damaged ones of some states (source, bucket, day): what they held is read again."""
        wanted = set(chosen)
        bad = [s for s in self.index.states if _place(s) in wanted and not self._is_sound(s)]
        if not bad:
            return self
        states = tuple(s for s in self.index.states if s not in bad)
        return Carryover(self.folder, StateIndex(states, self.index.files), self.known, self.saves)

    def _is_sound(self, state: State) -> bool:
        if self.folder is None:
            return False
        try:
            read_state(self.folder, state)
        except (CorruptDataError, NotFoundError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class ChainStates:
    """The states that one chain may go on from, and where its own go.

    Attributes:
        folder: Where the states lie.
        states: Those of the chain's bucket, by source.
        keys: Which sources' states the chain leaves behind, and the key of each.
        file: Name of the file that it writes into the version's folder.
        last_day: The last date whose rows are all there.
    """

    folder: AnyPath | None
    states: Mapping[str, tuple[State, ...]]
    keys: Mapping[str, str]
    file: str
    last_day: int


def usable_states(job: Job, index: StateIndex, compared: Mapping[str, Comparison | None]) -> StateIndex:
    """Return the states that still hold: made in the same way, and nothing moved up to their date."""
    keys: dict[str, str] = {}
    moved: dict[str, list[tuple[int, int]]] = {}
    for name, rows in job.rows.items():
        comparison = compared.get(rows.source.name)
        if comparison is not None and is_long(rows.look_back_ns):
            keys[name] = state_key(job, name)
            found = (m for m in comparison.moved if m.rows == rows and not m.spine)
            moved[name] = [(m.bucket, m.min_ns // DAY_NS) for m in found]
    kept = [
        state
        for state in index.states
        if keys.get(state.source) == state.key
        and not any(_touches(state, bucket, day) for bucket, day in moved[state.source])
    ]
    return StateIndex(tuple(kept), index.files)


def _touches(state: State, bucket: int, day: int) -> bool:
    same = bucket == state.bucket or EVERY_BUCKET in {bucket, state.bucket}
    return same and day <= day_of_text(state.date)


def _place(state: State) -> tuple[str, int, int]:
    return state.source, state.bucket, day_of_text(state.date)


def state_key(job: Job, name: str) -> str:
    """Return the digest of all that decides which rows of a source are kept, apart from the rows."""
    rows = job.rows[name]
    spec = rows.source
    return digest_json(
        {
            "semantics": _SEMANTICS,
            "kind": job.kind,
            "source": [spec.name, spec.path, spec.format, spec.query],
            "times": [rows.times.timestamp, rows.times.created, rows.times.sequence, rows.times.delay_ns],
            "columns": list(rows.columns),
            "keys": None if rows.keys is None else list(rows.keys),
            "buckets": None if rows.keys is None else job.buckets,
            "look_back": rows.look_back_ns,
            "programs": [_retention(p) for p in programs_of(job, name)],
        }
    )


def _retention(program: ViewProgram) -> dict[str, Any]:
    upstream = program.upstream
    return {
        "keys": list(program.join_keys),
        "ttl": program.ttl_ns,
        "known": list(program.inputs()) if program.nulls == "last_known" else [],
        "newest": bool(program.features),
        "window": program.window_ns(),
        "behind": program.look_back_ns(),
        "upstream": None if upstream is None else _retention(upstream),
    }


def programs_of(job: Job, name: str) -> list[ViewProgram]:
    """Return the programs that look back into some rows."""
    if job.view is not None:
        return [job.view]
    if job.join is None:
        return []
    whole = () if job.whole is None else (*job.whole.views, *job.whole.labels)
    found = [(j.program, j in whole) for j in job.join.views]
    found += [(x.program.rows, x in whole) for x in job.join.labels if x.program.look_back_ns() != 0]
    rows = job.rows[name]
    return [p for p, is_whole in found if p.source == rows.source.name and is_whole == (rows.keys is None)]


class Carrier:
    """Gives each task of a chain the rows of one source, carrying what earlier dates leave behind."""

    def __init__(
        self,
        rows: Rows,
        programs: Sequence[ViewProgram],
        schema: pa.Schema,
        *,
        bucket: int,
        folder: AnyPath | None,
        states: Sequence[State],
    ) -> None:
        self._rows = rows
        self._programs = programs
        self._schema = schema
        self._bucket = bucket
        self._folder = folder
        self._states = sorted(states, key=lambda s: s.date)
        self._state_days = sorted(day_of_text(s.date) for s in states)
        self._parts: Mapping[Place, Part] = {}
        self._save: Callable[[pa.Table, int], None] | None = None
        self._state = schema.empty_table()
        self._done = BEGINNING
        self._taken = BEGINNING
        self._since = 0

    def go_on(self, parts: Mapping[Place, Part], save: Callable[[pa.Table, int], None] | None) -> None:
        """Take over the rows of the dates to come, and what writes the states that they leave behind."""
        self._parts, self._save = parts, save

    def rows_for(self, task: Task, need: Input) -> pa.Table:
        """Return the rows that a task reads: carried ones, its own dates', and its look-ahead."""
        first, last = task.days[0], task.days[-1]
        before: list[Part] = []
        if need.carried:
            self._advance(first)
        else:
            before = self._between(need.first_day, first - 1)
        own = concat_parts(self._between(first, last), self._schema)
        after = self._between(last + 1, need.last_day)
        low = first * DAY_NS - (0 if need.carried else self._rows.look_back_ns or 0)
        high = (last + 1) * DAY_NS + self._rows.look_ahead_ns
        near_before = self._cut(concat_parts(before, self._schema), low, high)
        near_after = self._cut(concat_parts(after, self._schema), low, high)
        return pa.concat_tables([self._state, near_before, own, near_after])

    def hand_on(self, until: int, park: Path, limit_bytes: int) -> None:
        """Take in all dates before `until`, whose rows are let go of then.

        Args:
            park: File for the state until the next wave, where it is larger than `limit_bytes`.

        Raises:
            StorageError: the disk refused.
        """
        if is_long(self._rows.look_back_ns):
            self._advance(max(until, self._done))
            if self._state.nbytes > limit_bytes:
                self._state = parked(park, self._state)
        self._parts = {}

    def finish(self, until: int) -> None:
        """Take in all dates before `until`, so that a later run goes on behind them."""
        if not is_long(self._rows.look_back_ns) or self._save is None:
            return
        self._advance(max(until, self._done))
        if self._since and self._state.num_rows <= _SMALL_ROWS:
            self._save(self._state, self._taken)

    def _between(self, first: int, last: int) -> list[Part]:
        chosen = sorted(p for p in self._parts if p[1] == self._bucket and first <= p[0] <= last)
        return [self._parts[p] for p in chosen]

    def _cut(self, rows: pa.Table, low: int, high: int) -> pa.Table:
        if rows.num_rows == 0:
            return rows
        event_ns, _ = times_ns(rows.column(self._rows.times.timestamp), self._rows.times.timestamp)
        keep = (event_ns >= max(low, INT64_MIN)) & (event_ns <= min(high, INT64_MAX))
        return filter_rows(rows, keep)

    def _advance(self, until: int) -> None:
        """Bring the state to the start of a date: from a stored one where there is one, then date by date."""
        stored = bisect_left(self._state_days, until) - 1
        if self._folder is not None and stored >= 0 and self._state_days[stored] >= self._done:
            table = read_state(self._folder, self._states[stored])
            self._state = table.cast(self._schema)
            self._done = self._state_days[stored] + 1
            self._since = 0
        days = sorted({d for d, b in self._parts if b == self._bucket and self._done <= d < until})
        held: list[int] = []
        rows = 0
        for day in days:
            held.append(day)
            rows += sum(p.rows for p in self._between(day, day))
            # Several dates at a time where the state is larger than they: each row is looked at about twice.
            if rows >= self._state.num_rows or day == days[-1]:
                self._take(held)
                held, rows = [], 0
        self._done = until

    def _take(self, days: Sequence[int]) -> None:
        """Take some dates in, and keep of everything what a reader after them could still use."""
        own = [p for day in days for p in self._between(day, day)]
        rows = pa.concat_tables([self._state, concat_parts(own, self._schema)])
        self._taken = days[-1]
        at_ns = min((self._taken + 1) * DAY_NS, INT64_MAX)  # the last date of int64 has no next
        keep = np.full(rows.num_rows, not self._programs)
        for program in self._programs:
            keep[retained_rows(program, rows, at_ns=at_ns)] = True
        self._state = rows if keep.all() else take_rows(rows, np.flatnonzero(keep)).combine_chunks()
        self._since += sum(p.rows for p in own)
        if self._save is not None and self._since >= self._state.num_rows:
            self._save(self._state, self._taken)
            self._since = 0


def saver(
    writer: StateWriter, states: ChainStates, source: str, bucket: int
) -> Callable[[pa.Table, int], None] | None:
    """Return what writes a source's states, `None` where another chain does or none are wanted."""
    key = states.keys.get(source)
    if key is None:
        return None

    def save(table: pa.Table, day: int) -> None:
        if day <= states.last_day:
            writer.add(table, source=source, date=day_text(day), bucket=bucket, key=key)

    return save
