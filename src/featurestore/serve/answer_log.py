"""A sample of what was answered, kept so that it can be held against history: `verify-online`.

The log holds entity keys and feature values: it is off unless asked for, and its folder is the owner's alone.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import xxhash

from featurestore.core.canonical import canonical_json
from featurestore.core.names import near
from featurestore.core.python_values import python_rows, python_values
from featurestore.core.table_rows import decoded_type
from featurestore.errors import CorruptDataError, NotFoundError
from featurestore.serve.response import OnlineResponse
from featurestore.storage.files import fsync_file, fsync_folder
from featurestore.storage.suppression import Ledger, no_ledger

NOW: Final = "__now__"
_META: Final = b"featurestore.answers"
Historical = Callable[[pa.Table, Sequence[str], bool], pa.Table]


@dataclass(frozen=True, slots=True)
class LoggedAnswers:
    """Answers of one shape.

    Attributes:
        features: The references that were asked for, in order.
        entities: The request's columns.
        names: The feature columns.
        table: Entity columns, feature columns, and the readers' instants in the int64 column `NOW`.
    """

    features: tuple[str, ...]
    full_feature_names: bool
    entities: tuple[str, ...]
    names: tuple[str, ...]
    table: pa.Table


class AnswerLog:
    """Writes a sample of answers to a folder, chosen by entity: all answers of an entity or none."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        fraction: float,
        rows_per_file: int = 1_000,
        ledger: Callable[[], Ledger] = no_ledger,
    ) -> None:
        """Take a folder; it is made where there is none. What is erased before it is written never is."""
        self._ledger = ledger
        self._folder = Path(folder)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._bound = int(fraction * 2**32)
        self._rows_per_file = rows_per_file
        self._pending: dict[bytes, list[pa.Table]] = {}
        self._files = 0

    def note(self, response: OnlineResponse, features: Sequence[str], *, full_feature_names: bool) -> None:
        """Log an answer's rows whose entities are in the sample."""
        table = response.to_arrow()
        entities = list(response.readers.columns)
        keys = [canonical_json(row).encode() for row in _plain_rows(table.select(entities))]
        chosen = [at for at, key in enumerate(keys) if xxhash.xxh32_intdigest(key) < self._bound]
        if not chosen:
            return
        table = _decoded(table.take(pa.array(chosen, pa.int64())))
        table = table.append_column(NOW, pa.array(np.full(len(chosen), response.now_ns, np.int64)))
        meta = {
            "features": list(features),
            "full_feature_names": full_feature_names,
            "entities": entities,
            "names": list(response.names),
        }
        table = table.replace_schema_metadata({_META: canonical_json(meta)})
        group = self._pending.setdefault(table.schema.serialize().to_pybytes(), [])
        group.append(table)
        if sum(t.num_rows for t in group) >= self._rows_per_file:
            self.flush()

    def flush(self) -> None:
        """Write what is pending, each shape to a file of its own."""
        pending, self._pending = self._pending, {}
        for tables in pending.values():
            whole = self._ledger().suppression().remaining(pa.concat_tables(tables))
            self._files += 1
            path = self._folder / f"answers-{os.getpid()}-{self._files:06d}.arrow"
            part = path.with_suffix(".part")
            with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, whole.schema) as writer:
                writer.write_table(whole)
            part.rename(path)


def erase_answers(
    folder: str | os.PathLike[str], remaining: Callable[[pa.Table], pa.Table]
) -> dict[str, int]:
    """Take rows out of a log's files; returns how many, by file.

    Args:
        remaining: Returns the rows of a table that stay.

    Raises:
        CorruptDataError: a file is not a log's.
    """
    out = {}
    for path in answer_files(folder):
        try:
            with pa.OSFile(str(path)) as source:
                table = pa.ipc.open_file(source).read_all()
        except pa.ArrowException as error:
            raise CorruptDataError(f"{path} is not a log of answers", hint=str(error)) from error
        kept = remaining(table)
        if kept.num_rows == table.num_rows:
            continue
        part = path.with_suffix(".part")
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, kept.schema) as writer:
            writer.write_table(kept)
        fsync_file(part)
        part.replace(path)
        fsync_folder(path.parent)
        out[str(path)] = table.num_rows - kept.num_rows
    return out


