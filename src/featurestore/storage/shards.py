"""Reading a published version: memory-mapped shards as NumPy views. Needs numpy and pyarrow only."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.core.time import Int64Array
from featurestore.errors import CorruptDataError, DefinitionError, NotFoundError
from featurestore.storage.files import AnyPath, storage_errors
from featurestore.storage.hashing import hash_local_file
from featurestore.storage.manifest import (
    Manifest,
    Pack,
    Shard,
    current_version,
    is_version_folder,
    published_versions,
    read_manifest,
    version_folder,
)
from featurestore.storage.objects import ObjectPath
from featurestore.storage.packing import ENTITY_CODE, unpack
from featurestore.storage.version_files import open_shard_file

VERIFY: Final = ("lazy", "full", "off")
_AHEAD: Final = 8
Opened = TypeVar("Opened")
Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class ShardView:
    """One shard's rows, without copies where the types allow.

    Attributes:
        shard: What the manifest says of it.
        table: The columns as stored, over the mapped file.
    """

    shard: Shard
    table: pa.Table
    packs: tuple[Pack, ...]
    offsets_table: pa.Table

    def pack(self, column: str) -> np.ndarray:
        """Return a pack as a read-only `(rows, F)` view of the mapped file."""
        return _matrix(self.table.column(column))

    def mask(self, column: str) -> npt.NDArray[np.uint8] | None:
        """Return a pack's `(rows, F)` mask, 1 where valid; `None`: everything in this shard is valid."""
        name = next(p.mask for p in self.packs if p.column == column)
        if name is None or name not in self.table.column_names:
            return None
        return _matrix(self.table.column(name))

    def column(self, name: str) -> pa.Array:
        """Return a plain column, or one feature out of its pack (a copy).

        Raises:
            NotFoundError: no such column.
        """
        if name in self.table.column_names:
            return _one(self.table.column(name))
        for pack in self.packs:
            if name in pack.features:
                return unpack(
                    self.pack(pack.column), self.mask(pack.column), pack.features.index(name), pack.dtype
                )
        raise NotFoundError(f"the shard has no column {name!r}", hint=", ".join(self.table.column_names))

    @property
    def entity_codes(self) -> Int32Array:
        """`(rows,)` dense codes in key order; -1 where a key is null (such rows come last)."""
        return np.asarray(_one(self.table.column(ENTITY_CODE)))

    @property
    def offsets(self) -> Int64Array:
        """`(entities + 1,)`: rows of entity e are `offsets[e]:offsets[e + 1]`."""
        return np.asarray(_one(self.offsets_table.column("offset")))

    def entity_keys(self) -> pa.Table:
        """Return the key columns, one row per entity code."""
        return self.offsets_table.drop_columns(["offset"]).slice(0, self.shard.entities)

    def to_table(self, names: Sequence[str]) -> pa.Table:
        """Return columns by name; plain ones without copies."""
        return pa.table({name: self.column(name) for name in names})


class ShardSet:
    """A version's shards, opened one by one on first use; safe for threads.

    Attributes:
        folder: The version's folder.
        manifest: What the version says about itself.
    """

    def __init__(self, folder: AnyPath, manifest: Manifest, verify: str) -> None:
        self.folder = folder
        self.manifest = manifest
        self._verify = verify
        self._views: dict[int, ShardView] = {}
        self._checked: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.manifest.shards)

    def __iter__(self) -> Iterator[ShardView]:
        if isinstance(self.folder, Path) or len(self) < 2:
            return (self.shard(i) for i in range(len(self)))
        return self._fetched_ahead()

    def _fetched_ahead(self) -> Iterator[ShardView]:
        """Open remote shards in order, a few of them on their way."""
        with ThreadPoolExecutor(_AHEAD, "shards") as pool:
            coming = deque(pool.submit(self.shard, i) for i in range(min(_AHEAD, len(self))))
            for following in range(_AHEAD, len(self) + _AHEAD):
                view = coming.popleft().result()
                if following < len(self):
                    coming.append(pool.submit(self.shard, following))
                yield view
                if not coming:
                    return

    def path(self, index: int) -> Path:
        """Return the path of a shard's rows, for readers that map or DMA it themselves.

        Of a remote version it is that of a copy, which may be evicted: open it soon, or ask again.
        """
        return _local_rows(self.folder, self.manifest.shards[index], _itself)

    def check(self, index: int) -> None:
        """Hash a shard's files and compare with the manifest, once per opened version.

        Raises:
            CorruptDataError: the bytes are not those that were written.
            MissingDependencyError: xxhash is not installed.
        """
        with self._lock:
            if index in self._checked:
                return
        shard = self.manifest.shards[index]
        # Copies in the cache are verified when fetched and on first touch; `full` reads the store itself.
        _local_rows(self.folder, shard, _checker(shard.xxh3), fresh=self._verify == "full")
        _local_offsets(self.folder, shard, _checker(shard.offsets_xxh3), fresh=self._verify == "full")
        with self._lock:
            self._checked.add(index)

    def shard(self, index: int) -> ShardView:
        """Open a shard; with `verify="lazy"` its checksum is compared on first touch.

        Raises:
            CorruptDataError: damaged or truncated files.
            NotFoundError: a file is gone.
        """
        found = self._views.get(index)
        if found is not None:
            return found
        if self._verify == "full" or (self._verify == "lazy" and isinstance(self.folder, Path)):
            self.check(index)
        shard = self.manifest.shards[index]
        view = ShardView(
            shard,
            _local_rows(self.folder, shard, _mapped_table),
            self.manifest.packs,
            _local_offsets(self.folder, shard, _mapped_table),
        )
        if view.table.num_rows != shard.rows:
            raise CorruptDataError(
                f"{shard.file} holds {view.table.num_rows} rows, the manifest says {shard.rows}",
                path=shard.file,
            )
        with self._lock:
            return self._views.setdefault(index, view)


