"""A worker as its parent sees it: a process that gets lines, says lines, and ends."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from typing import Final

from featurestore.errors import ServerError
from featurestore.serve.config import ServerConfig

GO: Final = "go"
READY: Final = "ready"
WARM: Final = "warm"
FAILED: Final = "failed"


class WorkerProcess:
    """A worker, started; it loads and warms everything, says so, and serves once it is told to.

    Attributes:
        warm: Whether it has said that it waits for its word.
        ready: Whether it has said that it serves.
        failure: Why it could not, in its own words.
    """

    def __init__(self, config: ServerConfig) -> None:
        """Start the process."""
        command = [sys.executable, "-m", "featurestore.serve.worker"]
        # Never a fork of this process: no lock, thread or environment of its own crosses.
        self._process = subprocess.Popen(  # noqa: S603 -- our own interpreter and module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.warm = self.ready = False
        self.failure = ""
        self._said = b""
        self._say(config.to_json())

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def fileno(self) -> int:
        """Return what becomes readable when the worker speaks or ends."""
        assert self._process.stdout is not None  # noqa: S101 -- asked for above
        return self._process.stdout.fileno()

    def go(self) -> None:
        """Tell it to serve."""
        self._say(GO)

    def listen(self) -> bool:
        """Take in what it says; returns whether it lives. Waits where it says nothing."""
        data = os.read(self.fileno(), 4096)
        *lines, self._said = (self._said + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode(errors="replace").partition(" ")
            self.warm |= word == WARM
            self.ready |= word == READY
            if word == FAILED:
                self.failure = rest.strip()
        return bool(data)

    def await_ready(self, until: float) -> None:
        """Wait until it serves.

        Args:
            until: When to give up, by `time.monotonic`.

        Raises:
            ServerError: it could not start.
        """
        while not self.ready:
            left = until - time.monotonic()
            readable, _, _ = select.select([self], [], [], max(0.0, left))
            if readable and self.listen():
                continue
            silent = "it ended without a word" if readable else "it was not ready in time"
            raise ServerError(
                f"a worker could not start: {self.failure or silent}",
                hint="see the worker's messages on standard error",
            )

    def terminate(self) -> None:
        """Ask it to drain and end."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def reap(self, within_s: float) -> None:
        """Wait for its end, then make sure of it."""
        try:
            self._process.wait(max(0.0, within_s))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101 -- asked for above
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode() + b"\n")
