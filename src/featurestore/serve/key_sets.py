"""Where the public keys of a token issuer come from: a file, or a URL that is asked now and then.

A JSON web key set (RFC 7517) as text, with a number that grows when it changes; reading it is the verifier's.
"""

import logging
import os
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from featurestore.errors import DefinitionError, ServerError

_MAX_BYTES: Final = 1 << 20
_TIMEOUT_S: Final = 5.0
_AGAIN_S: Final = 5.0
_log = logging.getLogger("featurestore.serve")


@dataclass(frozen=True, slots=True)
class KeyText:
    """A key set as text, and how many times it has changed."""

    text: str
    changes: int


class KeySource(Protocol):
    """Where a key set comes from."""

    def current(self) -> KeyText:
        """Return the newest key set known; never waits."""
        ...

    def look_again(self) -> None:
        """Say that a key was not found: the issuer may have a new one."""
        ...


class KeyFile:
    """A key set in a file, read again when the file changes.

    Cost: one `stat` a call.
    """

    def __init__(self, path: str) -> None:
        """Read the file.

        Raises:
            ServerError: it cannot be read.
        """
        self._path = Path(path)
        try:
            self._seen = self._stamp()
            self._found = KeyText(self._path.read_text(encoding="utf-8"), 0)
        except (OSError, UnicodeDecodeError) as error:
            raise ServerError(f"cannot read the key set {path}: {error}", hint="see jwt=…") from error

    def current(self) -> KeyText:
        """Return the file's text; an unreadable file keeps the old one."""
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                text = self._path.read_text(encoding="utf-8")
                self._seen, self._found = stamp, KeyText(text, self._found.changes + 1)
        except (OSError, UnicodeDecodeError) as error:
            _log.warning("the key set %s cannot be read: %s", self._path, error)
        return self._found

    def look_again(self) -> None:
        """Do nothing: the file is looked at anyway."""

    def _stamp(self) -> tuple[int, int, int]:
        found = self._path.stat()
        return found.st_mtime_ns, found.st_size, found.st_ino


class KeyUrl:
    """A key set at a URL, asked every `refresh_s` seconds while tokens come, by a thread of its own.

    An issuer that cannot be reached keeps its old keys. A key that is not known makes it ask again, at most
    every five seconds, so that strangers cannot make it ask at will; the call itself is refused meanwhile.
    """

    def __init__(
        self,
        url: str,
        *,
        refresh_s: float,
        fetch: Callable[[str], str] | None = None,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask once; an issuer that is down has no keys yet, and is asked again."""
        self._url = url
        self._refresh_s = refresh_s
        self._fetch = fetch or fetch_text
        self._timer = timer
        self._lock = threading.Lock()
        self._asking = False
        self._found = KeyText("", 0)
        self._due = 0.0
        self._again = 0.0
        self._ask()

    def current(self) -> KeyText:
        """Return the newest key set known."""
        if self._timer() >= self._due:
            self._begin()
        return self._found

    def look_again(self) -> None:
        """Ask the issuer now, unless that was done a moment ago."""
        if self._timer() >= self._again:
            self._begin()

    def _begin(self) -> None:
        with self._lock:
            if self._asking:
                return
            self._asking = True
        threading.Thread(target=self._ask, name="key-set", daemon=True).start()

    def _ask(self) -> None:
        try:
            text = self._fetch(self._url)
        except (OSError, ValueError) as error:
            _log.warning("the key set at %s cannot be had: %s", self._url, error)
        else:
            if text != self._found.text:
                self._found = KeyText(text, self._found.changes + 1)
        now = self._timer()
        self._again = now + _AGAIN_S
        self._due = now + (self._refresh_s if self._found.text else _AGAIN_S)
        with self._lock:
            self._asking = False


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args: Any, **_named: Any) -> None:
        return None


def fetch_text(url: str) -> str:
    """Return what is at a URL: at most a megabyte of UTF-8, from there and from nowhere else.

    Raises:
        ValueError: it is more, or something else.
        OSError: it cannot be had.
    """
    opener = urllib.request.build_opener(_NoRedirect)
    with opener.open(url, timeout=_TIMEOUT_S) as answer:
        data: bytes = answer.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError("it is over a megabyte")
    return data.decode("utf-8")


def check_location(location: str) -> None:
    """Check that keys come from a file or over TLS.

    Raises:
        DefinitionError: over plain HTTP from another machine, or by another scheme.
    """
    if not is_url(location):
        return
    parts = urlsplit(location)
    loopback = parts.hostname in {"127.0.0.1", "localhost", "::1"}
    if parts.scheme != "https" and not (parts.scheme == "http" and loopback):
        raise DefinitionError(
            f"the key set would come from {parts.scheme}://{parts.hostname}", hint="use https, or a file"
        )


def is_url(location: str) -> bool:
    """Say whether a location is a URL; else it is a file."""
    return "://" in location


def key_source(location: str, *, refresh_s: float) -> KeySource:
    """Open a file or URL.

    Raises:
        ServerError: a file that cannot be read.
    """
    return KeyUrl(location, refresh_s=refresh_s) if is_url(location) else KeyFile(os.fspath(location))
