"""The data files of a Delta table at one version, from its log by deltalake; it never reads the rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import unquote

import pyarrow as pa

from featurestore.errors import CorruptDataError, NotFoundError, SchemaError
from featurestore.storage.source_files import Place, SourceFile

_READER_FEATURES: Final = frozenset({"timestampNtz", "columnMapping", "v2Checkpoint", "vacuumProtocolCheck"})
_DELTA_WORDS: Final = {
    "key": "aws_access_key_id",
    "secret": "aws_secret_access_key",
    "token": "aws_session_token",
    "endpoint_url": "aws_endpoint_url",
    "region_name": "aws_region",
    "anon": "skip_signature",
    "account_name": "azure_storage_account_name",
    "account_key": "azure_storage_account_key",
    "sas_token": "azure_storage_sas_token",
    # The parts of a connection string of Azure.
    "AccountName": "azure_storage_account_name",
    "AccountKey": "azure_storage_account_key",
    "SharedAccessSignature": "azure_storage_sas_token",
    "BlobEndpoint": "azure_storage_endpoint",
}


@dataclass(frozen=True, slots=True)
class DeltaFiles:
    """What a Delta version consists of.

    Attributes:
        table_id: Tells a recreated table from its predecessor at the same path.
        files: Active files, ordered by name, partition values as text.
    """

    version: int
    table_id: str
    schema: pa.Schema
    files: tuple[SourceFile, ...]


def delta_files(place: Place, version: int | None) -> DeltaFiles:
    """List a Delta table's active files at a version, by default the newest.

    Raises:
        NotFoundError: no table, or no such version.
        SchemaError: the table uses a feature that a plain Parquet read would get wrong.
        CorruptDataError: the log cannot be read.
    """
    from deltalake import DeltaTable  # noqa: PLC0415 -- the one library for Delta, heavy to import
    from deltalake.exceptions import DeltaError, TableNotFoundError  # noqa: PLC0415

    try:
        table = DeltaTable(delta_uri(place), version=version, storage_options=delta_options(place))
        _check_protocol(table, place)
        schema = pa.schema(pa.schema(table.schema().to_arrow()))
        actions = pa.table(table.get_add_actions(flatten=True))
        found = table.version()
        table_id = str(table.metadata().id)
    except TableNotFoundError as error:
        what = "no Delta table" if version is None else f"no version {version} of the Delta table"
        raise NotFoundError(f"{what} at {place.path!r}", hint=str(error), path=place.path) from error
    except (DeltaError, OSError, ValueError) as error:
        if version is not None and "version" in str(error).lower():
            raise NotFoundError(
                f"no version {version} of the Delta table at {place.path!r}",
                hint="it was never written, or its log was cleaned up",
            ) from error
        raise CorruptDataError(
            f"cannot open the Delta table at {place.path!r}: {error}", path=place.path
        ) from error
    files = [_source_file(place, row) for row in actions.to_pylist()]
    plain = pa.schema([_plain_field(f) for f in schema])
    return DeltaFiles(found, table_id, plain, tuple(sorted(files, key=lambda f: f.name)))


def delta_uri(place: Place) -> str:
    """Return a place as deltalake names it."""
    if place.remote is None:
        return place.path
    protocol = place.remote.protocol
    name = protocol if isinstance(protocol, str) else protocol[0]
    return f"{name}://{place.path}"


def delta_options(place: Place) -> dict[str, str] | None:
    """Return the options of a file system in deltalake's words; what it has no word for is passed on."""
    if not place.options:
        return None
    options = dict(place.options)
    text = str(options.pop("connection_string", ""))
    options |= dict(part.split("=", 1) for part in text.split(";") if part)
    inner = options.pop("client_kwargs", {})
    given = {**options, **(inner if isinstance(inner, Mapping) else {})}
    out = {_DELTA_WORDS.get(key, key): str(value) for key, value in given.items()}
    if any(str(value).startswith("http://") for value in given.values()):
        out["allow_http"] = "true"
    return out


def _check_protocol(table: Any, place: Place) -> None:
    protocol = table.protocol()
    used = set(protocol.reader_features or ())
    mapped = table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none"
    refused = sorted(used - _READER_FEATURES) + (["columnMapping"] if mapped else [])
    if refused:
        raise SchemaError(
            f"the Delta table at {place.path!r} uses {', '.join(refused)}",
            hint="rewrite it without deletion vectors and column mapping, or read it through an export",
            path=place.path,
        )


def _source_file(place: Place, row: dict[str, Any]) -> SourceFile:
    name = unquote(row["path"])
    partitions = tuple(
        (k.removeprefix("partition."), "__HIVE_DEFAULT_PARTITION__" if v is None else str(v))
        for k, v in row.items()
        if k.startswith("partition.")
    )
    path = str(PurePosixPath(place.path) / name) if "://" not in name else name
    return SourceFile(path, name, int(row["size_bytes"]), "", partitions)


def _plain_field(field: pa.Field) -> pa.Field:
    """Types as our Parquet reader gives them."""
    kind = field.type
    if pa.types.is_string_view(kind) or pa.types.is_large_string(kind):
        kind = pa.string()
    elif pa.types.is_binary_view(kind) or pa.types.is_large_binary(kind):
        kind = pa.binary()
    return pa.field(field.name, kind)
