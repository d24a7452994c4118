"""One worker process: `python -m featurestore.serve.worker`, its configuration on standard input.

It loads and warms everything, says `warm`, waits for `go`, says `ready PORT` once it serves, and drains on
SIGTERM or when its parent is gone.
"""

import asyncio
import contextlib
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from featurestore.catalog.catalog import open_catalog
from featurestore.catalog.snapshot import CatalogSnapshot
from featurestore.core.clock import Clock, ManualClock, SystemClock
from featurestore.errors import DefinitionError, FeatureStoreError
from featurestore.serve.access import Access
from featurestore.serve.answer_log import AnswerLog
from featurestore.serve.backend import OnlineBackend, open_backend
from featurestore.serve.config import ServerConfig, config_from_json
from featurestore.serve.grpc_server import GrpcServer
from featurestore.serve.http_server import HttpServer
from featurestore.serve.metrics import Metrics
from featurestore.serve.service import OnlineService
from featurestore.serve.tracing import NO_TRACING, Tracing
from featurestore.serve.worker_process import FAILED, GO, READY, WARM
from featurestore.serve.write_threads import WriteThreads
from featurestore.storage.files import AnyPath, is_remote, root_path
from featurestore.storage.objects import CachePlace, default_cache_folder
from featurestore.storage.suppression import read_ledger

EXIT_FAILED: Final = 3
_CACHE_BYTES: Final = 1 << 28
_log = logging.getLogger("featurestore.serve")


def open_root(config: ServerConfig) -> OnlineBackend:
    """Open the backend of a feature store's folder.

    Raises:
        OnlineStoreError: the online store cannot be opened.
        DefinitionError: a root in a store of objects, and nothing said of where the online store is.
    """
    catalog = open_catalog(config.root, config.storage_options)

    def newest() -> CatalogSnapshot:
        return catalog.snapshot()

    if config.online is None and is_remote(config.root):
        raise DefinitionError(
            f"the online store of {config.root} has no folder",
            hint="give online=…: a local folder or a Redis URL",
        )
    online = config.online or f"{config.root.rstrip('/')}/online"
    root = _root(config)
    return open_backend(newest, online, clock=clock_of(config), history_ns=config.history_ns, root=root)


def clock_of(config: ServerConfig) -> Clock:
    """Return the wall clock, or the fixed one of a replay."""
    return SystemClock() if config.now_ns is None else ManualClock(config.now_ns)


def opener_of(config: ServerConfig) -> Callable[[ServerConfig], OnlineBackend]:
    """Return the function that the configuration names."""
    module, _, name = config.opener.partition(":")
    found: Callable[[ServerConfig], OnlineBackend] = getattr(importlib.import_module(module), name)
    return found


async def serve_until_told(config: ServerConfig, backend: OnlineBackend, parent: "_Parent") -> None:
    """Serve from its parent's word until SIGTERM, SIGINT or its parent's end, then drain.

    Raises:
        ServerError: a port is taken.
    """
    backend.warm()
    told, go = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    parent.watch(loop, go, told)
    fronts = _Fronts(config, backend)
    reloading = asyncio.create_task(_reload(backend, fronts, config.reload_s))
    _say(WARM)
    await _first(go, told)
    if go.is_set():
        _say(f"{READY} {await fronts.start()}")
        _keep_stdout_for_the_parent()
        await told.wait()
    reloading.cancel()
    await fronts.drain()
    backend.close()


def _root(config: ServerConfig) -> AnyPath:
    return root_path(config.root, config.storage_options, CachePlace(default_cache_folder(), _CACHE_BYTES))


class _Fronts:
    """What one worker listens with."""

    def __init__(self, config: ServerConfig, backend: OnlineBackend) -> None:
        self.metrics = Metrics(folder=config.metrics_folder)
        self.tracing = _tracing(config)
        self.log = None
        if config.answer_log is not None:
            ledger = partial(read_ledger, _root(config))
            self.log = AnswerLog(config.answer_log, fraction=config.answer_fraction, ledger=ledger)
        service = OnlineService(backend, config.limits, self.metrics, self.log, self.tracing)
        access = Access(config, SystemClock())
        self.threads = WriteThreads(self.metrics)
        self.grpc = GrpcServer(service, config, access, self.threads)
        self.http = None
        if config.http_port is not None:
            self.http = HttpServer(service, config, access, self.threads)

    async def start(self) -> str:
        port = await self.grpc.start()
        return f"{port} {0 if self.http is None else await self.http.start()}"

    async def drain(self) -> None:
        if self.http is not None:
            self.http.draining = True
        await self.grpc.drain()
        self.threads.close()
        if self.http is not None:
            await self.http.stop()
        if self.log is not None:
            self.log.flush()
        self.tracing.close()
        self.metrics.close()


class _Parent:
    """The process that started this one, as lines on standard input; its end is the end of them."""

    def __init__(self) -> None:
        self._rest = b""

    def line(self) -> str:
        while b"\n" not in self._rest:
            data = os.read(0, 65536)
            if not data:
                break
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def watch(self, loop: asyncio.AbstractEventLoop, go: asyncio.Event, told: asyncio.Event) -> None:
        threading.Thread(target=self._watch, args=(loop, go, told), daemon=True).start()

    def _watch(self, loop: asyncio.AbstractEventLoop, go: asyncio.Event, told: asyncio.Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended before
            while line := self.line():
                if line == GO:
                    loop.call_soon_threadsafe(go.set)
            loop.call_soon_threadsafe(told.set)


def _tracing(config: ServerConfig) -> Tracing:
    if not config.traces:
        return NO_TRACING
    from featurestore.serve.opentelemetry_tracing import open_tracing  # noqa: PLC0415 -- an optional adapter

    return open_tracing()


async def _first(*events: asyncio.Event) -> None:
    """Wait for any of some events."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _keep_stdout_for_the_parent() -> None:
    """Send what others print to standard error; the pipe itself stays open, so that its end tells of ours."""
    os.dup(1)
    os.dup2(2, 1)


async def _reload(backend: OnlineBackend, fronts: _Fronts, every_s: float) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(every_s)
        if fronts.http is not None and await fronts.http.renew():
            _log.info("the HTTP front has a new certificate")
        try:
            if await loop.run_in_executor(None, backend.reload):
                _log.info("catalog version %d", backend.snapshot.version)
        except FeatureStoreError as error:
            _log.warning("the catalog could not be read: %s", error.message)


def main() -> int:
    """Serve as standard input says; returns the exit status."""
    parent = _Parent()
    config = config_from_json(parent.line())
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    backend: OnlineBackend | None = None
    try:
        backend = opener_of(config)(config)
        run = serve_until_told(config, backend, parent)
        try:
            import uvloop  # noqa: PLC0415 -- where it is installed, a sixth less time per call
        except ImportError:
            asyncio.run(run)
        else:
            uvloop.run(run)
    except FeatureStoreError as error:
        _say(f"{FAILED} " + str(error).replace("\n", " | "))
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
