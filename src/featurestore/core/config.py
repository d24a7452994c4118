"""How a store is set up: the content of `feature_store.yaml`, checked."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Final

from featurestore.core.arguments import folder, mapped, refuse, text, whole
from featurestore.core.names import check_name, near
from featurestore.core.time import duration_ns
from featurestore.errors import DefinitionError

# Takes the settings' name, the key and what is written under it.
Reader = Callable[[str, str, Any], Any]

ONLINE_STORES: Final = ("lmdb", "redis")
EXECUTORS: Final = ("threads", "processes", "ray")

_BYTES: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMgGtT]i?)?[bB]?")
_SCALE: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SCALE_I: Final = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineConfig:
    """Where newest values live.

    Attributes:
        store: `lmdb` (a folder, many reader processes) or `redis` (a URL, many machines).
        path: LMDB's folder; relative to the root.
        url: Redis's URL.
        history_ns: How far behind its writer's clock a reader's `now` may lie and still be answered exactly.
    """

    store: str = "lmdb"
    path: str = "online"
    url: str = "redis://127.0.0.1:6379/0"
    history_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """Where a remote root's files are kept on this machine while they are read.

    Attributes:
        path: A folder on a fast local disk, shared by all processes; empty: the user's cache folder.
        size_bytes: What the copies may take together; the least recently used go first.
    """

    path: str = ""
    size_bytes: int = 20_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """The settings of one feature store.

    Attributes:
        project: Names the store where several share a server.
        buckets: Hash buckets per date of newly created tables; fixed for a table once it exists.
        executor: `threads`, `processes` or `ray`.
        threads: Threads for kernels and writers; 0 takes the machine's cores.
        memory_bytes: Budget of a materialization.
        storage_options: Passed to fsspec for a remote root and for sources of its protocol.
        lease_ns: How long a writer of a remote root may give no sign of life before another takes over.
        online: Where newest values live.
        cache: The cache tier in front of a remote root.
    """

    project: str = "default"
    buckets: int = 8
    executor: str = "threads"
    threads: int = 0
    memory_bytes: int = 1_000_000_000
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    lease_ns: int = 30_000_000_000
    online: OnlineConfig = field(default_factory=OnlineConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)


def store_config(raw: Mapping[str, Any]) -> StoreConfig:
    """Read settings from plain values, as `feature_store.yaml` holds them.

    Sizes and durations have no unit in their keys there: `memory: 1GB`, `lease: 30s`.

    Raises:
        DefinitionError: an unknown key or a value that cannot be right.
    """
    config: StoreConfig = _settings("feature_store.yaml", raw, shape=StoreConfig, readers=_STORE)
    return config


def _settings(what: str, raw: Any, *, shape: type[Any], readers: Mapping[str, Reader]) -> Any:
    if not isinstance(raw, Mapping):
        raise DefinitionError(f"{what} is {raw!r}", hint=f"give a mapping of {', '.join(readers)}")
    attributes = {f.name.removesuffix("_bytes").removesuffix("_ns"): f.name for f in fields(shape)}
    keys = {name: key for key, name in attributes.items()} | {key: key for key in attributes}
    values: dict[str, Any] = {}
    for given, value in raw.items():
        if given not in keys:
            raise DefinitionError(f"{what} has an unknown key {given!r}", hint=near(given, readers))
        key = keys[given]
        values[attributes[key]] = readers[key](what, key, value)
    return shape(**values)


def bytes_of(value: int | str) -> int:
    """Read `"1GB"`, `"512MiB"` or a number of bytes.

    Raises:
        DefinitionError: not a size, or not a positive one.
    """
    match = _BYTES.fullmatch(str(value).strip())
    if match is None or float(match[1]) == 0:
        raise DefinitionError(f"{value!r} is not a size in bytes", hint='write it like "1GB" or "512MiB"')
    unit = (match[2] or "").lower()
    return int(float(match[1]) * (_SCALE_I[unit] if unit.endswith("i") else _SCALE[unit]))


def _size(what: str, key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        refuse(what, key, value, 'write it like "1GB" or "512MiB"')
    return bytes_of(value)


def _number(what: str, key: str, value: Any, *, least: int, most: int) -> int:
    if whole(what, key, value, least=least) > most:
        refuse(what, key, value, f"give a whole number from {least:,} to {most:,}")
    return int(value)


def _one_of(what: str, key: str, value: Any, *, choices: tuple[str, ...]) -> str:
    if value not in choices:
        refuse(what, key, value, near(value, choices))
    return str(value)


def _duration(what: str, key: str, value: Any, *, least: int = 0) -> int:
    nanos = duration_ns(value, what=f"{key} of {what}")
    if nanos < least:
        refuse(what, key, value, "give a time longer than none")
    return nanos


def _place(what: str, key: str, value: Any) -> str:
    if not (place := folder(what, key, value)):
        refuse(what, key, value, "name a folder, or leave the key out")
    return place


def _nested(what: str, key: str, value: Any, *, shape: type[Any], readers: Mapping[str, Reader]) -> Any:
    # A key with nothing below it is null in YAML.
    return _settings(f"{key} in {what}", {} if value is None else value, shape=shape, readers=readers)


# By key of the YAML: how each value is read.
_ONLINE: Final[Mapping[str, Reader]] = {
    "store": partial(_one_of, choices=ONLINE_STORES),
    "path": _place,
    "url": text,
    "history": _duration,
}
_CACHE: Final[Mapping[str, Reader]] = {"path": _place, "size": _size}
_STORE: Final[Mapping[str, Reader]] = {
    "project": lambda _what, key, value: check_name(value, key),
    "buckets": partial(_number, least=1, most=9999),
    "executor": partial(_one_of, choices=EXECUTORS),
    "threads": partial(_number, least=0, most=4096),
    "memory": _size,
    "storage_options": lambda what, key, value: mapped(what, key, value, "fsspec's options"),
    "lease": partial(_duration, least=1),
    "online": partial(_nested, shape=OnlineConfig, readers=_ONLINE),
    "cache": partial(_nested, shape=CacheConfig, readers=_CACHE),
}
