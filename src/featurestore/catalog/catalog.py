"""Catalog: what exists, at every version since the first apply."""

import threading
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from featurestore.catalog.binding import SchemaReader
from featurestore.catalog.collect import collect
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
from featurestore.catalog.definition import Definition
from featurestore.catalog.lineage import Lineage, trace
from featurestore.catalog.plan import Change, Plan, compare
from featurestore.catalog.planner import make_plan, rollback_plan
from featurestore.catalog.refs import parse_ref
from featurestore.catalog.snapshot import AnyRef, CatalogSnapshot, Key
from featurestore.catalog.source import Source
from featurestore.catalog.specs import KINDS
from featurestore.catalog.store import CatalogStore, open_catalog_store
from featurestore.core.arguments import whole
from featurestore.core.clock import Clock, SystemClock
from featurestore.core.time import Instant, format_instant, instant_ns
from featurestore.errors import (
    CommitConflictError,
    CorruptDataError,
    DefinitionError,
    NotFoundError,
    StorageError,
)

__all__ = ["Catalog", "Commit", "Plan", "open_catalog"]

_SNAPSHOT_EVERY: Final = 32
_REMOTE_REFRESH_NS: Final = 1_000_000_000
_KEPT_SNAPSHOTS: Final = 64


@dataclass(frozen=True, slots=True)
class _Head:
    snapshot: CatalogSnapshot
    digest: str


