"""How a store is set up: the content of `feature_store.yaml`, checked."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from featurestore.core.names import check_name, near
from featurestore.core.time import Duration, duration_ns
from featurestore.errors import DefinitionError

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

    Raises:
        DefinitionError: an unknown key or a value that cannot be right.
    """
    if not isinstance(raw, Mapping):
        raise DefinitionError(f"the settings are {raw!r}", hint="a mapping, as feature_store.yaml holds it")
    values = dict(raw)
    _check_keys("feature_store.yaml", values, StoreConfig)
    if "memory" in values:
        values["memory_bytes"] = bytes_of(values.pop("memory"))
    if "lease" in values:
        values["lease_ns"] = duration_ns(values.pop("lease"), what="lease")
    values["online"] = _online(values.get("online") or {})
    values["cache"] = _cache(values.get("cache") or {})
    config = StoreConfig(**values)
    check_name(config.project, "project")
    for name, least, most in (("buckets", 1, 9999), ("threads", 0, 4096)):
        value = values.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise DefinitionError(f"{name} is {value!r}", hint=f"a number from {least:,} to {most:,}")
    if config.executor not in EXECUTORS:
        raise DefinitionError(f"executor is {config.executor!r}", hint=near(config.executor, EXECUTORS))
    return config


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


def _online(raw: Mapping[str, Any]) -> OnlineConfig:
    values = dict(raw)
    _check_keys("online in feature_store.yaml", values, OnlineConfig)
    if "history" in values:
        history: Duration = values.pop("history")
        values["history_ns"] = duration_ns(history, what="online history")
    config = OnlineConfig(**values)
    if config.store not in ONLINE_STORES:
        raise DefinitionError(f"online store is {config.store!r}", hint=near(config.store, ONLINE_STORES))
    return config


def _cache(raw: Mapping[str, Any]) -> CacheConfig:
    values = dict(raw)
    _check_keys("cache in feature_store.yaml", values, CacheConfig)
    if "size" in values:
        values["size_bytes"] = bytes_of(values.pop("size"))
    return CacheConfig(**values)


def _check_keys(what: str, values: Mapping[str, Any], shape: type) -> None:
    known = {f.name.removesuffix("_bytes").removesuffix("_ns") for f in fields(shape)}
    known |= {f.name for f in fields(shape)}
    for key in values:
        if key not in known:
            raise DefinitionError(f"{what} has an unknown key {key!r}", hint=near(key, known))
