"""CommitLog: the chain of commit files behind a catalog: each is read once, new ones are put if absent."""

import threading
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from featurestore.catalog.commit import (
    NO_COMMIT,
    Commit,
    Entry,
    apply_commit,
    commit_name,
    decode_commit,
    decode_snapshot,
    encode_commit,
    encode_snapshot,
    make_commit,
    mark_name,
    marked_version,
    snapshot_name,
    version_of_name,
)
from featurestore.catalog.snapshot import CatalogSnapshot
from featurestore.catalog.store import CatalogStore
from featurestore.core.clock import Clock
from featurestore.errors import CommitConflictError, CorruptDataError, NotFoundError, StorageError

_SNAPSHOT_EVERY: Final = 32
_REMOTE_REFRESH_NS: Final = 1_000_000_000
_KEPT_SNAPSHOTS: Final = 64


@dataclass(frozen=True, slots=True)
class Head:
    """The newest version, and the digest that the next commit names as its parent's."""

    snapshot: CatalogSnapshot
    digest: str


class CommitLog:
    """Immutable commit files, one per version, and now and then a snapshot that makes loading faster.

    Safe for threads; any number of processes may append at once: for each version one wins.
    """

    def __init__(self, store: CatalogStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._head: Head | None = None
        self._saved = 0
        self._checked_ns = 0
        self._commits: dict[int, Commit] = {0: NO_COMMIT}
        self._snapshots: dict[int, CatalogSnapshot] = {0: CatalogSnapshot()}

    def __repr__(self) -> str:
        read = "" if self._head is None else f", version {self._head.snapshot.version}"
        return f"{self._store!r}{read}"

    def head(self, *, look: bool) -> Head:
        """Return the newest version; without `look` that of a remote store may be a second old."""
        head = self._head
        if head is None:
            head = self._load()
        elif not look and self._store.remote:
            now = self._clock.now_ns()
            if 0 <= now - self._checked_ns < _REMOTE_REFRESH_NS:
                return head
            self._checked_ns = now
        while self._store.has(commit_name(head.snapshot.version + 1)):
            commit = self.commit(head.snapshot.version + 1)
            self._check_chain(head, commit)
            head = Head(apply_commit(head.snapshot, commit), commit.digest)
        self._advance(head, None)
        return head

    def at(self, version: int) -> CatalogSnapshot:
        """Return the snapshot of a version.

        Raises:
            NotFoundError: no such version.
        """
        head = self.head(look=True).snapshot
        if version == head.version:
            return head
        if not 0 <= version <= head.version:
            raise NotFoundError(
                f"the catalog has no version {version}", hint=f"there is 0 (empty) to {head.version}"
            )
        with self._lock:
            known = max(v for v in self._snapshots if v <= version)
            snapshot = self._snapshots[known]
        for number in range(known + 1, version + 1):
            snapshot = apply_commit(snapshot, self.commit(number))
        self._keep(snapshot)
        return snapshot

    def commit(self, version: int) -> Commit:
        """Return the commit of a version, up to the newest.

        Raises:
            CorruptDataError: it is missing or damaged.
        """
        known = self._commits.get(version)
        if known is None:
            data = self._store.read(commit_name(version))
            if data is None:
                raise CorruptDataError(
                    f"commit {version} of the catalog is missing", hint="restore it from a backup"
                )
            known = decode_commit(data, version)
            self._commits[version] = known
        return known

    def append(self, head: Head, entries: Iterable[Entry], *, message: str, author: str) -> Commit:
        """Commit entries as the version after `head`.

        Raises:
            CommitConflictError: someone else committed since.
            StorageError: the store refused, and the commit is not there.
        """
        commit = make_commit(
            head.snapshot,
            head.digest,
            tuple(entries),
            time_ns=self._clock.now_ns(),
            author=author,
            message=message,
            nonce=uuid.uuid4().hex,
        )
        if not self._put(commit):
            error = self.conflict(head.snapshot.version)
            raise error
        snapshot = apply_commit(head.snapshot, commit)
        self._advance(Head(snapshot, commit.digest), commit)
        self._save_snapshot(snapshot, commit.digest)
        with suppress(StorageError):  # the commit is made; the mark tells if it is lost later
            self._store.put_if_absent(mark_name(commit.version), b"")
            self._store.remove(mark_name(commit.version - 1))
        return commit

    def conflict(self, since: int) -> CommitConflictError:
        """Return an error that says what was committed after a version."""
        head = self.head(look=True).snapshot
        newer = [self.commit(v) for v in range(since + 1, head.version + 1)]
        lines = [
            f"version {c.version} by {c.author or 'someone'}: {', '.join(c.changed[:8])}"
            + (f" and {len(c.changed) - 8} more" if len(c.changed) > 8 else "")
            for c in newer
        ]
        what = "\n    ".join(lines) or f"its head is {head.version}"
        return CommitConflictError(
            f"the catalog moved from version {since} to {head.version} meanwhile:\n    {what}",
            hint="plan again on the new head, look at the plan, and apply it",
            since=since,
            head=head.version,
        )

    def _put(self, commit: Commit) -> bool:
        """Write a commit; an ambiguous failure is settled by looking at what is there.

        Raises:
            StorageError: the store refused, and the commit is not there.
        """
        name, data = commit_name(commit.version), encode_commit(commit)
        try:
            return self._store.put_if_absent(name, data) or self._store.read(name) == data
        except StorageError:
            if self._store.read(name) != data:
                raise
            self._store.put_if_absent(name, data)  # it is there; this makes sure that it stays
            return True

    def _save_snapshot(self, snapshot: CatalogSnapshot, digest: str) -> None:
        if snapshot.version - self._saved < _SNAPSHOT_EVERY:
            return
        with suppress(StorageError):  # the commit is made; a snapshot only makes loading faster
            self._store.put_if_absent(snapshot_name(snapshot.version), encode_snapshot(snapshot, digest))
            self._saved = snapshot.version

    def _advance(self, head: Head, commit: Commit | None) -> None:
        with self._lock:
            if commit is not None:
                self._commits[commit.version] = commit
            if self._head is None or self._head.snapshot.version < head.snapshot.version:
                self._head = head

    def _keep(self, snapshot: CatalogSnapshot) -> None:
        with self._lock:
            self._snapshots[snapshot.version] = snapshot
            while len(self._snapshots) > _KEPT_SNAPSHOTS:
                self._snapshots.pop(next(v for v in self._snapshots if v))

    def _load(self) -> Head:
        """Read the newest snapshot and the commits behind it.

        Raises:
            CorruptDataError: a commit is missing, also the newest.
        """
        names = self._store.names()
        found = [v for name in names if (v := version_of_name(name)) is not None]
        saved = sorted((number for number, whole in found if whole), reverse=True)
        head = Head(CatalogSnapshot(), "")
        for number in saved:
            data = self._store.read(snapshot_name(number))
            if data is not None:
                snapshot, digest = decode_snapshot(data, number)
                head = Head(snapshot, digest)
                self._saved = number
                self._keep(snapshot)
                break
        last = max((number for number, whole in found if not whole), default=0)
        made = max((marked_version(name) for name in names), default=0)
        if made > last:
            raise CorruptDataError(
                f"commit {made} of the catalog is missing: it was made, and the newest there is {last}",
                hint=f"restore it from a backup, or remove {mark_name(made)!r} to go on without it",
                version=made,
            )
        for number in range(head.snapshot.version + 1, last + 1):
            commit = self.commit(number)
            self._check_chain(head, commit)
            head = Head(apply_commit(head.snapshot, commit), commit.digest)
        return head

    def _check_chain(self, head: Head, commit: Commit) -> None:
        if commit.parent_digest != head.digest:
            raise CorruptDataError(
                f"commit {commit.version} of the catalog does not follow commit {head.snapshot.version}",
                hint="a commit was replaced; restore the folder from a backup",
            )
