"""Sending a run's finished files to a store of objects, under names that never change their meaning."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from featurestore.storage.delta_log import DataFile
from featurestore.storage.manifest import Shard
from featurestore.storage.objects import ObjectPath

FILES: Final = "files"


@dataclass(frozen=True, slots=True)
class Upload:
    """Where the files of a run go; pickles, so that any worker can send its own.

    A data file keeps its path in the table, which names its content. Files of Arrow versions lie together,
    named by their content, and are shared by all versions. Until a commit names them nobody sees them.

    Attributes:
        delta: The Delta table.
        files: The folder of files of all versions.
    """

    delta: ObjectPath
    files: ObjectPath

    def send(self, delta: Path, ipc: Path, data: DataFile, shard: Shard) -> None:
        """Upload the three files of a partition and remove the local ones.

        Args:
            delta: The local folder of data files; `ipc` that of shards.

        Raises:
            StorageError: the store refused.
        """
        pairs = [
            (delta / data.path, self.delta / data.path),
            (ipc / shard.file, self.files / file_name(shard.xxh3)),
            (ipc / shard.offsets, self.files / file_name(shard.offsets_xxh3)),
        ]
        with ThreadPoolExecutor(len(pairs), "upload") as pool:
            list(pool.map(_send, pairs))

    def send_file(self, path: Path) -> None:
        """Upload a file whose name is its own among all runs, and remove the local one.

        Raises:
            StorageError: the store refused.
        """
        _send((path, self.files / path.name))


def file_name(xxh3: str) -> str:
    """Name a file by its content."""
    return f"{xxh3}.arrow"


def _send(pair: tuple[Path, ObjectPath]) -> None:
    local, target = pair
    target.upload(local)
    local.unlink()
