"""Catalog: what exists, at every version since the first apply."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from featurestore.catalog.binding import SchemaReader
from featurestore.catalog.collect import collect
from featurestore.catalog.commit import Commit
from featurestore.catalog.commit_log import CommitLog
from featurestore.catalog.definition import Definition
from featurestore.catalog.lineage import Lineage, trace
from featurestore.catalog.plan import Change, Plan, compare
from featurestore.catalog.planner import make_plan, rollback_plan
from featurestore.catalog.refs import parse_ref
from featurestore.catalog.snapshot import AnyRef, CatalogSnapshot, Key
from featurestore.catalog.source import Source
from featurestore.catalog.specs import KINDS
from featurestore.catalog.store import CatalogStore, open_catalog_store
from featurestore.core.arguments import listed, whole
from featurestore.core.clock import Clock, SystemClock
from featurestore.core.time import Instant, format_instant, instant_ns
from featurestore.errors import DefinitionError, NotFoundError

__all__ = ["Catalog", "Commit", "Plan", "open_catalog"]


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
        self._log = CommitLog(store, clock or SystemClock())
        self._read_schema = read_schema or _no_reader
        self._author = author

    def __repr__(self) -> str:
        return f"Catalog({self._log!r})"

    # -- reading ---------------------------------------------------------------------------------------

    @property
    def head(self) -> int:
        """The newest catalog version; 0 before the first apply. Always looks."""
        return self._log.head(look=True).snapshot.version

    def snapshot(self) -> CatalogSnapshot:
        """Return the newest snapshot (on a remote store at most a second old)."""
        return self._log.head(look=False).snapshot

    def at(self, version: int | Instant) -> CatalogSnapshot:
        """Return the snapshot of a catalog version (an integer) or of a time (a text or datetime).

        Raises:
            NotFoundError: no such version, or a time before the first.
        """
        if isinstance(version, int) and not isinstance(version, bool):
            return self._log.at(version)
        wanted = instant_ns(version)
        commits = self.history()
        found = next((commit.version for commit in commits if commit.time_ns <= wanted), None)
        if found is None:
            raise NotFoundError(
                f"the catalog has no version at {format_instant(wanted)}",
                hint=f"its first is of {format_instant(commits[-1].time_ns)}"
                if commits
                else "nothing was applied yet",
            )
        return self._log.at(found)

    def get(self, ref: AnyRef, *kinds: str) -> Definition:
        """Return a definition, the version in force unless the reference gives one, such as `quote@1`.

        Raises:
            NotFoundError: no such definition or version.
        """
        return self.snapshot().get(ref, *kinds)

    def history(self) -> list[Commit]:
        """Return all commits, newest first."""
        head = self._log.head(look=True).snapshot.version
        return [self._log.commit(version) for version in range(head, 0, -1)]

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
        base = self._log.head(look=True).snapshot
        given = collect(objects)
        removed = {_key_of(base, ref) for ref in listed("a plan", "remove", remove, "references")}
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
        head = self._log.head(look=True)
        wanted = (
            plan.base if expected_head is None else whole("apply", "expected_head", expected_head, least=0)
        )
        if {wanted, plan.base} != {head.snapshot.version}:
            error = self._log.conflict(min(wanted, plan.base))
            raise error
        if plan.is_empty:
            return self._log.commit(head.snapshot.version)
        return self._log.append(head, plan.entries, message=message, author=author or self._author)

    def rollback(self, version: int | Instant, *, message: str = "", author: str = "") -> Commit:
        """Bring back what was in force at an older version, as a new commit; the newest if that is now.

        Nothing is forgotten: what was in force in between stays readable by its version.

        Raises:
            NotFoundError: no such version.
            CommitConflictError: someone else committed meanwhile.
        """
        target = self.at(version)
        head = self._log.head(look=True)
        plan = rollback_plan(head.snapshot, target)
        if plan.is_empty:
            return self._log.commit(head.snapshot.version)
        said = message or f"rollback to version {target.version}"
        return self._log.append(head, plan.entries, message=said, author=author or self._author)


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
