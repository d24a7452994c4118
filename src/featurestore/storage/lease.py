"""A lease: one writer at a time where no kernel can free a lock, by numbered objects and the store's clock.

The newest number is the lease. It is held as long as its holder puts it again in time; ages are differences
of times that the store itself gave, so no two machines' clocks are compared. A lease saves work and is no
proof: a holder that was stopped for longer than its term may wake up behind its successor. What makes that
harmless is the commit, which is put if absent on top of the version that the writer had read.
"""

import threading
import time
import uuid
from types import TracebackType
from typing import Final, Self

from featurestore.core.canonical import canonical_json
from featurestore.errors import AlreadyExistsError, CommitConflictError, NotFoundError, StorageError
from featurestore.storage.objects import ObjectPath

_STEP_S: Final = 0.25
_RELEASED: Final = canonical_json({"released": True}).encode()


class Lease:
    """The right to write below a name; a context manager.

    Attributes:
        folder: The name under which the lease's objects lie.
        term_s: Without a sign of life for so long, it passes to whoever asks.
    """

    def __init__(self, folder: ObjectPath, title: str, *, term_s: float, wait_s: float) -> None:
        self.folder = folder
        self.term_s = term_s
        self._title = title
        self._wait_s = wait_s
        self._owner = canonical_json({"owner": uuid.uuid4().hex}).encode()
        self._number = 0
        self._lost = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Take the lease.

        Raises:
            CommitConflictError: another process kept it all the while.
        """
        deadline = time.monotonic() + self._wait_s
        while not self._take():
            if time.monotonic() > deadline:
                raise CommitConflictError(
                    f"another process is writing {self._title!r}",
                    hint="wait for it, or run the same command again later",
                    name=self._title,
                )
            time.sleep(min(_STEP_S, self.term_s / 4))
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lease back; where the store does not answer, it expires."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if not self._lost:
            try:
                self._object(self._number).put(_RELEASED)
            except StorageError:
                return

    def check(self) -> None:
        """Make sure that the lease is still held; one that ran out and that nobody took is renewed.

        Raises:
            CommitConflictError: it passed to another process.
        """
        if self._lost or self._newest()[0] != self._number:
            self._lost = True
            raise CommitConflictError(
                f"the right to write {self._title!r} was lost: it was not renewed for {self.term_s:g} s, "
                "and passed to another process",
                hint="run the same command again; nothing was published",
                name=self._title,
            )
        self._object(self._number).put(self._owner)

    def _take(self) -> bool:
        newest, age_s = self._newest()
        if newest:
            try:
                free = self._object(newest).read_bytes() == _RELEASED
            except NotFoundError:
                return False
            if not free and age_s <= self.term_s:
                return False
        try:
            self._object(newest + 1).put_if_absent(self._owner)
        except AlreadyExistsError:
            return False
        self._number = newest + 1
        for path in self.folder.iterdir():
            if _number_of(path) < self._number:
                path.remove()
        return True

    def _newest(self) -> tuple[int, float]:
        """Return the newest number, and how long ago it was put, by the store's clock; 0 without any."""
        there = self.folder.objects()
        if not there:
            return 0, 0.0
        newest = max(there, key=_number_of)
        if _number_of(newest) in {0, self._number}:
            return _number_of(newest), 0.0
        age_ns = self.folder.store.now_ns() - there[newest].modified_ns
        return _number_of(newest), age_ns / 1e9

    def _keep(self) -> None:
        while not self._stop.wait(self.term_s / 3):
            try:
                if self._newest()[0] != self._number:
                    self._lost = True
                    return
                self._object(self._number).put(self._owner)
            except StorageError:
                continue  # the next one may come in time; `check` looks before the commit

    def _object(self, number: int) -> ObjectPath:
        return self.folder / f"{number:020d}.json"


def _number_of(path: ObjectPath) -> int:
    digits = path.name.removesuffix(".json")
    return int(digits) if digits.isdigit() else 0
