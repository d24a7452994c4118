"""Sources: what other people wrote is reported, what the store itself appended is rewritten in place."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.core.canonical import digest_bytes
from featurestore.errors import CorruptDataError
from featurestore.materialize.context import Context
from featurestore.materialize.erasure.places import SourcePlace, source_places
from featurestore.materialize.erasure.subject import Renamed, Subject
from featurestore.storage.files import AnyPath, read_file, replace_file
from featurestore.storage.objects import ObjectPath
from featurestore.storage.source_files import Place, place_of
from featurestore.storage.source_readers import reading
from featurestore.storage.suppression import FILES, LedgerEntry, append_entry, read_ledger

# How `ingest` names what it appends.
_APPENDED: Final = re.compile(r"z*zz-\d{20}\.parquet")
# The xxh3-128 of a rewritten file before any erasure, in its metadata.
_BEFORE: Final = "featurestore.before"


@dataclass(frozen=True, slots=True)
class SourceRows:
    """Rows of a subject in one source.

    Attributes:
        rows: By file: where it lies, and how many rows.
        own: The files among them that the store itself appended, by the same words.
        renamed: What else the rows call the keys.
    """

    name: str
    rows: dict[str, int]
    own: Mapping[str, AnyPath]
    renamed: tuple[Renamed, ...]

    @property
    def total(self) -> int:
        """Rows in all files."""
        return sum(self.rows.values())


def source_rows(context: Context, subject: Subject) -> list[SourceRows]:
    """Count a subject's rows in every source as it lies, those that count as absent included.

    Cost:
        Reads the key columns of every source that has them.
    """
    return [_counted(context, place, subject) for place in source_places(context, subject)]


def rewrite_appended(context: Context, subject: Subject, found: Iterable[SourceRows]) -> list[str]:
    """Rewrite the files that the store appended, without a subject's rows; returns their paths.

    A file keeps its name, so the order of rows stays. What it was before is put into the ledger first:
    versions that pinned it still find it, by its old hash.

    Raises:
        StorageError: the disk refused; run again.
    """
    rewritten = []
    for source in found:
        for path in source.own:
            _rewrite(context, source.own[path], subject, source.renamed)
            rewritten.append(path)
    return rewritten


def _counted(context: Context, place: SourcePlace, subject: Subject) -> SourceRows:
    lies = place.table.as_it_lies()
    base = place_of(place.source.path, context.path)
    names = subject.names_in(lies.schema, place.renamed)
    columns = list(dict.fromkeys(c for columns in names for c in columns))
    rows: dict[str, int] = {}
    own: dict[str, AnyPath] = {}
    for name, batch, _ in lies.scan_named(columns):
        count = int(subject.mask(batch, place.renamed).sum())
        if count:
            path = _path_of(base.path, name)
            rows[path] = rows.get(path, 0) + count
            file = path_of(context.path, base, path)
            if file is not None and is_appended(file):
                own[path] = file
    return SourceRows(place.source.name, rows, own, place.renamed)


def path_of(root: AnyPath, place: Place, path: str) -> AnyPath | None:
    """Return a source's file as the store reaches it; `None` in another store than the root's."""
    if place.remote is None:
        return Path(path)
    if isinstance(root, ObjectPath) and place.remote == root.store.filesystem:
        return ObjectPath(root.store, path)
    return None


def is_appended(path: AnyPath) -> bool:
    """Say whether a source's file is one that the store itself appended."""
    return _APPENDED.fullmatch(path.name) is not None


def _path_of(base: str, name: str) -> str:
    """Return where a file of a source lies; a query mixes files, so it names the source's path alone."""
    whole = Path(base)
    return str(whole / name) if name and whole.suffix == "" and not re.search(r"[*?\[]", base) else base


def _rewrite(context: Context, path: AnyPath, subject: Subject, renamed: tuple[Renamed, ...]) -> None:
    """Replace a file by one without the subject's rows; an empty one stays, so that pins find it.

    Raises:
        CorruptDataError: the file does not hold the rows that were counted in it.
    """
    data = read_file(path)
    with reading(str(path)):
        table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()
    kept = table.filter(pa.array(~subject.mask(table, renamed)))
    if kept.num_rows == table.num_rows:
        raise CorruptDataError(f"{str(path)!r} holds rows of the subject, and none were taken out")
    before = read_ledger(context.path).origin(len(data), digest_bytes(data))
    # Files that are equal from now on, such as those without any row left, are told apart by what they were.
    kept = kept.replace_schema_metadata({**(kept.schema.metadata or {}), _BEFORE: before[1]})
    sink = pa.BufferOutputStream()
    pq.write_table(kept, sink, compression="zstd", compression_level=1, write_page_checksum=True)
    without = sink.getvalue().to_pybytes()
    after = digest_bytes(without)
    append_entry(
        context.path,
        LedgerEntry(number=0, kind=FILES, time_ns=context.clock.now_ns(), files={after: before}),
    )
    replace_file(path, without)
