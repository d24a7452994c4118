"""One worker process: `python -m featurestore.serve.worker`, its configuration on standard input.

It says `ready PORT` on standard output once it serves, and drains on SIGTERM or when its parent is gone.
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
from typing import Final

from featurestore.catalog.catalog import open_catalog
from featurestore.catalog.snapshot import CatalogSnapshot
from featurestore.core.clock import Clock, ManualClock, SystemClock
from featurestore.errors import FeatureStoreError
from featurestore.serve.access import Access
from featurestore.serve.answer_log import AnswerLog
from featurestore.serve.backend import OnlineBackend, open_backend
from featurestore.serve.config import ServerConfig, config_from_json
from featurestore.serve.grpc_server import GrpcServer
from featurestore.serve.http_server import HttpServer
from featurestore.serve.metrics import Metrics
from featurestore.serve.service import OnlineService

FAILED: Final = 3
_log = logging.getLogger("featurestore.serve")


def open_root(config: ServerConfig) -> OnlineBackend:
    """Open the backend of a feature store's folder.

    Raises:
        OnlineStoreError: the online store cannot be opened.
    """
    catalog = open_catalog(config.root)

    def newest() -> CatalogSnapshot:
        return catalog.snapshot()

    online = config.online or f"{config.root.rstrip('/')}/online"
    return open_backend(newest, online, clock=clock_of(config), history_ns=config.history_ns)


def clock_of(config: ServerConfig) -> Clock:
    """Return the wall clock, or the fixed one of a replay."""
    return SystemClock() if config.now_ns is None else ManualClock(config.now_ns)


def opener_of(config: ServerConfig) -> Callable[[ServerConfig], OnlineBackend]:
    """Return the function that the configuration names."""
    module, _, name = config.opener.partition(":")
    found: Callable[[ServerConfig], OnlineBackend] = getattr(importlib.import_module(module), name)
    return found


async def serve_until_told(config: ServerConfig, backend: OnlineBackend) -> None:
    """Serve until SIGTERM, SIGINT or the end of standard input, then drain.

    Raises:
        ServerError: a port is taken.
    """
    backend.warm()
    metrics = Metrics()
    log = None
    if config.answer_log is not None:
        log = AnswerLog(config.answer_log, fraction=config.answer_fraction)
    service = OnlineService(backend, config.limits, metrics, log)
    access = Access(config, SystemClock())
    server = GrpcServer(service, config, access, metrics)
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    threading.Thread(target=_wait_for_parent, args=(loop, told), daemon=True).start()
    port = await server.start()
    http = HttpServer(service, config, access, metrics) if config.http_port is not None else None
    http_port = 0 if http is None else await http.start()
    reloading = asyncio.create_task(_reload(backend, config.reload_s))
    sys.stdout.write(f"ready {port} {http_port}\n")
    sys.stdout.flush()
    await told.wait()
    reloading.cancel()
    if http is not None:
        http.draining = True
    await server.drain()
    if http is not None:
        await http.stop()
    if log is not None:
        log.flush()
    backend.close()


def _wait_for_parent(loop: asyncio.AbstractEventLoop, told: asyncio.Event) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(told.set)


async def _reload(backend: OnlineBackend, every_s: float) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(every_s)
        try:
            if await loop.run_in_executor(None, backend.reload):
                _log.info("catalog version %d", backend.snapshot.version)
        except FeatureStoreError as error:
            _log.warning("the catalog could not be read: %s", error.message)


def main() -> int:
    """Serve as standard input says; returns the exit status."""
    config = config_from_json(sys.stdin.readline())
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    backend: OnlineBackend | None = None
    try:
        backend = opener_of(config)(config)
        run = serve_until_told(config, backend)
        try:
            import uvloop  # noqa: PLC0415 -- where it is installed, a sixth less time per call
        except ImportError:
            asyncio.run(run)
        else:
            uvloop.run(run)
    except FeatureStoreError as error:
        sys.stdout.write("failed " + str(error).replace("\n", " | ") + "\n")
        sys.stdout.flush()
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