class Catalog:
    """The versions of all definitions, in one folder of immutable commit files.

    Reading never blocks and never waits for a writer: it decodes commits it has not seen yet and keeps the
    result. Any number of processes may apply at once: for each version one wins. Safe for threads.

    Cost: opening decodes the newest snapshot and at most a few dozen commits behind it; `get` of something
    read before takes microseconds.
    """

    def __init__(
        self,
        store: CatalogStore,
        *,
        read_schema: SchemaReader | None = None,
        clock: Clock | None = None,
        author: str = "",
    ) -> None:
        self._store = store
        self._read_schema = read_schema or _no_reader
        self._clock = clock or SystemClock()
        self._author = author
        self._lock = threading.Lock()
        self._head: _Head | None = None
        self._saved = 0
        self._checked_ns = 0
        self._commits: dict[int, Commit] = {0: NO_COMMIT}
        self._snapshots: dict[int, CatalogSnapshot] = {0: CatalogSnapshot()}

    def __repr__(self) -> str:
        read = "" if self._head is None else f", version {self._head.snapshot.version}"
        return f"Catalog({self._store!r}{read})"

    # -- reading ---------------------------------------------------------------------------------------

    @property
    def head(self) -> int:
        """The newest catalog version; 0 before the first apply. Always looks."""
        return self._refresh(look=True).snapshot.version

    def snapshot(self) -> CatalogSnapshot:
        """Return the newest snapshot (on a remote store at most a second old)."""
        return self._refresh(look=False).snapshot

    def at(self, version: int | Instant) -> CatalogSnapshot:
        """Return the snapshot of a catalog version (an integer) or of a time (a text or datetime).

        Raises:
            NotFoundError: no such version, or a time before the first.
        """
        head = self._refresh(look=True).snapshot
        if isinstance(version, int) and not isinstance(version, bool):
            return self._at_version(version, head)
        wanted = instant_ns(version)
        found = 0
        for commit in self.history():
            if commit.time_ns <= wanted:
                found = commit.version
                break
        if not found:
            raise NotFoundError(
                f"the catalog has no version at {format_instant(wanted)}",
                hint=f"its first is of {format_instant(self._commit(1).time_ns)}"
                if head.version
                else "nothing was applied yet",
            )
        return self._at_version(found, head)

    def _at_version(self, version: int, head: CatalogSnapshot) -> CatalogSnapshot:
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
            snapshot = apply_commit(snapshot, self._commit(number))
        self._keep(snapshot)
        return snapshot

    def _keep(self, snapshot: CatalogSnapshot) -> None:
        with self._lock:
            self._snapshots[snapshot.version] = snapshot
            while len(self._snapshots) > _KEPT_SNAPSHOTS:
                self._snapshots.pop(next(v for v in self._snapshots if v))

    def get(self, ref: AnyRef, *kinds: str) -> Definition:
        """Return a definition, the version in force unless the reference gives one, such as `quote@1`.

        Raises:
            NotFoundError: no such definition or version.
        """
        return self.snapshot().get(ref, *kinds)

    def history(self) -> list[Commit]:
        """Return all commits, newest first."""
        head = self._refresh(look=True).snapshot.version
        return [self._commit(version) for version in range(head, 0, -1)]

    def diff(self, a: int | Instant, b: int | Instant) -> list[Change]:
        """Return what changed from catalog version (or time) `a` to `b`, by kind and name."""
        old, new = self.at(a), self.at(b)
        changes: list[Change] = []
        for key in sorted({*old.heads, *new.heads}, key=_reading_order):
            before = old.records[(*key, old.heads[key])] if key in old.heads else None
            after = new.records[(*key, new.heads[key])] if key in new.heads else None
            if before != after:
                changes.append(compare(before, after, _action(before is None, after is None)))
        return changes

    def lineage(self, ref: AnyRef, *kinds: str) -> Lineage:
        """Return what a definition, or one feature (`quote:mid`), is made from, and what is made from it.

        Raises:
            NotFoundError: no such definition or feature.
        """
        return trace(self.snapshot(), ref, *kinds)

    # -- writing ---------------------------------------------------------------------------------------

    def plan(
        self,
        objects: Iterable[Definition] | Definition,
        *,
        complete: bool = False,
        remove: Iterable[AnyRef] = (),
    ) -> Plan:
        """Return what applying these definitions would do; reads sources' schemas, writes nothing.

        Args:
            objects: Definitions; what they hold as objects comes along.
            complete: Whether what is not given is to be removed; otherwise it stays.
            remove: Definitions to remove, by reference or as `kind/name`.

        Raises:
            DefinitionError: a definition is wrong (a LeakageError where it could look ahead).
            NotFoundError: a reference leads nowhere.
            SchemaError: a column is missing, of a wrong type, or drifted.
        """
        base = self._refresh(look=True).snapshot
        given = collect(objects)
        removed = {_key_of(base, ref) for ref in remove}
        both = removed & set(given)
        if both:
            raise DefinitionError(
                f"{'/'.join(min(both))} is both given and removed", hint="leave one of the two out"
            )
        if complete:
            removed |= set(base.heads) - set(given)
        return make_plan(base, given, removed, self._read_schema)

    def apply(
        self,
        objects: Iterable[Definition] | Definition | Plan,
        *,
        expected_head: int | None = None,
        message: str = "",
        author: str = "",
        complete: bool = False,
        remove: Iterable[AnyRef] = (),
    ) -> Commit:
        """Commit definitions, or a plan, as the next catalog version; the newest commit if nothing changes.

        Raises:
            CommitConflictError: someone else committed since the plan (or since `expected_head`); the message
                says what. Nothing was written; plan again.
            StorageError: the store refused.
        """
        plan = objects if isinstance(objects, Plan) else self.plan(objects, complete=complete, remove=remove)
        head = self._refresh(look=True)
        wanted = (
            plan.base if expected_head is None else whole("apply", "expected_head", expected_head, least=0)
        )
        if {wanted, plan.base} != {head.snapshot.version}:
            error = self._conflict(min(wanted, plan.base), head.snapshot)
            raise error
        if plan.is_empty:
            return self._commit(head.snapshot.version)
        return self._commit_entries(head, plan.entries, message=message, author=author)

    def rollback(self, version: int | Instant, *, message: str = "", author: str = "") -> Commit:
        """Bring back what was in force at an older version, as a new commit; the newest if that is now.

        Nothing is forgotten: what was in force in between stays readable by its version.

        Raises:
            NotFoundError: no such version.
            CommitConflictError: someone else committed meanwhile.
        """
        target = self.at(version)
        head = self._refresh(look=True)
        plan = rollback_plan(head.snapshot, target)
        if plan.is_empty:
            return self._commit(head.snapshot.version)
        said = message or f"rollback to version {target.version}"
        return self._commit_entries(head, plan.entries, message=said, author=author)

    def _commit_entries(self, head: _Head, entries: Iterable[Entry], *, message: str, author: str) -> Commit:
        commit = make_commit(
            head.snapshot,
            head.digest,
            tuple(entries),
            time_ns=self._clock.now_ns(),
            author=author or self._author,
            message=message,
            nonce=uuid.uuid4().hex,
        )
        if not self._put(commit):
            now = self._refresh(look=True).snapshot
            error = self._conflict(head.snapshot.version, now)
            raise error
        snapshot = apply_commit(head.snapshot, commit)
        self._advance(_Head(snapshot, commit.digest), commit)
        self._save_snapshot(snapshot, commit.digest)
        with suppress(StorageError):  # the commit is made; the mark tells if it is lost later
            self._store.put_if_absent(mark_name(commit.version), b"")
            self._store.remove(mark_name(commit.version - 1))
        return commit

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

    def _conflict(self, since: int, head: CatalogSnapshot) -> CommitConflictError:
        newer = [self._commit(v) for v in range(since + 1, head.version + 1)]
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

    def _save_snapshot(self, snapshot: CatalogSnapshot, digest: str) -> None:
        if snapshot.version - self._saved < _SNAPSHOT_EVERY:
            return
        with suppress(StorageError):  # the commit is made; a snapshot only makes loading faster
            self._store.put_if_absent(snapshot_name(snapshot.version), encode_snapshot(snapshot, digest))
            self._saved = snapshot.version

    # -- loading ---------------------------------------------------------------------------------------

    def _refresh(self, *, look: bool) -> _Head:
        head = self._head
        if head is None:
            head = self._load()
        elif not look and self._store.remote:
            now = self._clock.now_ns()
            if 0 <= now - self._checked_ns < _REMOTE_REFRESH_NS:
                return head
            self._checked_ns = now
        while self._store.has(commit_name(head.snapshot.version + 1)):
            commit = self._commit(head.snapshot.version + 1)
            self._check_chain(head, commit)
            head = _Head(apply_commit(head.snapshot, commit), commit.digest)
        self._advance(head, None)
        return head

    def _advance(self, head: _Head, commit: Commit | None) -> None:
        with self._lock:
            if commit is not None:
                self._commits[commit.version] = commit
            if self._head is None or self._head.snapshot.version < head.snapshot.version:
                self._head = head

    def _load(self) -> _Head:
        """Read the newest snapshot and the commits behind it.

        Raises:
            CorruptDataError: a commit is missing, also the newest.
        """
        names = self._store.names()
        found = [v for name in names if (v := version_of_name(name)) is not None]
        saved = sorted((number for number, whole in found if whole), reverse=True)
        head = _Head(CatalogSnapshot(), "")
        for number in saved:
            data = self._store.read(snapshot_name(number))
            if data is not None:
                snapshot, digest = decode_snapshot(data, number)
                head = _Head(snapshot, digest)
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
            commit = self._commit(number)
            self._check_chain(head, commit)
            head = _Head(apply_commit(head.snapshot, commit), commit.digest)
        return head

    def _commit(self, version: int) -> Commit:
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

    def _check_chain(self, head: _Head, commit: Commit) -> None:
        if commit.parent_digest != head.digest:
            raise CorruptDataError(
                f"commit {commit.version} of the catalog does not follow commit {head.snapshot.version}",
                hint="a commit was replaced; restore the folder from a backup",
            )


def open_catalog(
    root: str | Path,
    storage_options: Mapping[str, Any] | None = None,
    clock: Clock | None = None,
    *,
    read_schema: SchemaReader | None = None,
    author: str = "",
) -> Catalog:
    """Open the catalog of a feature store's root folder or URL; the first apply creates an empty one."""
    store = open_catalog_store(f"{str(root).rstrip('/')}/catalog", storage_options)
    return Catalog(store, read_schema=read_schema, clock=clock, author=author)


def _no_reader(source: Source) -> Any:
    raise DefinitionError(
        f"this catalog was opened without a way to read the columns of source {source.name!r}",
        hint="plan and apply through a FeatureStore",
    )


def _key_of(base: CatalogSnapshot, ref: AnyRef) -> Key:
    text = str(ref)
    kind, _, name = text.rpartition("/")
    return base.record(parse_ref(name), *([kind] if kind else [])).key


def _reading_order(key: Key) -> tuple[int, str]:
    return KINDS.index(key[0]), key[1]


def _action(new: bool, gone: bool) -> str:
    return "add" if new else "remove" if gone else "change"
