"""The manifest: all that one immutable version says about itself. Needs numpy and pyarrow only."""

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, overload

import pyarrow as pa

from featurestore.core.canonical import canonical_json
from featurestore.errors import CorruptDataError, NotFoundError
from featurestore.storage.files import AnyPath, read_file
from featurestore.storage.objects import ObjectPath

FORMAT: Final = 1
MANIFEST: Final = "MANIFEST.json"
CURRENT: Final = "CURRENT"
# Canonical JSON: keys in order, no spaces.
_FIRST_SHARD: Final = b'[{"bucket":'
_SHARDS: Final = b'"shards":' + _FIRST_SHARD
_BEHIND_SHARDS: Final = b'}],"states":'
_VERSION: Final = re.compile(r"v(\d{8,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestColumn:
    """A column: `role` is spine, feature or label; `view` the feature's view with its version."""

    name: str
    type: str
    role: str
    view: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """Numeric features of one type, row-major in one column.

    Attributes:
        column: The packed column's name, such as `x_double`.
        mask: Name of the mask column (1 = valid), `None` where no feature of the pack has a null in this
            version. A shard whose pack has no null leaves its mask out.
        dtype: The Arrow type of the features.
        features: The features in order.
    """

    column: str
    mask: str | None
    dtype: str
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One (event date, bucket) partition as Arrow IPC files.

    Attributes:
        file: Name of the rows' file in the version's folder.
        offsets: Name of the per-entity offsets' file.
        xxh3: xxh3-128 of the rows' file; `offsets_xxh3` that of the offsets.
        min_time_ns: Smallest event timestamp; `max_time_ns` the greatest.
        digest: Digest of the content, the partition's share of the fingerprint.
        nulls: Null count per packed column, where there are any.
    """

    file: str
    offsets: str
    date: str
    bucket: int
    rows: int
    entities: int
    bytes: int
    xxh3: str
    offsets_xxh3: str
    min_time_ns: int
    max_time_ns: int
    digest: str
    nulls: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One version of a dataset or of a view's mirror.

    Attributes:
        version: The Delta version that holds the same rows.
        fingerprint: xxh3-128 of the logical content in canonical order.
        definition: The spec of the training set or view.
        definitions: Digest of every definition involved, by `name@version`.
        inputs: Snapshot of every source.
        timestamp: The event timestamp's column.
        windows_ns: How far each feature looks back; `None` for ever.
        arrow_schema: The logical Arrow schema, serialized, base64.
        buckets: Hash buckets per date.
        range_ns: `[start, end)` of the spine's event timestamps, `None` for open ends.
        run: Digest of everything the content was computed from; equal runs have equal content.
        states: Digest of STATES.json, which lists the carried state that later runs go on from; empty: none.
        erasure: Empty where nothing was ever erased in the store. Else `ledger`, the newest erasure that the
            content takes into account, and for a version that an erasure rewrote `rows`, how many it took
            out, and `of`, the version that it replaces.
    """

    name: str
    kind: str
    version: int
    fingerprint: str
    rows: int
    catalog_version: int
    definition: Mapping[str, Any]
    definitions: Mapping[str, str]
    inputs: Sequence[Mapping[str, Any]]
    engine: str
    timestamp: str
    entity_keys: tuple[str, ...]
    columns: tuple[ManifestColumn, ...]
    packs: tuple[Pack, ...]
    labels: tuple[str, ...]
    horizons_ns: Mapping[str, int]
    windows_ns: Mapping[str, int | None]
    shards: Sequence[Shard]
    created_ns: int
    arrow_schema: str
    buckets: int = 1
    range_ns: tuple[int | None, int | None] = (None, None)
    run: str = ""
    states: str = ""
    vocabularies: Mapping[str, Sequence[str]] = field(default_factory=dict)
    erasure: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def __repr__(self) -> str:
        # Its shards may be 100,000; the fields are there to be asked for.
        return (
            f"Manifest({self.name!r} version {self.version}, {self.rows:,} rows, "
            f"{len(self.columns)} columns, fingerprint {self.fingerprint})"
        )

    @property
    def schema(self) -> pa.Schema:
        """The logical schema: spine, features, labels."""
        return schema_from_text(self.arrow_schema)

    def spec(self) -> dict[str, Any]:
        """Return the manifest as plain JSON values."""
        out = {f.name: getattr(self, f.name) for f in fields(self)}
        columns = out.pop("columns")
        out["schema"] = {"columns": [_plain(c) for c in columns], "arrow": out.pop("arrow_schema")}
        out["packs"] = [_plain(p) for p in self.packs]
        out["shards"] = [_plain(s) for s in self.shards]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in out.items()}

    def to_json(self) -> bytes:
        """Write canonical JSON that carries its own digest."""
        spec = self.spec()
        return canonical_json({**spec, "digest": _digest(spec)}).encode() + b"\n"

    def numbered(self, version: int, created_ns: int) -> "Manifest":
        """Return the same content as another version."""
        return replace(self, version=version, created_ns=created_ns)


