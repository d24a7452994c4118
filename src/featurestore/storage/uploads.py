"""Sending a run's finished files to a store of objects, under names that never change their meaning."""

from dataclasses import dataclass
from pathlib import Path

from featurestore.storage.effects import storage_errors
from featurestore.storage.objects import ObjectPath
from featurestore.storage.version_files import object_of, shard_name


@dataclass(frozen=True, slots=True)
class Upload:
    """Where the files of a run go; pickles, so that any worker can send its own.

    A data file keeps its path in the table, which names its content. Files of Arrow versions lie together,
    named by their content, and are shared by all versions. Until a commit names them nobody sees them.

    Attributes:
        delta: The Delta table.
        versions: The folder of all versions.
    """

    delta: ObjectPath
    versions: ObjectPath

    def send_data(self, local: Path, path: str) -> None:
        """Upload a data file to its path in the table, and remove the local one.

        Raises:
            StorageError: the store refused.
        """
        _send(local, self.delta / path)

    def send_shard(self, local: Path, xxh3: str) -> None:
        """Upload a shard's file, and remove the local one.

        Raises:
            StorageError: the store refused.
        """
        _send(local, object_of(self.versions, shard_name(xxh3)))

    def send_file(self, local: Path) -> None:
        """Upload another file of a version, whose name is its own among all runs; remove the local one.

        Raises:
            StorageError: the store refused.
        """
        _send(local, object_of(self.versions, local.name))


def _send(local: Path, target: ObjectPath) -> None:
    target.upload(local)
    with storage_errors("remove", local):
        local.unlink()
