"""The rows of one dataset version as stored columns, opened and verified part by part at first touch."""

import importlib.util
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.core.time import INT64_MIN, Int64Array, scale_to_ns
from featurestore.errors import CorruptDataError, DefinitionError, FeatureStoreError, StorageError
from featurestore.loaders.fields import dtype_name
from featurestore.loaders.gather import PartIndex, StoredColumn
from featurestore.storage.files import AnyPath
from featurestore.storage.shards import ShardSet, ShardView, open_dataset_folder

Verify = Literal["auto", "first_use", "open", "off"]
AnyArray = np.ndarray[Any, np.dtype[Any]]

Derive = Callable[[int, ShardView], AnyArray]

TIME: Final = "\0time"


class DatasetRows:
    """Columns of one dataset version, numbered 0 … rows-1 in manifest order. Safe for threads.

    Attributes:
        all_ready: Whether every part is open and verified.

    A part (shard) is opened when one of its rows is first needed; its size is compared with the manifest
    before it is mapped and its checksum before a value is handed out.

    Args:
        verify: `auto`: at first use where xxhash is installed, sizes only otherwise.
    """

    def __init__(self, shards: ShardSet, *, verify: Verify = "auto") -> None:
        if verify not in {"auto", "first_use", "open", "off"}:
            raise DefinitionError(f"verify is {verify!r}", hint="one of auto, first_use, open, off")
        self.shards = shards
        self.manifest = shards.manifest
        has_hash = _has_xxhash()
        self.verify = ("first_use" if has_hash else "off") if verify == "auto" else verify
        self.verify_reason = "" if has_hash or verify == "off" else "xxhash is not installed"
        self.index = PartIndex([s.rows for s in self.manifest.shards] or [0])
        self._packs = {p.column: p for p in self.manifest.packs}
        self._columns: dict[str, StoredColumn] = {}
        self._derived: dict[str, Derive] = {}
        self._ready = np.zeros(len(self.index), np.bool_)
        self.all_ready = False
        self._file_offsets: dict[tuple[int, str], int] = {}
        self._locks = [threading.Lock() for _ in range(len(self.index))]
        self._lock = threading.Lock()
        self._check_sizes()
        if self.verify == "open":
            self.touch_parts(range(len(self.manifest.shards)))

    def __reduce__(self) -> tuple[Any, ...]:
        # Mappings and locks stay in their process; another one opens its own.
        return _reopened, (self.shards.folder, self.verify)

    @property
    def rows(self) -> int:
        """Rows of the whole version."""
        return self.index.rows

    def column(self, name: str) -> StoredColumn:
        """Return a stored column to gather from: a pack, a plain column or `TIME`.

        Name every column that will be gathered before the first `touch`.
        """
        with self._lock:
            found = self._columns.get(name)
            if found is None:
                dtype, width = self._type_of(name)
                found = self._columns[name] = StoredColumn(self.index, dtype, width, name)
                for part in np.flatnonzero(self._ready):
                    self._put(int(part), name, found, self.shards.shard(int(part)))
            return found

    def derive(self, name: str, dtype: np.dtype[Any], width: int, values: Derive) -> StoredColumn:
        """Add a column computed part by part when the part is opened, such as codes of strings."""
        with self._lock:
            found = self._columns.get(name)
            if found is None:
                self._derived[name] = values
                found = self._columns[name] = StoredColumn(self.index, dtype, width)
                for part in np.flatnonzero(self._ready):
                    self._put(int(part), name, found, self.shards.shard(int(part)))
            return found

    def touch(self, rows: Int64Array) -> None:
        """Open and verify the parts that hold `rows`; cheap once all are open.

        Raises:
            CorruptDataError: a part's bytes are not those that were written.
            StorageError: a part cannot be read.
        """
        if not self.all_ready:
            parts = np.unique(self.index.parts_of(rows))
            for part in parts[~self._ready[parts]]:
                self.open_part(int(part))

    def touch_parts(self, parts: Iterable[int], *, threads: int = 2) -> None:
        """Open and verify whole parts, in parallel."""
        wanted = [p for p in parts if not self._ready[p]]
        if len(wanted) > 1:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(self.open_part, wanted))
        elif wanted:
            self.open_part(wanted[0])

    def open_part(self, part: int) -> None:
        """Open one part: verify it, then publish its columns' addresses.

        Raises:
            CorruptDataError: damaged or truncated; the context names file, shard and version.
        """
        with self._locks[part]:
            if self._ready[part] or part >= len(self.manifest.shards):
                return
            shard = self.manifest.shards[part]
            try:
                if self.verify != "off":
                    self.shards.check(part)
                view = self.shards.shard(part)
                with self._lock:
                    for name, column in self._columns.items():
                        self._put(part, name, column, view)
                    self._ready[part] = True
                    self.all_ready = bool(self._ready.all())
            except FeatureStoreError as error:
                raise self._located(error, part) from error
            except (OSError, pa.ArrowException) as error:
                raise self._located(StorageError(f"cannot read {shard.file}: {error}"), part) from error

    def times(self, part: int) -> Int64Array:
        """Return a part's event times, ns; its bytes verified."""
        column = self.column(TIME)
        self.open_part(part)
        values: Int64Array = column.block(part).reshape(-1)
        return values

    def is_pack(self, name: str) -> bool:
        """Say whether a stored column is a pack."""
        return name in self._packs

    def file_offset(self, part: int, name: str) -> int:
        """Say where a pack's values begin in a shard's file; looked up once."""
        known = self._file_offsets.get((part, name))
        if known is not None:
            return known
        mapped = pa.memory_map(str(self.shards.path(part)))
        base = mapped.read_buffer(mapped.size()).address
        mapped.seek(0)
        table = pa.ipc.open_file(mapped).read_all()
        stored = table.column(name).chunk(0)
        found = int(stored.values.buffers()[1].address - base)
        self._file_offsets[part, name] = found
        return found

    def _located(self, error: FeatureStoreError, part: int) -> FeatureStoreError:
        shard, manifest = self.manifest.shards[part], self.manifest
        where = {"file": str(self.shards.folder / shard.file), "shard": part, "version": manifest.version}
        message = (
            f"{error.message} (shard {part} of {len(manifest.shards)}, "
            f"dataset {manifest.name!r} version {manifest.version}, file {shard.file})"
        )
        return type(error)(message, hint=error.hint, **{**error.context, **where})

    def _check_sizes(self) -> None:
        """Compare file sizes first: reading past the end of a mapped file would kill the process.

        Shards in an object store are compared when they are fetched.
        """
        if not isinstance(self.shards.folder, Path):
            return
        for part, shard in enumerate(self.manifest.shards):
            path = self.shards.folder / shard.file
            try:
                found = path.stat().st_size
            except OSError as error:
                raise self._located(StorageError(f"cannot read {shard.file}: {error}"), part) from error
            if found != shard.bytes:
                raise self._located(
                    CorruptDataError(
                        f"{shard.file} has {found} bytes, the manifest says {shard.bytes}",
                        hint="restore the file, or materialize the version again",
                    ),
                    part,
                )

    def _type_of(self, name: str) -> tuple[np.dtype[Any], int]:
        if name in self._packs:
            pack = self._packs[name]
            return np.dtype(dtype_name(pack.dtype)), len(pack.features)
        if name == TIME:
            return np.dtype(np.int64), 1
        return plain_type(self.manifest.schema.field(name).type)

    def _put(self, part: int, name: str, column: StoredColumn, view: ShardView) -> None:
        if name in self._derived:
            column.put(part, self._derived[name](part, view), None)
            return
        if name in self._packs:
            block = view.pack(name)
            column.put(part, block.view(column.dtype), view.mask(name))
            return
        stored = view.column(self.manifest.timestamp if name == TIME else name)
        block, valid = plain_values(stored, name)
        column.put(part, block, valid)


