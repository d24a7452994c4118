"""Where a store's settings come from: `feature_store.yaml`, and the account that applies."""

import getpass
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from featurestore.core.canonical import digest_json
from featurestore.errors import DefinitionError, NotFoundError
from featurestore.storage.files import is_remote, read_file, root_path
from featurestore.storage.objects import CachePlace, default_cache_folder

CONFIG_FILE: Final = "feature_store.yaml"


def user_name() -> str:
    """Return the account's name, empty where a container runs under a number that no account has."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""


def read_settings(root: str) -> Mapping[str, Any]:
    """Read the settings at a store's root; none where there is no such file.

    At a URL they are read with the credentials that the environment gives.

    Raises:
        DefinitionError: the file is not YAML, or not a mapping.
        StorageError: the file cannot be read, or the object store refused.
    """
    place = CachePlace(default_cache_folder(), 1)  # read once, never kept
    path = root_path(root, {}, place) / CONFIG_FILE
    if isinstance(path, Path) and not path.is_file():
        return {}
    try:
        data = read_file(path)
    except NotFoundError:
        return {}
    try:
        loaded = yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise DefinitionError(f"{path} cannot be read: {error}", hint="it is YAML: key: value") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, Mapping):
        raise DefinitionError(f"{path} does not hold a mapping", hint="it is YAML: key: value")
    return loaded


def online_folder(root: str, path: str) -> str:
    """Return the folder of the embedded online store: below the root, or on this machine where that is a URL.

    A relative path of a remote root lies in the user's data folder, under a name that the URL gives.
    """
    if not is_remote(root):
        return str(Path(root.removeprefix("file://")) / path)
    data = os.environ.get("XDG_DATA_HOME") or Path("~").expanduser() / ".local" / "share"
    return str(Path(data) / "featurestore" / digest_json(root.rstrip("/")) / path)
