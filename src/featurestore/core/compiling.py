"""A word to the user when kernels are being compiled: the first use on a machine takes seconds."""

import importlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

_log: Final = logging.getLogger("featurestore.compile")
_QUIET_S: Final = 1.0
_NOTICE: Final = (
    "featurestore compiles its kernels; they are kept on disk, so this happens once per machine "
    "(`featurestore doctor --warm` does it in advance)"
)


class _Notice:
    """Adds up the time that our own kernels take to compile; after a second of it the user is told, once."""

    def __init__(self) -> None:
        self.told = False
        self._depth = 0
        self._since = 0.0
        self._spent = 0.0

    def starts(self) -> None:
        now = time.monotonic()
        if self._depth == 0:
            self._since = now
        self._depth += 1
        if not self.told and self._spent + now - self._since > _QUIET_S:
            self.told = True
            _log.warning(_NOTICE)

    def ends(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._spent += time.monotonic() - self._since


_notice: Final = _Notice()


@contextmanager
def announced() -> Iterator[None]:
    """Say nothing inside the block: its caller has told the user that kernels are being compiled."""
    before, _notice.told = _notice.told, True
    try:
        yield
    finally:
        _notice.told = before


@cache
def listen() -> None:
    """Hear numba begin and end each compilation (a kernel read from its cache is none). Imports numba."""
    events: Any = importlib.import_module("numba.core.event")

    class Listener(events.Listener):  # type: ignore[misc]  # numba has no types
        def on_start(self, event: Any) -> None:
            if _is_ours(event):
                _notice.starts()

        def on_end(self, event: Any) -> None:
            if _is_ours(event):
                _notice.ends()

    events.register("numba:compile", Listener())


def _is_ours(event: Any) -> bool:
    # Compilations hold numba's lock, so no two events arrive at once.
    return str(event.data["dispatcher"].py_func.__module__).startswith("featurestore.")
