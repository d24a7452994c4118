"""Appending to a Delta table that others may write as well, through deltalake; durable when it returns."""

from pathlib import Path

import pyarrow as pa

from featurestore.errors import CommitConflictError, SchemaError, StorageError
from featurestore.storage.delta_files import delta_options, delta_uri
from featurestore.storage.files import announce, fsync_file, fsync_folder
from featurestore.storage.source_files import Place


def append_to_delta(place: Place, rows: pa.Table) -> int:
    """Append rows as one commit; returns the new version.

    Raises:
        SchemaError: a type that Delta would cut or change.
        CommitConflictError: another writer won too often.
        StorageError: the disk refused, and the log does not hold the commit.
    """
    from deltalake import DeltaTable, write_deltalake  # noqa: PLC0415 -- the one library for Delta, heavy
    from deltalake.exceptions import CommitFailedError, DeltaError  # noqa: PLC0415

    for field in rows.schema:
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            raise SchemaError(
                f"column {field.name!r} is {field.type}: a Delta table holds microseconds and would cut it",
                hint="store nanoseconds as int64, or use a folder of Parquet files",
                column=field.name,
            )
    path, options = delta_uri(place), delta_options(place)
    table = DeltaTable(path, storage_options=options)
    before = table.version()
    announce("commit", path)
    try:
        write_deltalake(table, rows, mode="append")
    except CommitFailedError as error:
        raise CommitConflictError(f"another writer of {path!r} committed first: {error}") from error
    except (DeltaError, OSError, ValueError) as error:
        raise StorageError(f"cannot append to {path!r}: {error}", path=path) from error
    found = DeltaTable(path, storage_options=options)
    if place.remote is not None:
        return int(found.version())
    for version in range(before + 1, found.version() + 1):
        fsync_file(Path(path) / "_delta_log" / f"{version:020d}.json")
    for file in found.file_uris():
        if Path(file).is_file() and Path(file).stat().st_mtime_ns:
            fsync_file(file)
    fsync_folder(Path(path) / "_delta_log")
    return int(found.version())