def plain_type(kind: pa.DataType) -> tuple[np.dtype[Any], int]:
    """Give the NumPy type and width in which a plain column's values are gathered."""
    if pa.types.is_fixed_size_list(kind):
        return np.dtype(kind.value_type.to_pandas_dtype()), int(kind.list_size)
    if pa.types.is_timestamp(kind):
        return np.dtype(np.int64), 1
    return np.dtype(kind.to_pandas_dtype()), 1


def plain_values(stored: pa.Array, name: str) -> tuple[AnyArray, np.ndarray[Any, np.dtype[np.uint8]] | None]:
    """Return a plain column's values (views where the type allows) and its mask bytes, None without nulls.

    Nulls hold NaN in floats, INT64_MIN in timestamps and 0 elsewhere.
    """
    kind = stored.type
    valid = None
    if stored.null_count:
        valid = np.asarray(stored.is_valid().to_numpy(zero_copy_only=False)).view(np.uint8)
    if pa.types.is_fixed_size_list(kind):
        width = kind.list_size
        inner = stored.values.slice(stored.offset * width, len(stored) * width)
        values = np.asarray(inner.to_numpy(zero_copy_only=not inner.null_count)).reshape(-1, width)
        return values, None if valid is None else np.repeat(valid[:, None], width, axis=1)
    if pa.types.is_timestamp(kind):
        filled = pc.fill_null(stored.cast(pa.int64()), 0) if valid is not None else stored.cast(pa.int64())
        nanos = scale_to_ns(np.asarray(filled), kind.unit, what=name)
        return (nanos if valid is None else np.where(valid != 0, nanos, INT64_MIN)), valid
    if valid is not None:
        hole = pa.scalar(np.nan if pa.types.is_floating(kind) else 0).cast(kind)
        stored = pc.fill_null(stored, hole)
    return np.asarray(stored.to_numpy(zero_copy_only=False)), valid


def open_rows(
    dataset: str | AnyPath | ShardSet, version: int | None = None, *, verify: Verify = "auto"
) -> DatasetRows:
    """Open a published version's rows.

    Args:
        dataset: A version's folder, the folder of versions above it, or shards already open.
    """
    if isinstance(dataset, ShardSet):
        shards = ShardSet(dataset.folder, dataset.manifest, "off")
    else:
        shards = open_dataset_folder(dataset, version, verify="off")
    return DatasetRows(shards, verify=verify)


def _reopened(folder: AnyPath, verify: Verify) -> DatasetRows:
    return open_rows(folder, verify=verify)


def _has_xxhash() -> bool:
    try:
        return importlib.util.find_spec("xxhash") is not None
    except ImportError:
        return False