class Shards(Sequence[Shard]):
    """The shards of a manifest as it was read: their text becomes values when the first is asked for.

    Opening a version of many thousand partitions so costs what its checksum costs.
    """

    __slots__ = ("_found", "_text")

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._found: tuple[Shard, ...] | None = None

    def _all(self) -> tuple[Shard, ...]:
        if self._found is None:
            self._found = tuple(Shard(**s) for s in json.loads(self._text))
        return self._found

    def __len__(self) -> int:
        return len(self._all())

    @overload
    def __getitem__(self, index: int) -> Shard: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Shard, ...]: ...
    def __getitem__(self, index: int | slice) -> Shard | tuple[Shard, ...]:
        return self._all()[index]

    def __iter__(self) -> Iterator[Shard]:
        return iter(self._all())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (Shards, tuple)) and self._all() == tuple(other)

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        return repr(self._all())

    def __reduce__(self) -> tuple[type["Shards"], tuple[bytes]]:
        return Shards, (self._text,)


def manifest_from_json(data: bytes, *, path: str) -> Manifest:
    """Read back what `Manifest.to_json` wrote.

    Raises:
        CorruptDataError: not a manifest, of an unknown format, or not the bytes that were written.

    Cost:
        One hash of the bytes; the list of shards is parsed on first use.
    """
    rest, listed = _without_shards(data)
    try:
        spec = json.loads(rest)
        if spec["shards"] is not None:
            spec = json.loads(data)
        digest = spec.pop("digest")
        found = spec["format"]
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise CorruptDataError(f"{path!r} is not a manifest: {error}", path=path) from error
    if not _is_sealed(data, digest):
        raise CorruptDataError(
            f"{path!r} is damaged: its digest does not match",
            hint="rebuild the version from Delta, or restore the file",
            path=path,
        )
    if found != FORMAT:
        raise CorruptDataError(
            f"{path!r} has format {found}, this release reads {FORMAT}",
            hint="install a newer release",
            path=path,
        )
    schema = spec.pop("schema")
    return Manifest(
        **{
            **spec,
            "entity_keys": tuple(spec["entity_keys"]),
            "labels": tuple(spec["labels"]),
            "range_ns": tuple(spec["range_ns"]),
            "columns": tuple(ManifestColumn(**c) for c in schema["columns"]),
            "arrow_schema": schema["arrow"],
            "packs": tuple(Pack(**{**p, "features": tuple(p["features"])}) for p in spec["packs"]),
            "shards": Shards(listed) if spec["shards"] is None else tuple(Shard(**s) for s in spec["shards"]),
        }
    )


