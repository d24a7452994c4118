"""`serve`: worker processes that share one port, watched over by this one."""

import importlib.util
import logging
import select
import socket
import tempfile
import threading
import time
from dataclasses import replace
from types import TracebackType
from typing import Any, Final

from featurestore.core.time import Instant, instant_ns
from featurestore.errors import DefinitionError, MissingDependencyError, ServerError
from featurestore.serve.config import Limits, ServerConfig, Tls, Token, check_config, split_address
from featurestore.serve.worker_process import WorkerProcess

_log = logging.getLogger("featurestore.serve")
_START_S: Final = 300.0  # the first time on a machine all kernels are compiled
_WATCH_S: Final = 0.25
_QUIET_S: Final = 1.0


class ServerHandle:
    """A running server; a context manager that stops it.

    Attributes:
        address: `host:port` of the gRPC front.
        http_address: `host:port` of the HTTP front, or `None`.
    """

    def __init__(self, config: ServerConfig) -> None:
        """Start the workers and wait until they serve.

        Raises:
            ServerError: a port is taken, or a worker could not start.
        """
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._sockets = [_reserved(config.host, config.port)]
        config = replace(config, port=self._sockets[0].getsockname()[1])
        if config.http_port is not None:
            try:
                self._sockets.append(_reserved(config.host, config.http_port))
            except ServerError:
                self._sockets[0].close()
                raise
            config = replace(config, http_port=self._sockets[1].getsockname()[1])
        self._counts = None
        if config.metrics_folder is None:
            self._counts = tempfile.TemporaryDirectory(prefix="featurestore-counts-")
            config = replace(config, metrics_folder=self._counts.name)
        self.config = config
        self._workers: list[WorkerProcess] = []
        self._spare: WorkerProcess | None = None
        try:
            self._workers = [WorkerProcess(config) for _ in range(config.workers)]
            until = time.monotonic() + _START_S
            for worker in self._workers:
                worker.go()
            for worker in self._workers:
                worker.await_ready(until)
        except ServerError:
            self.stop(grace_s=0)
            raise
        self._watch = threading.Thread(target=self._keep_alive, daemon=True, name="serve-watch")
        self._watch.start()

    @property
    def address(self) -> str:
        """Where the gRPC front listens."""
        return _joined(self.config.host, self.config.port)

    @property
    def http_address(self) -> str | None:
        """Where the HTTP front listens."""
        port = self.config.http_port
        return None if port is None else _joined(self.config.host, port)

    @property
    def pids(self) -> list[int]:
        """The workers' process ids."""
        with self._lock:
            return [worker.pid for worker in self._workers]

    @property
    def spare_pid(self) -> int | None:
        """The process id of the worker that waits to take another's place, once it is ready to."""
        with self._lock:
            spare = self._spare
            return spare.pid if spare is not None and spare.warm else None

    def wait(self) -> None:
        """Return when the server is stopped, from another thread or by a signal's exception."""
        while not self._stopping.wait(1.0):
            pass

    def stop(self, grace_s: float | None = None) -> None:
        """Drain and stop; calls under way get the configured time. Stopping twice is fine."""
        self._stopping.set()
        with self._lock:
            workers, self._workers = self._workers, []
            spare, self._spare = self._spare, None
        for worker in workers:
            worker.terminate()
        limit = self.config.drain_s + self.config.linger_s + 5 if grace_s is None else grace_s
        until = time.monotonic() + limit
        if spare is not None:
            spare.reap(0)
        for worker in workers:
            worker.reap(until - time.monotonic())
        for reserved in self._sockets:
            reserved.close()
        if self._counts is not None:
            self._counts.cleanup()

    def __enter__(self) -> "ServerHandle":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _keep_alive(self) -> None:
        """Replace workers that end, at once where a spare one waits."""
        quiet_until = time.monotonic() + _QUIET_S
        while not self._stopping.is_set():
            with self._lock:
                watched = [*self._workers, *filter(None, [self._spare])]
            try:
                readable, _, _ = select.select(watched, [], [], _WATCH_S)
            except (OSError, ValueError):  # a stop has just closed the pipes
                self._stopping.wait(_WATCH_S)
                continue
            with self._lock:
                if self._stopping.is_set():
                    return
                for worker in readable:
                    if not worker.listen():
                        self._replace(worker)
                # Not at once: a server that lives for a moment needs none.
                if self.config.spare and self._spare is None and time.monotonic() > quiet_until:
                    self._spare = WorkerProcess(self.config)

    def _replace(self, dead: WorkerProcess) -> None:
        dead.reap(_WATCH_S)
        _log.warning("worker %d ended%s", dead.pid, f": {dead.failure}" if dead.failure else "")
        if dead is self._spare:
            self._spare = None
            return
        at = self._workers.index(dead)
        # A spare that is still loading is ahead of one that would have to begin.
        heir, self._spare = self._spare or WorkerProcess(self.config), None
        heir.go()
        self._workers[at] = heir


def serve(
    root: str,
    *,
    address: str = "127.0.0.1:0",
    http_address: str | None = None,
    online: str | None = None,
    workers: int = 1,
    now: Instant | None = None,
    history_ns: int | None = None,
    limits: Limits | None = None,
    tls: Tls | None = None,
    tokens: tuple[Token, ...] = (),
    **options: Any,
) -> ServerHandle:
    """Serve a feature store over gRPC, and over HTTP where asked, from processes of its own.

    Args:
        root: The store's folder.
        address: Where to listen; port 0 takes a free one, which the handle tells.
        http_address: Where the HTTP JSON front listens; Feast's clients look for port 6566.
        online: The online store; by default the folder `online` in the root.
        workers: Processes that share the port.
        now: A fixed clock, for replays.
        tokens: Who may call; without any, and without `jwt=…`, everyone who reaches the port.
        options: Other fields of `ServerConfig`.

    Raises:
        ServerError: the port is taken, or a worker could not start.
        DefinitionError: a configuration that would not be safe.
        MissingDependencyError: the `serve` extra is not installed.
    """
    modules = ["grpc", "grpc_health", "grpc_reflection", "google.protobuf"]
    modules += ["jwt"] if options.get("jwt") else []
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MissingDependencyError(
                f"the server needs {module}", hint="pip install 'featurestore[serve]'", module=module
            )
    host, port = split_address(address)
    http_port = None if http_address is None else split_address(http_address)[1]
    try:
        config = ServerConfig(
            root=str(root),
            online=online,
            host=host,
            port=port,
            http_port=http_port,
            workers=workers,
            now_ns=None if now is None else instant_ns(now, what="now"),
            history_ns=history_ns,
            limits=limits or Limits(),
            tls=tls,
            tokens=tokens,
            **options,
        )
    except TypeError as error:
        raise DefinitionError(f"serve: {error}", hint="see ServerConfig for the options") from error
    if config.traces and importlib.util.find_spec("opentelemetry") is None:
        raise MissingDependencyError("tracing needs opentelemetry", hint="pip install 'featurestore[otel]'")
    return ServerHandle(check_config(config))


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reserved(host: str, port: int) -> socket.socket:
    """Hold a port that no one else uses, so that workers can share it and find it again when they restart.

    Raises:
        ServerError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if port:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        held = socket.socket(family, socket.SOCK_STREAM)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((host, port))
    except OSError as error:
        raise ServerError(
            f"cannot listen on {_joined(host, port)}: {error.strerror or error}",
            hint="another process has the port; stop it, or take port 0 for a free one",
            address=_joined(host, port),
        ) from error
    return held
