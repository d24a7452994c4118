"""The proof: every file that the store owns is read again, by other readers than those that wrote it.

Parquet is decoded by DuckDB, Arrow files by Polars; every file, whatever it is, is searched for the bytes of
text keys. A key that is part of another value (`user1` in `user10`) is told apart by decoding.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.core.canonical import canonical_json
from featurestore.errors import CorruptDataError
from featurestore.materialize.erasure.subject import Subject

_PARQUET: Final = b"PAR1"
_ARROW: Final = b"ARROW1"
_WRITTEN_BY_PEOPLE: Final = frozenset({".py", ".yaml", ".yml", ".toml", ".md", ".sql"})
_SHORTEST: Final = 4  # shorter texts are everywhere by chance


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a scan found.

    Attributes:
        files: How many files were read; `bytes` their size; `values` how many decoded values were compared.
        occurrences: By file, values of key columns that are erased keys, or bytes of a key that no other
            value explains. Empty: nothing is left.
        mentions: By file, erased keys as values of columns that are no keys: a name that is also a word.
        online: Erased keys of which the online store holds something, by where.
    """

    files: int
    bytes: int
    values: int
    occurrences: Mapping[str, int] = field(default_factory=dict)
    mentions: Mapping[str, int] = field(default_factory=dict)
    online: Mapping[str, int] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether nothing was found but mentions."""
        return not self.occurrences and not any(self.online.values())


@dataclass(slots=True)
class _Tally:
    files: int = 0
    bytes: int = 0
    values: int = 0
    occurrences: dict[str, int] = field(default_factory=dict)
    mentions: dict[str, int] = field(default_factory=dict)


def prove(
    root: Path,
    subject: Subject,
    *,
    names: Iterable[str],
    extra: Iterable[Path] = (),
    skip: Iterable[Path] = (),
    online: Mapping[str, int] | None = None,
) -> Proof:
    """Scan everything below a root, and other files the store owns, for keys.

    Args:
        names: Columns that hold the keys, whatever tables call them.
        extra: Files outside of the root that the store owns.
        skip: Files below the root that the store does not own, and folders that are proved otherwise.

    Cost:
        Reads every byte below the root once, and decodes every column of texts, and key columns of integers.

    Raises:
        CorruptDataError: a file cannot be read as what it says it is.
    """
    tally = _Tally()
    texts = _texts(subject)
    columns = frozenset(names)
    left_out = {path.resolve() for path in skip}
    for path in _files(root, extra, left_out):
        tally.files += 1
        tally.bytes += path.stat().st_size
        where = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
        tables = _decoded(path)
        found = 0 if tables is None else _count_values(tables, subject, columns, tally, where)
        if not found and texts:
            exact, inside = _raw_hits(path, texts, tables)
            found = exact
            if inside:
                tally.mentions[where] = tally.mentions.get(where, 0) + inside
        if found:
            tally.occurrences[where] = found
    return Proof(
        files=tally.files,
        bytes=tally.bytes,
        values=tally.values,
        occurrences=tally.occurrences,
        mentions=tally.mentions,
        online=dict(online or {}),
    )


def _texts(subject: Subject) -> list[str]:
    """Return the distinct text parts of the keys that are long enough to be searched for."""
    out: list[str] = []
    for column in subject.keys.columns:
        if not pa.types.is_integer(_plain(column.type)):
            out += [v if isinstance(v, str) else v.decode("utf-8", "replace") for v in column.to_pylist()]
    return [text for text in dict.fromkeys(out) if len(text.encode()) >= _SHORTEST]


def _files(root: Path, extra: Iterable[Path], skip: set[Path]) -> Iterator[Path]:
    for path in sorted(p for p in root.rglob("*") if p.is_file() and not p.is_symlink()):
        full = path.resolve()
        if full not in skip and not any(parent in skip for parent in full.parents):
            yield path
    yield from (p for p in extra if not p.is_relative_to(root))


def _decoded(path: Path) -> "Sequence[pa.Table] | None":
    """Decode a file of columns with another reader than the one that writes them; `None` for other files."""
    with path.open("rb") as file:
        head = file.read(6)
    if head[:4] == _PARQUET:
        return [_by_duckdb(path)]
    if head == _ARROW:
        return [_by_polars(path)]
    return None


def _by_duckdb(path: Path) -> pa.Table:
    import duckdb  # noqa: PLC0415 -- heavy

    try:
        with duckdb.connect(":memory:") as connection:
            return connection.read_parquet(str(path)).to_arrow_table()
    except duckdb.Error as error:
        raise CorruptDataError(f"{str(path)!r} is not a Parquet file: {error}", path=str(path)) from error


def _by_polars(path: Path) -> pa.Table:
    import polars as pl  # noqa: PLC0415 -- heavy

    try:
        return pl.read_ipc(path).to_arrow()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise CorruptDataError(f"{str(path)!r} is not an Arrow file: {error}", path=str(path)) from error


def _count_values(
    tables: Sequence[pa.Table], subject: Subject, names: frozenset[str], tally: _Tally, where: str
) -> int:
    """Count rows that hold a key in key columns, and values elsewhere that are one."""
    found = 0
    for table in tables:
        flat = _flat(table)
        held = [n for n in flat.column_names if n in names]
        found += _rows_with_keys(flat, subject, names)
        tally.values += table.num_rows * max(1, len(held))
        mentions = _mentions(flat, subject, names)
        if mentions:
            tally.mentions[where] = tally.mentions.get(where, 0) + mentions
    return found


def _rows_with_keys(table: pa.Table, subject: Subject, names: frozenset[str]) -> int:
    """Count rows whose key columns hold a key, by value: no hash is involved."""
    if len(subject.columns) > 1:
        found = 0
        for columns in _column_tuples(table, subject, names):
            right = subject.keys.rename_columns(list(columns))
            kinds = pa.schema([table.schema.field(c) for c in columns])
            found += (
                table.select(list(columns))
                .join(right.cast(kinds), keys=list(columns), join_type="left semi")
                .num_rows
            )
        return found
    wanted = set(subject.keys.column(0).to_pylist())
    return sum(_among(table.column(n), wanted) for n in table.column_names if n in names)


def _column_tuples(table: pa.Table, subject: Subject, names: frozenset[str]) -> Iterator[tuple[str, ...]]:
    options = [subject.columns, tuple(f"source__{c}" for c in subject.columns)]
    for columns in options:
        if set(columns) <= set(table.column_names) & names:
            yield columns


def _mentions(table: pa.Table, subject: Subject, names: frozenset[str]) -> int:
    texts = set(_texts(subject))
    others = [n for n in table.column_names if n not in names and _is_text(table.schema.field(n).type)]
    return sum(_among(table.column(n), texts) for n in others) if texts else 0


def _among(column: pa.ChunkedArray, wanted: set[Any]) -> int:
    kind = _plain(column.type)
    fits = [
        v for v in wanted if isinstance(v, int) == (pa.types.is_integer(kind) or pa.types.is_decimal(kind))
    ]
    if not fits or not (pa.types.is_integer(kind) or pa.types.is_decimal(kind) or _is_text(kind)):
        return 0
    plain = column.cast(pa.string() if pa.types.is_decimal(kind) else kind)
    values = [str(v) for v in fits] if pa.types.is_decimal(kind) else fits
    texts = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    given = [v.encode() if texts and isinstance(v, str) else v for v in values]
    try:
        asked = pa.array(given, plain.type)
    except (pa.ArrowInvalid, OverflowError):
        asked = pa.array([v for v in given if _in_range(v, plain.type)], plain.type)
    return int(pc.sum(pc.is_in(plain, value_set=asked)).as_py() or 0)


def _in_range(value: Any, kind: pa.DataType) -> bool:
    try:
        pa.array([value], kind)
    except (pa.ArrowInvalid, OverflowError):
        return False
    return True


def _flat(table: pa.Table) -> pa.Table:
    """Open structs and lists, so that texts inside them are seen."""
    columns: dict[str, pa.ChunkedArray] = {}
    for name in table.column_names:
        column = table.column(name)
        if pa.types.is_string_view(column.type):
            column = column.cast(pa.large_string())
        columns[name] = column
    return pa.table(columns)


def _raw_hits(path: Path, texts: Sequence[str], tables: Sequence[pa.Table] | None) -> tuple[int, int]:
    """Count the keys whose bytes are in a file, and those that are there as part of something else.

    In JSON a key is a whole text; in files that people write it is a mention; in files of columns it may be
    part of longer values. Anywhere else bytes of a key are the key.
    """
    block = path.read_bytes()
    hits = [text for text in texts if text.encode() in block]
    if path.suffix == ".json":
        exact = [text for text in texts if canonical_json(text).encode() in block]
    elif path.suffix in _WRITTEN_BY_PEOPLE:
        exact = []
    elif tables is not None:
        exact = [text for text in hits if not any(_has_longer(_flat(table), text) for table in tables)]
    else:
        exact = hits
    return len(exact), len(set(hits) - set(exact))


def _has_longer(table: pa.Table, text: str) -> bool:
    for name in table.column_names:
        column = table.column(name)
        if _is_text(column.type) and not pa.types.is_dictionary(column.type):
            inside = pc.match_substring(column, text)
            if pc.any(inside).as_py():
                return True
    return False


def _is_text(kind: pa.DataType) -> bool:
    kind = _plain(kind)
    return any(
        check(kind)
        for check in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_binary,
            pa.types.is_large_binary,
        )
    )


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
