"""The proof: every file that the store owns is read again, by other readers than those that wrote it.

Parquet is decoded by DuckDB, Arrow files by Polars; every file, whatever it is, is searched for the bytes of
text keys. A key that is part of another value (`user1` in `user10`) is told apart by decoding.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.core.canonical import canonical_json
from featurestore.errors import CorruptDataError, NotFoundError
from featurestore.materialize.erasure.subject import Subject
from featurestore.storage.files import AnyPath
from featurestore.storage.objects import ObjectPath
from featurestore.storage.version_files import fetched

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_PARQUET: Final = b"PAR1"
_ARROW: Final = b"ARROW1"
_WRITTEN_BY_PEOPLE: Final = frozenset({".py", ".yaml", ".yml", ".toml", ".md", ".sql"})
_FEW: Final = 16
_END: Final = 8
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
    root: AnyPath,
    subject: Subject,
    *,
    names: Iterable[str],
    extra: Iterable[AnyPath] = (),
    skip: Iterable[AnyPath] = (),
    online: Mapping[str, int] | None = None,
) -> Proof:
    """Scan everything below a root, and other files the store owns, for keys.

    Args:
        names: Columns that hold the keys, whatever tables call them.
        extra: Files outside of the root that the store owns.
        skip: Files below the root that the store does not own, and folders that are proved otherwise.

    Cost:
        Reads every byte below the root once, and decodes every column of texts, and key columns of integers.
        Objects are fetched one by one, past the cache.

    Raises:
        CorruptDataError: a file cannot be read as what it says it is.
    """
    import duckdb  # noqa: PLC0415 -- heavy

    tally = _Tally()
    with duckdb.connect(":memory:") as connection:
        for where, path, size in _files(root, list(extra), list(skip)):
            _prove_file(path, size, where, connection, subject, frozenset(names), tally)
    return Proof(
        files=tally.files,
        bytes=tally.bytes,
        values=tally.values,
        occurrences=tally.occurrences,
        mentions=tally.mentions,
        online=dict(online or {}),
    )


def _prove_file(
    path: AnyPath,
    size: int,
    where: str,
    connection: "DuckDBPyConnection",
    subject: Subject,
    names: frozenset[str],
    tally: _Tally,
) -> None:
    """Scan one file; one that another process took away or replaced since it was listed is looked at anew.

    Raises:
        CorruptDataError: it cannot be read as what it says it is.
        NotFoundError: it is listed and cannot be fetched.
        FileNotFoundError: the same of a local one.
    """
    while True:
        try:
            with fetched(path, size) as file:
                _scan(file, where, _decoded(file, where, connection), subject, names, tally)
                return
        except (NotFoundError, CorruptDataError, FileNotFoundError):
            now = _size_of(path)
            if now == size:
                raise
            if now is None:
                return
            size = now


def _size_of(path: AnyPath) -> int | None:
    """Return an object's size as `_files` gives it, `None` where it is gone."""
    if isinstance(path, Path):
        return 0 if path.is_file() else None
    found = path.info()
    return None if found is None else found.size


def _scan(
    path: Path,
    where: str,
    table: pa.Table | None,
    subject: Subject,
    names: frozenset[str],
    tally: _Tally,
) -> None:
    """Count what one file holds of a subject; bytes are searched where no value was found."""
    tally.bytes += path.stat().st_size
    tally.files += 1
    texts = _texts(subject)
    found = mentions = 0
    if table is not None:
        tally.values += table.num_rows * table.num_columns
        found = _rows_with_keys(table, subject, names)
        mentions = _mentions(table, texts, names)
    if not found and texts:
        found, inside = _raw_hits(path, PurePosixPath(where).suffix, texts, table)
        mentions = max(mentions, inside)
    if found:
        tally.occurrences[where] = found
    if mentions:
        tally.mentions[where] = mentions


def _texts(subject: Subject) -> list[str]:
    """Return the distinct text parts of the keys that are long enough to be searched for."""
    out: list[str] = []
    for column in subject.keys.columns:
        if not pa.types.is_integer(_plain(column.type)):
            out += [v if isinstance(v, str) else v.decode("utf-8", "replace") for v in column.to_pylist()]
    return [text for text in dict.fromkeys(out) if len(text.encode()) >= _SHORTEST]


def _files(
    root: AnyPath, extra: Sequence[AnyPath], skip: Sequence[AnyPath]
) -> Iterator[tuple[str, AnyPath, int]]:
    """Give every file to be scanned: what reports call it, where it is, and the size of an object."""
    if isinstance(root, ObjectPath):
        yield from _objects(root, extra, {path.key for path in skip if isinstance(path, ObjectPath)})
    else:
        hidden = {path.resolve() for path in skip if isinstance(path, Path)}
        for path in sorted(p for p in root.rglob("*") if p.is_file() and not p.is_symlink()):
            full = path.resolve()
            if full not in hidden and not any(parent in hidden for parent in full.parents):
                yield str(path.relative_to(root)), path, 0
    for found in extra:
        if isinstance(found, Path) and not (isinstance(root, Path) and found.is_relative_to(root)):
            yield str(found), found, 0


def _objects(
    root: ObjectPath, extra: Iterable[AnyPath], hidden: set[str]
) -> Iterator[tuple[str, AnyPath, int]]:
    for path, info in root.objects().items():
        parents = (path.key[:at] for at, letter in enumerate(path.key) if letter == "/")
        if path.key not in hidden and not any(parent in hidden for parent in parents):
            yield path.relative_to(root).as_posix(), path, info.size
    for found in extra:
        if isinstance(found, ObjectPath) and not found.key.startswith(f"{root.key}/"):
            there = found.info()
            if there is not None:
                yield str(found), found, there.size


