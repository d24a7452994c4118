"""Where a store's settings come from: `feature_store.yaml`, and the account that applies."""

import getpass
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from featurestore.errors import DefinitionError

CONFIG_FILE: Final = "feature_store.yaml"


def user_name() -> str:
    """Return the account's name, empty where a container runs under a number that no account has."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""


def read_settings(root: str) -> Mapping[str, Any]:
    """Read the settings in a store's folder; none where there is no such file or the root is remote.

    Raises:
        DefinitionError: the file is not YAML, or not a mapping.
    """
    path = Path(root) / CONFIG_FILE
    if "://" in root or not path.is_file():
        return {}
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise DefinitionError(f"{path} cannot be read: {error}", hint="it is YAML: key: value") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, Mapping):
        raise DefinitionError(f"{path} does not hold a mapping", hint="it is YAML: key: value")
    return loaded
