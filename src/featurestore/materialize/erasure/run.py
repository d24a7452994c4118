"""The erasure of a subject, step by step: each is safe to run again, so a killed one is run to its end.

The ledger is written first: from then on no source, push or run brings the subject back. Then everything the
store has written is brought to what it would be had the subject never been, and at the end it is proved.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from featurestore.catalog.source import Source
from featurestore.errors import NotFoundError, SchemaError
from featurestore.materialize.context import Context, Home
from featurestore.materialize.erasure.appended import (
    SourceRows,
    is_appended,
    path_of,
    rewrite_appended,
    source_rows,
)
from featurestore.materialize.erasure.clean import HomePlan, HomeResult, check_pins, clean_home, plan_home
from featurestore.materialize.erasure.places import place_name, source_places, stored_homes
from featurestore.materialize.erasure.proof import Proof, prove
from featurestore.materialize.erasure.report import EraseReport
from featurestore.materialize.erasure.subject import Subject, names_of_version, subject_of
from featurestore.materialize.lock import writing
from featurestore.storage.cache import file_cache
from featurestore.storage.files import AnyPath, replace_file
from featurestore.storage.manifest import current_version, read_manifest, version_folder
from featurestore.storage.objects import ObjectPath
from featurestore.storage.source_files import is_delta, list_files, place_of
from featurestore.storage.suppression import (
    DONE,
    ERASE,
    LIFT,
    Ledger,
    LedgerEntry,
    append_entry,
    ledger_folder,
    open_for_writing,
    read_ledger,
)


class OutsideVersions(Protocol):
    """What an erasure asks of the rooms that hold no versions: the online store, and logs of its answers."""

    @property
    def folders(self) -> Sequence[Path]:
        """Local folders that prove themselves."""
        ...

    @property
    def files(self) -> Sequence[Path]:
        """Logs of answers."""
        ...

    def count(self, subject: Subject) -> int:
        """Count what the online store holds of a subject."""
        ...

    def erase(self, subject: Subject) -> int:
        """Delete a subject online with every byte of it; returns how many entries there were."""
        ...

    def erase_logs(self, subject: Subject) -> Mapping[str, int]:
        """Take a subject out of the logs of answers; returns rows by file."""
        ...

    def residue(self, subject: Subject) -> Mapping[str, int]:
        """Count keys of which something is still online, by where."""
        ...


def erase(context: Context, entity: str, keys: Any, *, outside: OutsideVersions, pinned: str) -> EraseReport:
    """Erase a subject from everything that the store owns.

    Args:
        pinned: What becomes of tagged versions that hold it: refuse, rewrite or remove.

    Raises:
        NotFoundError: no such entity.
        SchemaError: a join key is missing, or no place has keys of that kind.
        PinnedVersionError: tagged versions hold the subject, and the policy is to refuse; nothing was done.
        CommitConflictError: another process is writing; run again.
        StorageError: the disk refused; run again.
    """
    subject, sources, plans = _found(context, entity, keys)
    check_pins(plans, pinned)
    held = {s.name: s.total for s in sources}
    open_for_writing(context.path)
    with writing(_ledger_home(context)):
        entry = _intent(context, subject)
        online_rows = outside.erase(subject)
        own = {f"source/{s.name}": sum(s.rows[path] for path in s.own) for s in sources if s.own}
        rewritten = rewrite_appended(context, subject, sources)
        results = [
            clean_home(context, home, subject, ledger=entry, pinned=pinned, held=held)
            for home in stored_homes(context)
        ]
        logged = outside.erase_logs(subject)
        left = source_rows(context, subject)
        _forget_copies(context)
        report = _report(context, subject, results, left, entry=entry, online_rows=online_rows)
        proof = _proof(context, subject, outside)
        report = report.finished(erased={**own, **logged}, files_written=len(rewritten), proof=proof)
        replace_file(ledger_folder(context.path) / f"{entry:08d}.report.json", report.to_json())
        if not any(e.kind == DONE and e.of == entry for e in read_ledger(context.path).entries):
            done = LedgerEntry(number=0, kind=DONE, time_ns=context.clock.now_ns(), of=entry)
            append_entry(context.path, done)
    return report


def plan_erasure(context: Context, entity: str, keys: Any, *, outside: OutsideVersions) -> EraseReport:
    """Say what an erasure would do; nothing is changed.

    Raises:
        NotFoundError: no such entity.
        SchemaError: a join key is missing, or no place has keys of that kind.
    """
    subject, sources, plans = _found(context, entity, keys)
    erased = {
        place_name(context, plan.home, one.version): sum(one.rows.values())
        for plan in plans
        for one in plan.affected
    }
    erased |= {f"source/{s.name}": n for s in sources if (n := sum(s.rows[path] for path in s.own))}
    files = {p: n for s in sources for p, n in s.rows.items() if p not in s.own}
    return EraseReport(
        entity=entity,
        keys=subject.keys.num_rows,
        entry=0,
        dry_run=True,
        online_rows=outside.count(subject),
        erased=erased,
        remaining=_remaining(sources),
        remaining_files=files,
        unresolved={
            place_name(
                context, plan.home, one.version
            ): f"to be computed again without {', '.join(one.mixing)}"
            for plan in plans
            for one in plan.affected
            if one.mixing
        },
    )


def lift(context: Context, entity: str, keys: Any) -> int:
    """Let rows of erased keys count again, from the next run on; nothing comes back by itself.

    Returns:
        The ledger's new entry; 0 where none of the keys was erased.

    Raises:
        NotFoundError: no such entity.
        SchemaError: a join key is missing.
        StorageError: the disk or the store refused.
    """
    subject = subject_of(context.snapshot, entity, keys)
    ledger = read_ledger(context.path)
    if not ledger.entries:
        return 0
    hashes = ledger.hashes(subject.keys.columns)
    known = {k: h for k, h in hashes.items() if ledger.erased(subject.columns, [k])}
    if not known:
        return 0
    with writing(_ledger_home(context)):
        return _append(context, LIFT, subject, known).number


def _found(context: Context, entity: str, keys: Any) -> tuple[Subject, list[SourceRows], list[HomePlan]]:
    subject = subject_of(context.snapshot, entity, keys)
    sources = source_rows(context, subject)
    held = {s.name: s.total for s in sources}
    homes = stored_homes(context)
    plans = [plan for home in homes if (plan := plan_home(context, home, subject, held)) is not None]
    if not sources and not any(_can_hold(home, subject) for home in homes):
        raise SchemaError(
            f"no source and no version has keys of entity {entity!r} of these types",
            hint=", ".join(f"{f.name}: {f.type}" for f in subject.keys.schema),
        )
    return subject, sources, plans


def _can_hold(home: Home, subject: Subject) -> bool:
    head = current_version(home.ipc)
    if head is None:
        return False
    manifest = read_manifest(home.ipc / version_folder(head))
    return bool(subject.names_in(manifest.schema, names_of_version(manifest)))


def _forget_copies(context: Context) -> None:
    """Empty this machine's cache of a remote root's files; what readers have mapped they keep."""
    if isinstance(context.path, ObjectPath):
        file_cache(context.path.store.cache).clear()


def _ledger_home(context: Context) -> Home:
    folder = ledger_folder(context.path)
    lease_s = context.config.lease_ns / 1e9
    return Home("ledger", "the ledger of erasures", folder, folder, folder / "LOCK", lease_s)


def _intent(context: Context, subject: Subject) -> int:
    """Write the erasure down, or find it written by a run that did not reach its end."""
    ledger = read_ledger(context.path)
    hashes = ledger.hashes(subject.keys.columns)
    for entry in reversed(ledger.entries):
        if entry.kind == ERASE and entry.columns == subject.columns and set(entry.keys) == set(hashes):
            if ledger.erased(subject.columns, hashes):
                return entry.number
            break
    return _append(context, ERASE, subject, hashes).number


def _append(context: Context, kind: str, subject: Subject, hashes: Mapping[str, int]) -> LedgerEntry:
    entry = LedgerEntry(
        number=0,
        kind=kind,
        time_ns=context.clock.now_ns(),
        entity=subject.entity,
        columns=subject.columns,
        keys=tuple(sorted(hashes)),
        hints=tuple(hashes[key] for key in sorted(hashes)),
    )
    return append_entry(context.path, entry)


def _remaining(sources: Iterable[SourceRows]) -> dict[str, int]:
    rows = {s.name: sum(n for path, n in s.rows.items() if path not in s.own) for s in sources}
    return {f"source/{name}": count for name, count in rows.items() if count}


def _report(
    context: Context,
    subject: Subject,
    results: Sequence[HomeResult],
    left: Sequence[SourceRows],
    *,
    entry: int,
    online_rows: int,
) -> EraseReport:
    changed = [r for r in results if r.rows or r.removed]
    return EraseReport(
        entity=subject.entity,
        keys=subject.keys.num_rows,
        entry=entry,
        dry_run=False,
        online_rows=online_rows,
        erased={place_name(context, r.home, v): n for r in results for v, n in sorted(r.rows.items())},
        rewritten={r.home.title: dict(sorted(r.rewritten.items())) for r in changed},
        removed={r.home.title: sorted(r.removed) for r in changed},
        files_written=sum(r.files_written for r in results),
        files_removed=sum(r.files_removed for r in results),
        remaining={f"source/{s.name}": s.total for s in left if s.total},
        remaining_files={path: n for s in left for path, n in s.rows.items()},
        unresolved={
            place_name(context, r.home, v): why for r in results for v, why in sorted(r.unresolved.items())
        },
    )


def _proof(context: Context, subject: Subject, outside: OutsideVersions) -> Proof:
    others, own = _source_files(context)
    names = set(subject.columns) | {f"source__{c}" for c in subject.columns}
    for place in source_places(context, subject):
        names |= {c for columns in subject.names_in(place.table.schema, place.renamed) for c in columns}
    for home in stored_homes(context):
        head = current_version(home.ipc)
        if head is not None:
            manifest = read_manifest(home.ipc / version_folder(head))
            found = subject.names_in(manifest.schema, names_of_version(manifest))
            names |= {c for columns in found for c in columns}
    return prove(
        context.path,
        subject,
        names=names,
        extra=[*own, *outside.files],
        skip=[*others, *outside.folders],
        online=outside.residue(subject),
    )


def _source_files(context: Context) -> tuple[list[AnyPath], list[AnyPath]]:
    """Return the files of sources that others wrote, and those that the store appended."""
    others: list[AnyPath] = []
    own: list[AnyPath] = []
    for found in context.snapshot.definitions():
        if not isinstance(found, Source):
            continue
        place = place_of(found.path, context.path)
        base = path_of(context.path, place, place.path)
        if base is None:
            continue
        try:
            listed = (path_of(context.path, place, file.path) for file in list_files(place))
            files = [path for path in listed if path is not None]
        except NotFoundError:
            continue
        own += [p for p in files if is_appended(p)]
        others += [p for p in files if not is_appended(p)]
        if is_delta(place):
            others.append(base)
    return others, own


def erasures(ledger: Ledger) -> list[tuple[LedgerEntry, bool]]:
    """Return every erasure, oldest first, and whether it reached its end."""
    unfinished = {e.number for e in ledger.unfinished()}
    return [(e, e.number not in unfinished) for e in ledger.entries if e.kind == ERASE]
