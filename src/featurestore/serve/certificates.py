"""Certificate files that are read again when they change."""

from pathlib import Path

from featurestore.errors import ServerError
from featurestore.serve.config import Tls

Pem = tuple[bytes, bytes, bytes | None]


class Certificates:
    """Key, certificate and client authority of a server."""

    def __init__(self, tls: Tls) -> None:
        """Remember where the files are."""
        self._tls = tls
        self._seen: tuple[int, ...] = ()

    def read(self) -> Pem:
        """Return key, certificate and client authority.

        Raises:
            ServerError: a file cannot be read.
        """
        try:
            self._seen = self._changes()
            authority = self._tls.client_ca
            return (
                Path(self._tls.key).read_bytes(),
                Path(self._tls.certificate).read_bytes(),
                None if authority is None else Path(authority).read_bytes(),
            )
        except OSError as error:
            raise ServerError(f"cannot read a certificate: {error}", hint="see tls=…") from error

    def changed(self) -> Pem | None:
        """Return the files if they are newer than those last read; an unreadable file keeps the old ones."""
        try:
            return self.read() if self._changes() != self._seen else None
        except (ServerError, OSError):
            return None

    def _changes(self) -> tuple[int, ...]:
        files = [self._tls.key, self._tls.certificate, self._tls.client_ca]
        return tuple(Path(f).stat().st_mtime_ns for f in files if f is not None)