def answer_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the files of logs in a folder or below it."""
    return sorted(Path(folder).rglob("answers-*.arrow"))


def read_answers(folder: str | os.PathLike[str]) -> Iterator[LoggedAnswers]:
    """Yield the answers of a log's files, in the order of their names.

    Raises:
        NotFoundError: no such folder.
        CorruptDataError: a file is not a log's.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotFoundError(f"there is no answer log {folder}", hint=near(root.name, _siblings(root)))
    for path in sorted(root.glob("answers-*.arrow")):
        try:
            with pa.OSFile(str(path)) as source:
                table = pa.ipc.open_file(source).read_all()
            meta = json.loads(table.schema.metadata[_META])
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise CorruptDataError(f"{path} is not a log of answers", hint=str(error)) from error
        yield LoggedAnswers(
            tuple(meta["features"]),
            bool(meta["full_feature_names"]),
            tuple(meta["entities"]),
            tuple(meta["names"]),
            table.replace_schema_metadata(None),
        )


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A value that was answered and is not what history says."""

    feature: str
    entity: dict[str, Any]
    now_ns: int
    answered: Any
    historical: Any


@dataclass(slots=True)
class OnlineReport:
    """What `verify_answers` found.

    Attributes:
        rows: Answered rows compared.
        cells: Values compared.
        missing: Null online, a value in history.
        extra: A value online, null in history.
        different: Both values, not the same.
        mismatches: The first hundred of them.
    """

    rows: int = 0
    cells: int = 0
    missing: int = 0
    extra: int = 0
    different: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every answer was the historical one."""
        return not self.missing + self.extra + self.different


def verify_answers(folder: str | os.PathLike[str], historical: Historical) -> OnlineReport:
    """Replay logged answers as the spine of a historical read and compare value by value, exactly.

    Args:
        historical: Answers a spine (entity columns and the time column `NOW`) with features: the store's
            `get_historical_features`.
    """
    report = OnlineReport()
    for logged in read_answers(folder):
        times = logged.table.column(NOW).cast(pa.timestamp("ns")).cast(pa.timestamp("ns", "UTC"))
        spine = logged.table.select(list(logged.entities)).append_column(NOW, times)
        found = historical(spine, logged.features, logged.full_feature_names)
        report.rows += logged.table.num_rows
        for name in logged.names:
            _compare(report, logged, name, found.column(name))
    return report


def _compare(report: OnlineReport, logged: LoggedAnswers, name: str, historical: pa.ChunkedArray) -> None:
    answered = python_values(logged.table.column(name))
    wanted = python_values(historical)
    report.cells += len(wanted)
    for at, (ours, theirs) in enumerate(zip(answered, wanted, strict=True)):
        if repr(ours) == repr(theirs):  # exact: NaN is NaN, -0.0 is not 0.0
            continue
        if ours is None:
            report.missing += 1
        elif theirs is None:
            report.extra += 1
        else:
            report.different += 1
        if len(report.mismatches) < 100:
            row = python_rows(logged.table.select([*logged.entities, NOW]).slice(at, 1))[0]
            now_ns = row.pop(NOW)
            report.mismatches.append(Mismatch(name, row, now_ns, ours, theirs))


def _decoded(table: pa.Table) -> pa.Table:
    """Return dictionaries as their values: a file takes one dictionary a column, answers bring their own."""
    return table.cast(pa.schema([f.with_type(decoded_type(f.type)) for f in table.schema]))


def _plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    return [
        {k: v if isinstance(v, (str, int)) else repr(v) for k, v in row.items()} for row in python_rows(table)
    ]


def _siblings(root: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return [p.name for p in root.parent.iterdir()]
    return []
