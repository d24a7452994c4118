"""Sources: what other people wrote is reported, what the store itself appended is rewritten in place."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import CorruptDataError
from featurestore.materialize.context import Context
from featurestore.materialize.erasure.places import SourcePlace, source_places
from featurestore.materialize.erasure.subject import Renamed, Subject
from featurestore.storage.files import (
    TEMPORARY,
    announce,
    fsync_file,
    fsync_folder,
    remove_files,
    storage_errors,
)
from featurestore.storage.source_files import hash_file, place_of
from featurestore.storage.suppression import FILES, LedgerEntry, append_entry, read_ledger

# How `ingest` names what it appends.
_APPENDED: Final = re.compile(r"z*zz-\d{20}\.parquet")


@dataclass(frozen=True, slots=True)
class SourceRows:
    """Rows of a subject in one source.

    Attributes:
        rows: By file: where it lies, and how many rows.
        own: The files among them that the store itself appended.
        renamed: What else the rows call the keys.
    """

    name: str
    rows: dict[str, int]
    own: tuple[str, ...]
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
            _rewrite(context, Path(path), subject, source.renamed)
            rewritten.append(path)
    return rewritten


def _counted(context: Context, place: SourcePlace, subject: Subject) -> SourceRows:
    lies = place.table.as_it_lies()
    base = place_of(place.source.path, context.path)
    names = subject.names_in(lies.schema, place.renamed)
    columns = list(dict.fromkeys(c for columns in names for c in columns))
    rows: dict[str, int] = {}
    own = []
    for name, batch, _ in lies.scan_named(columns):
        count = int(subject.mask(batch, place.renamed).sum())
        if count:
            path = _path_of(base.path, name)
            rows[path] = rows.get(path, 0) + count
            if base.remote is None and is_appended(Path(name)) and path not in own:
                own.append(path)
    return SourceRows(place.source.name, rows, tuple(own), place.renamed)


def is_appended(path: Path) -> bool:
    """Say whether a source's file is one that the store itself appended."""
    return _APPENDED.fullmatch(path.name) is not None


def _path_of(base: str, name: str) -> str:
    """Return where a file of a source lies; a query mixes files, so it names the source's path alone."""
    whole = Path(base)
    return str(whole / name) if name and whole.suffix == "" and not re.search(r"[*?\[]", base) else base


def _rewrite(context: Context, path: Path, subject: Subject, renamed: tuple[Renamed, ...]) -> None:
    """Replace a file by one without the subject's rows; an empty one stays, so that pins find it.

    Raises:
        CorruptDataError: the file does not hold the rows that were counted in it.
    """
    with storage_errors("read", path):
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
    kept = table.filter(pa.array(~subject.mask(table, renamed)))
    staged = path.with_name(f"{TEMPORARY}{path.name}")
    remove_files([staged])
    announce("write", staged)
    with storage_errors("write", staged):
        pq.write_table(kept, staged, compression="zstd", compression_level=1, write_page_checksum=True)
    fsync_file(staged)
    local = place_of(str(path.parent), context.path)
    before = read_ledger(context.root).origin(path.stat().st_size, hash_file(local, str(path)))
    after = hash_file(local, str(staged))
    if after == before[1]:
        raise CorruptDataError(f"{str(path)!r} holds rows of the subject, and none were taken out")
    append_entry(
        context.root,
        LedgerEntry(number=0, kind=FILES, time_ns=context.clock.now_ns(), files={after: before}),
    )
    announce("replace", path)
    with storage_errors("replace", path):
        staged.replace(path)
    fsync_folder(path.parent)