def _without_shards(data: bytes) -> tuple[bytes, bytes]:
    """Cut the list of shards out of a manifest's text; within a JSON string neither mark can stand.

    Returns:
        The text with `null` in its place, and the list; the text as it is where the marks are not there.
    """
    start, end = data.find(_SHARDS), data.rfind(_BEHIND_SHARDS)
    if not 0 <= start < end:
        return data, b""
    first, last = start + len(_SHARDS) - len(_FIRST_SHARD), end + 2
    return data[:first] + b"null" + data[last:], data[first:last]


def _is_sealed(data: bytes, digest: object) -> bool:
    """Say whether a manifest's bytes without its digest have that digest."""
    if not isinstance(digest, str) or not data.endswith(b"\n"):
        return False
    seal = canonical_json({"digest": digest}).encode()[1:-1] + b","
    start = data.find(seal)
    while start >= 0:
        hasher = hashlib.blake2b(data[:start], digest_size=16)
        hasher.update(data[start + len(seal) : -1])
        if hasher.hexdigest() == digest:
            return True
        start = data.find(seal, start + 1)
    return False


def version_folder(version: int) -> str:
    """Name a version's folder."""
    return f"v{version:08d}"


def is_version_folder(name: str) -> bool:
    """Say whether a name is that of a version's folder."""
    return _VERSION.fullmatch(name) is not None


def current_version(folder: str | AnyPath) -> int | None:
    """Return the newest published version in an IPC folder, `None` before the first.

    In a store of objects nothing points at it: a manifest appears whole, and the greatest number is newest.

    Raises:
        CorruptDataError: CURRENT does not name a version.
    """
    if isinstance(folder, ObjectPath):
        return max(published_versions(folder), default=None)
    try:
        text = read_file(Path(folder) / CURRENT)
    except NotFoundError:
        return None
    found = _VERSION.match(text.decode("ascii", "replace"))
    # Every byte counts, the end of the line included.
    if found is None or text != current_text(int(found[0][1:])):
        raise CorruptDataError(
            f"{str(Path(folder) / CURRENT)!r} says {text!r}, which is not a version",
            hint="restore the file; or remove it and materialize again: the newest commit says what it was",
            path=str(folder),
        )
    return int(found[0][1:])


def current_text(version: int) -> bytes:
    """Return what CURRENT says: the version's folder, and a checksum."""
    name = version_folder(version)
    return f"{name} {_crc(name)}\n".encode()


def published_versions(folder: str | AnyPath) -> list[int]:
    """Return all published versions in an IPC folder, ascending."""
    if isinstance(folder, ObjectPath):
        # There are no empty folders: what is listed holds a manifest.
        found = (_VERSION.fullmatch(path.name) for path in folder.iterdir())
        return sorted(int(match[1]) for match in found if match is not None)
    base = Path(folder)
    if not base.is_dir():
        return []
    names = (p.name for p in base.iterdir())
    return sorted(
        int(n[1:]) for n in names if n[0] == "v" and n[1:].isdigit() and (base / n / MANIFEST).is_file()
    )


def read_manifest(folder: str | AnyPath) -> Manifest:
    """Read the manifest of a version's folder.

    Raises:
        NotFoundError: there is none.
        CorruptDataError: it is damaged.
    """
    path = (Path(folder) if isinstance(folder, str) else folder) / MANIFEST
    return manifest_from_json(read_file(path), path=str(path))


def schema_text(schema: pa.Schema) -> str:
    """Serialize an Arrow schema as text."""
    return base64.b64encode(schema.remove_metadata().serialize().to_pybytes()).decode("ascii")


def schema_from_text(text: str) -> pa.Schema:
    """Read back what `schema_text` wrote."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def _crc(name: str) -> str:
    return f"{zlib.crc32(name.encode()):08x}"


def _digest(spec: Mapping[str, Any]) -> str:
    # blake2b is in the standard library: a training image without xxhash still checks its manifests.
    return hashlib.blake2b(canonical_json(spec).encode(), digest_size=16).hexdigest()


def _plain(value: Any) -> dict[str, Any]:
    out = {f.name: getattr(value, f.name) for f in fields(value)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in out.items()}
