"""Appending to a Delta table that others may write as well, through deltalake; durable when it returns."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from featurestore.errors import CommitConflictError, DefinitionError, SchemaError, StorageError
from featurestore.storage.delta_files import delta_options, delta_uri
from featurestore.storage.files import announce, fsync_file, fsync_folder
from featurestore.storage.source_files import Place


def append_to_delta(place: Place, rows: pa.Table) -> int:
    """Append rows as one commit, creating the table where there is none; returns the new version.

    Raises:
        DefinitionError: the table holds versions that the store itself writes.
        SchemaError: a type that Delta would cut or change.
        CommitConflictError: another writer won too often.
        StorageError: the disk refused, and the log does not hold the commit.
    """
    from deltalake import DeltaTable, write_deltalake  # noqa: PLC0415 -- the one library for Delta, heavy
    from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError  # noqa: PLC0415

    _check_types(rows.schema)
    path, options = delta_uri(place), delta_options(place)
    try:
        table = DeltaTable(path, storage_options=options)
        _check_foreign(path, table.metadata().configuration)
        before, old = table.version(), set(table.file_uris())
    except TableNotFoundError:
        table, before, old = None, -1, set()
    announce("commit", path)
    try:
        if table is None:
            write_deltalake(path, rows, mode="error", storage_options=options)
        else:
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
    new = [Path(file) for file in found.file_uris() if file not in old]
    for file in new:
        fsync_file(file)
    for folder in {Path(path) / "_delta_log", *(file.parent for file in new)}:
        fsync_folder(folder)
    return int(found.version())


def _check_types(schema: pa.Schema) -> None:
    for field in schema:
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            raise SchemaError(
                f"column {field.name!r} is {field.type}: a Delta table holds microseconds and would cut it",
                hint="store nanoseconds as int64, or use a folder of Parquet files",
                column=field.name,
            )


def _check_foreign(path: str, configuration: Mapping[str, str]) -> None:
    name = configuration.get("featurestore.name")
    if name is not None:
        raise DefinitionError(
            f"{path!r} holds the versions of {name!r}, which only materializing writes",
            hint="append to the source of the view, or read the view itself",
        )
