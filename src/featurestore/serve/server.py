"""`serve`: worker processes that share one port, watched over by this one."""

import contextlib
import importlib.util
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import TracebackType
from typing import Any, Final

from featurestore.core.time import Instant, instant_ns
from featurestore.errors import DefinitionError, MissingDependencyError, ServerError
from featurestore.serve.config import Limits, ServerConfig, Tls, Token, check_config, split_address

_START_S: Final = 60.0
_WATCH_S: Final = 0.1


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
        self.config = config
        self._workers: list[subprocess.Popen[str]] = []
        try:
            self._workers = [_start(config) for _ in range(config.workers)]
            for worker in self._workers:
                _await_ready(worker)
        except ServerError:
            self.stop(grace_s=0)
            raise
        self._watch = threading.Thread(target=self._restart_the_dead, daemon=True, name="serve-watch")
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

    def wait(self) -> None:
        """Return when the server is stopped, from another thread or by a signal's exception."""
        while not self._stopping.wait(1.0):
            pass

    def stop(self, grace_s: float | None = None) -> None:
        """Drain and stop; calls under way get the configured time. Stopping twice is fine."""
        self._stopping.set()
        with self._lock:
            workers, self._workers = self._workers, []
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                worker.send_signal(signal.SIGTERM)
        limit = self.config.drain_s + self.config.linger_s + 5 if grace_s is None else grace_s
        until = time.monotonic() + limit
        for worker in workers:
            try:
                worker.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            _close_pipes(worker)
        for reserved in self._sockets:
            reserved.close()

    def __enter__(self) -> "ServerHandle":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _restart_the_dead(self) -> None:
        while not self._stopping.wait(_WATCH_S):
            with self._lock:
                dead = [at for at, worker in enumerate(self._workers) if worker.poll() is not None]
                for at in dead:
                    _close_pipes(self._workers[at])
                    self._workers[at] = _start(self.config)


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
    for module in ("grpc", "grpc_health", "grpc_reflection", "google.protobuf"):
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


def _start(config: ServerConfig) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "featurestore.serve.worker"]
    # Never a fork of this process: no lock, thread or environment of its own crosses.
    worker = subprocess.Popen(  # noqa: S603 -- our own interpreter and module
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdin is not None  # noqa: S101 -- asked for above
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.write(config.to_json() + "\n")
        worker.stdin.flush()
    return worker


def _await_ready(worker: "subprocess.Popen[str]") -> None:
    out = worker.stdout
    assert out is not None  # noqa: S101 -- asked for in _start
    readable, _, _ = select.select([out], [], [], _START_S)
    line = out.readline() if readable else ""
    if not line.startswith("ready"):
        why = line.removeprefix("failed ").strip() or "it ended without a word; see its standard error"
        raise ServerError(f"a worker could not start: {why}", hint="see the worker's messages above")


def _close_pipes(worker: "subprocess.Popen[str]") -> None:
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