def _decoded(path: Path, where: str, connection: "DuckDBPyConnection") -> pa.Table | None:
    """Decode a file of columns with another reader than the one that writes them; `None` for other files."""
    with path.open("rb") as file:
        head = file.read(6)
    if head[:4] == _PARQUET:
        return _by_duckdb(path, where, connection)
    return _by_polars(path, where) if head == _ARROW else None


def _by_duckdb(path: Path, where: str, connection: "DuckDBPyConnection") -> pa.Table:
    import duckdb  # noqa: PLC0415 -- heavy

    try:
        return connection.read_parquet(str(path)).to_arrow_table()
    except duckdb.Error as error:
        raise CorruptDataError(f"{where!r} is not a Parquet file: {error}", path=where) from error


def _by_polars(path: Path, where: str) -> pa.Table:
    import polars as pl  # noqa: PLC0415 -- heavy

    try:
        return pl.read_ipc(path).to_arrow()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise CorruptDataError(f"{where!r} is not an Arrow file: {error}", path=where) from error


def _rows_with_keys(table: pa.Table, subject: Subject, names: frozenset[str]) -> int:
    """Count rows whose key columns hold a key, by value: no hash is involved."""
    if len(subject.columns) > 1:
        found = 0
        for columns in _column_tuples(table, subject, names):
            right = subject.keys.rename_columns(list(columns))
            own = {c: next(_leaves(table.column(c))) for c in columns}
            kinds = pa.schema([(c, column.type) for c, column in own.items()])
            rows = pa.table(own).join(right.cast(kinds), keys=list(columns), join_type="left semi")
            found += rows.num_rows
        return found
    wanted = set(subject.keys.column(0).to_pylist())
    held = [leaf for n in table.column_names if n in names for leaf in _leaves(table.column(n))]
    return sum(_among(leaf, wanted) for leaf in held)


def _column_tuples(table: pa.Table, subject: Subject, names: frozenset[str]) -> Iterator[tuple[str, ...]]:
    options = [subject.columns, tuple(f"source__{c}" for c in subject.columns)]
    for columns in options:
        if set(columns) <= set(table.column_names) & names:
            yield columns


def _mentions(table: pa.Table, texts: Sequence[str], names: frozenset[str]) -> int:
    others = [c for n in table.column_names if n not in names for c in _leaves(table.column(n))]
    return sum(_among(column, set(texts)) for column in others) if texts else 0


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


def _leaves(column: pa.ChunkedArray) -> Iterator[pa.ChunkedArray]:
    """Open structs and lists, so that texts inside them are seen."""
    kind = column.type
    if pa.types.is_struct(kind):
        for at in range(kind.num_fields):
            yield from _leaves(pc.struct_field(column, at))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _leaves(pc.list_flatten(column))
    elif pa.types.is_string_view(kind):
        yield column.cast(pa.large_string())
    elif pa.types.is_binary_view(kind):
        yield column.cast(pa.large_binary())
    else:
        yield column


def _raw_hits(path: Path, suffix: str, texts: Sequence[str], table: pa.Table | None) -> tuple[int, int]:
    """Count the keys whose bytes are in a file, and those that are there as part of something else.

    In JSON a key is a whole text; in files that people write it is a mention; in files of columns it may be
    part of longer values. Anywhere else bytes of a key are the key.
    """
    block = path.read_bytes()
    hits = _present(block, texts)
    if suffix == ".json":
        escaped = [text for text in texts if canonical_json(text)[1:-1] != text]
        exact = [text for text in {*hits, *escaped} if canonical_json(text).encode() in block]
    elif suffix in _WRITTEN_BY_PEOPLE:
        exact = []
    elif table is not None:
        exact = [text for text in hits if not _has_longer(table, text)]
    else:
        exact = hits
    return len(exact), len(set(hits) - set(exact))


def _present(block: bytes, texts: Sequence[str]) -> list[str]:
    """Return the texts whose bytes are in a block; many are looked for at once, by their last eight bytes."""
    if len(texts) <= _FEW:
        return [text for text in texts if text.encode() in block]
    ends: dict[int, list[str]] = {}
    short = [text for text in texts if len(text.encode()) < _END]
    for text in texts:
        ends.setdefault(int.from_bytes(text.encode()[-_END:], "little"), []).append(text)
    wanted = np.array(sorted(ends), np.uint64)
    maybe = dict.fromkeys(short)
    for shift in range(min(_END, len(block))):
        words = np.frombuffer(block, "<u8", (len(block) - shift) // _END, shift)
        at = np.minimum(np.searchsorted(wanted, words), len(wanted) - 1)
        for end in np.unique(words[wanted[at] == words]).tolist():
            maybe.update(dict.fromkeys(ends[end]))
    return [text for text in maybe if text.encode() in block]


def _has_longer(table: pa.Table, text: str) -> bool:
    """Say whether a value of a table explains the bytes of a text: it is that text, or contains it."""
    leaves = (leaf for column in table.columns for leaf in _leaves(column))
    plain = (leaf.cast(_plain(leaf.type)) for leaf in leaves if _is_text(leaf.type))
    return any(pc.any(pc.match_substring(leaf, text)).as_py() for leaf in plain)


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