def open_dataset_folder(path: str | AnyPath, version: int | None = None, *, verify: str = "lazy") -> ShardSet:
    """Open a published version for reading.

    Args:
        path: The `ipc` folder that holds CURRENT and versions, or one version's folder.
        version: `None` takes the newest.
        verify: `lazy`: a shard's checksum on first touch; `full`: all of them now; `off`: never.

    Raises:
        NotFoundError: no such folder or version.
        CorruptDataError: a damaged manifest or, with `full`, shard.
        DefinitionError: an unknown `verify`.
    """
    if verify not in VERIFY:
        raise DefinitionError(f"verify is {verify!r}", hint=f"one of {', '.join(VERIFY)}")
    folder = Path(path) if isinstance(path, str) else path
    remote = isinstance(folder, ObjectPath)
    if not (is_version_folder(folder.name) if remote else (folder / "MANIFEST.json").is_file()):
        folder = folder / version_folder(_version(folder, version))
    opened = ShardSet(folder, read_manifest(folder), verify)
    if verify == "full":
        for index in range(len(opened)):
            opened.check(index)
    return opened


def _version(folder: AnyPath, version: int | None) -> int:
    """Return a version that is there, the newest if none is asked for.

    Raises:
        NotFoundError: it is not there.
    """
    if isinstance(folder, ObjectPath):
        known = published_versions(folder)  # one request tells all
        found = max(known, default=None) if version is None else version
        there = found in known
    else:
        known = []
        found = current_version(folder) if version is None else version
        there = found is not None and (folder / version_folder(found)).is_dir()
    if found is not None and there:
        return found
    known = known or published_versions(folder)
    if not known:
        raise NotFoundError(
            f"{_dataset_name(folder)!r} has no version: nothing has been materialized yet",
            hint="materialize it first",
            version=version,
        )
    hint = f"there is version {known[0]}" if len(known) == 1 else f"there are {known[0]} to {known[-1]}"
    raise NotFoundError(f"{_dataset_name(folder)!r} has no version {found}", hint=hint, version=found)


def _dataset_name(folder: AnyPath) -> str:
    """Name the dataset of an IPC folder: `…/datasets/NAME/ipc` or `…/ipc/VIEW_vN`."""
    return folder.parent.name if folder.name == "ipc" else folder.name


def _mapped_table(path: Path) -> pa.Table:
    with storage_errors("map", path):
        try:
            return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except pa.ArrowInvalid as error:
            raise CorruptDataError(f"{str(path)!r} is not an Arrow file: {error}", path=str(path)) from error


def _local_rows(
    folder: AnyPath, shard: Shard, opener: Callable[[Path], Opened], *, fresh: bool = False
) -> Opened:
    return open_shard_file(folder, shard.file, shard.xxh3, shard.bytes, opener, fresh=fresh)


def _local_offsets(
    folder: AnyPath, shard: Shard, opener: Callable[[Path], Opened], *, fresh: bool = False
) -> Opened:
    return open_shard_file(folder, shard.offsets, shard.offsets_xxh3, None, opener, fresh=fresh)


def _itself(path: Path) -> Path:
    return path


def _checker(xxh3: str) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        if path.name != xxh3 and hash_local_file(path) != xxh3:  # copies are named by what was verified
            raise CorruptDataError(
                f"{str(path)!r} is damaged: its checksum is not the one in the manifest",
                hint="rebuild the version from Delta: materialize again, or recreate",
                path=str(path),
            )

    return check


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    array = _one(column)
    width = array.type.list_size
    values = array.values.slice(array.offset * width, len(array) * width)
    return np.asarray(values.to_numpy(zero_copy_only=True)).reshape(len(array), width)
