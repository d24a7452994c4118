"""One training set or view without a subject: new versions, old ones removed, pins as the caller decides."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.core.names import near
from featurestore.errors import DefinitionError, NotFoundError, PinnedVersionError
from featurestore.materialize.context import Context, Home
from featurestore.materialize.erasure.places import local_path
from featurestore.materialize.erasure.rewrite import Affected, affected_version, cleaned, republish
from featurestore.materialize.erasure.subject import Subject, names_of_version
from featurestore.materialize.lock import writing
from featurestore.materialize.publish import INTERIM, heal, staging_folder
from featurestore.materialize.tags import tag_record, tags_of
from featurestore.storage.delta_log import DeltaLog, read_log
from featurestore.storage.files import TEMPORARY, remove_files, remove_folder, replace_file
from featurestore.storage.manifest import (
    MANIFEST,
    Manifest,
    current_version,
    published_versions,
    read_manifest,
    version_folder,
)
from featurestore.storage.physical import from_stored
from featurestore.storage.shards import open_dataset_folder

PINNED: Final = ("refuse", "rewrite", "remove")


@dataclass(frozen=True, slots=True, kw_only=True)
class HomePlan:
    """What a training set or view holds of a subject.

    Attributes:
        affected: The versions that do, ascending.
        tags: Tags of these versions.
        head: The newest version.
    """

    home: Home
    affected: tuple[Affected, ...]
    tags: Mapping[str, int]
    head: int


@dataclass(slots=True, kw_only=True)
class HomeResult:
    """What was done to a training set or view.

    Attributes:
        rows: Rows taken out, by version.
        rewritten: New version by old.
        removed: Versions that are gone.
        files_written: How many files are new; `files_removed` how many are gone.
        unresolved: Why values of others may still be made from the subject's rows, by version.
    """

    home: Home
    rows: dict[int, int] = field(default_factory=dict)
    rewritten: dict[int, int] = field(default_factory=dict)
    removed: list[int] = field(default_factory=list)
    files_written: int = 0
    files_removed: int = 0
    unresolved: dict[int, str] = field(default_factory=dict)


def plan_home(context: Context, home: Home, subject: Subject, held: Mapping[str, int]) -> HomePlan | None:
    """Find the versions that hold anything of a subject; nothing is changed.

    Args:
        held: Rows of the subject in each source, as it lies.

    Cost:
        Opens every manifest; of shards that the subject's keys can be in, the entities or key columns.
    """
    head = current_version(home.ipc)
    if head is None:
        return None
    known: dict[str, int] = {}
    found = []
    for version in published_versions(home.ipc):
        opened = open_dataset_folder(home.ipc, version, verify="off")
        one = affected_version(context, opened, subject, held=held, known=known)
        if one is not None:
            found.append(one)
    versions = {one.version for one in found}
    tags = {tag: v for tag, v in tags_of(home).items() if v in versions}
    return HomePlan(home=home, affected=tuple(found), tags=tags, head=head)


def check_pins(plans: Iterable[HomePlan], pinned: str) -> None:
    """Refuse an erasure that would change what a tag names, unless the caller said how.

    Raises:
        DefinitionError: `pinned` is no policy.
        PinnedVersionError: the policy is to refuse, and there are such tags.
    """
    if pinned not in PINNED:
        raise DefinitionError(f"pinned is {pinned!r}", hint=near(pinned, PINNED))
    tags = [f"{p.home.title}@{v} ({tag!r})" for p in plans for tag, v in sorted(p.tags.items())]
    if tags and pinned == "refuse":
        raise PinnedVersionError(
            f"pinned versions hold rows of the subject: {', '.join(tags)}; nothing was erased",
            hint="unpin them, or say pinned='rewrite' (the tag moves to a version without the subject) or "
            "pinned='remove' (tag and version go)",
            tags=tags,
        )


def clean_home(
    context: Context, home: Home, subject: Subject, *, ledger: int, pinned: str, held: Mapping[str, int]
) -> HomeResult:
    """Bring a training set or view to what it would be had the subject never been; safe to run again.

    The newest version, and with `pinned="rewrite"` each tagged one, is published anew without the subject;
    then every version and file that held it goes.

    Raises:
        PinnedVersionError: a version was pinned meanwhile, and the policy is to refuse.
        CommitConflictError: another process is writing it.
        StorageError: the disk refused; run again.
    """
    result = HomeResult(home=home)
    with writing(home):
        heal(home)
        _remove_scratch(home)
        plan = plan_home(context, home, subject, held)
        log = read_log(local_path(home.delta))
        if plan is None or log is None:
            return result
        check_pins([plan], pinned)
        _republish_all(context, plan, subject, result, ledger=ledger, pinned=pinned)
        gone = [one for one in plan.affected if one.version in result.rows]
        _move_tags(plan, result, pinned)
        _remove_versions(home, gone, result)
        _remove_unnamed(home, subject, result)
        result.files_removed += _remove_states(home)
    return result


def _republish_all(
    context: Context, plan: HomePlan, subject: Subject, result: HomeResult, *, ledger: int, pinned: str
) -> None:
    """Publish the newest version without the subject, then tagged ones, and the newest again on top."""
    by_version = {one.version: one for one in plan.affected}
    head = by_version.get(plan.head)
    top = plan.head if head is None else _republish(context, plan.home, head, subject, result, ledger, {})
    tagged = set(plan.tags.values()) - {plan.head} if pinned == "rewrite" else set()
    for version in sorted(tagged):
        about = {INTERIM: top}
        _republish(context, plan.home, by_version[version], subject, result, ledger, about)
    if any(result.rewritten.get(v) for v in tagged):
        # What was put on top of the newest for a tag's sake is not the newest.
        heal(plan.home)
    for one in plan.affected:
        if one.version != plan.head and one.version not in tagged and one.rows:
            result.rows[one.version] = sum(one.rows.values())
        elif one.version != plan.head and one.version not in tagged:
            _judge(context, plan.home, one, subject, result)


def _republish(
    context: Context,
    home: Home,
    affected: Affected,
    subject: Subject,
    result: HomeResult,
    ledger: int,
    about: Mapping[str, int],
) -> int:
    """Publish a version without the subject; returns its new number, the old one where it holds nothing."""
    log = _log(home)
    done = _published_before(log, affected.version, ledger)
    if done is not None and (home.ipc / version_folder(done) / MANIFEST).exists():
        result.rows[affected.version] = sum(affected.rows.values())
        result.rewritten[affected.version] = done
        return done
    staged = local_path(staging_folder(home))
    clean = cleaned(context, home, log, affected, subject, staged)
    if clean.unresolved:
        result.unresolved[affected.version] = clean.unresolved
    if not clean.gone:
        remove_folder(staged)
        return affected.version
    manifest = republish(context, home, log, affected, clean, staged, ledger=ledger, about=about)
    result.rows[affected.version] = clean.rows
    result.rewritten[affected.version] = manifest.version
    result.files_written += 3 * len(clean.written)
    return manifest.version


def _judge(context: Context, home: Home, affected: Affected, subject: Subject, result: HomeResult) -> None:
    """Find out whether an old version without rows of the subject has values made from them."""
    staged = local_path(staging_folder(home))
    clean = cleaned(context, home, _log(home), affected, subject, staged)
    remove_folder(staged)
    heal(home)
    if clean.gone:
        result.rows[affected.version] = clean.rows
    elif clean.unresolved:
        result.unresolved[affected.version] = clean.unresolved


def _published_before(log: DeltaLog, version: int, ledger: int) -> int | None:
    """Return what an interrupted run of the same erasure made of a version."""
    for commit in reversed(log.commits):
        if commit.fs.get("erasure") == ledger and commit.fs.get("of") == version:
            return commit.version
    return None


def _move_tags(plan: HomePlan, result: HomeResult, pinned: str) -> None:
    for tag, version in plan.tags.items():
        path = local_path(plan.home.pins) / f"{tag}.json"
        if version in result.rewritten and pinned == "rewrite":
            replace_file(path, tag_record(tag, result.rewritten[version]))
        elif version in result.rows:
            remove_files([path])


def _remove_versions(home: Home, gone: Iterable[Affected], result: HomeResult) -> None:
    """Remove versions with the data files that held the subject; folders go last."""
    log = _log(home)
    for one in gone:
        manifest = one.opened.manifest
        places = {(manifest.shards[i].date, manifest.shards[i].bucket) for i in one.rows}
        files = log.files_at(one.version).values()
        shared = _needed(home, log, without=one.version) if one.mixing else set()
        held = [
            f.path for f in files if (f.date, f.bucket) in places or (one.mixing and f.path not in shared)
        ]
        result.files_removed += remove_files([home.delta / path for path in held])
        folder = local_path(home.ipc / version_folder(one.version))
        result.files_removed += sum(1 for _ in folder.iterdir())
        remove_files([folder / MANIFEST])
        remove_folder(folder)
        result.removed.append(one.version)


def _remove_unnamed(home: Home, subject: Subject, result: HomeResult) -> None:
    """Remove what no version names: half-removed folders, and data files of versions vacuumed in between."""
    ipc = local_path(home.ipc)
    published = {version_folder(v) for v in published_versions(ipc)}
    for folder in ipc.iterdir():
        if folder.is_dir() and folder.name not in published:
            remove_folder(folder)
    log = _log(home)
    needed = _needed(home, log)
    named = {f.path for commit in log.commits for f in commit.added}
    left = [p for path in sorted(named - needed) if (p := local_path(home.delta) / path).exists()]
    head = current_version(ipc)
    if left and head is not None:
        manifest = read_manifest(ipc / version_folder(head))
        result.files_removed += remove_files([file for file in left if _file_holds(file, subject, manifest)])


def _needed(home: Home, log: DeltaLog, *, without: int | None = None) -> set[str]:
    versions = [v for v in published_versions(home.ipc) if v != without and v <= log.head]
    return {path for version in versions for path in log.files_at(version)}


def _file_holds(file: Path, subject: Subject, manifest: Manifest) -> bool:
    renamed = names_of_version(manifest)
    reader = pq.ParquetFile(file)
    names = {c for columns in subject.names_in(manifest.schema, renamed) for c in columns}
    held = pa.schema([f for f in manifest.schema if f.name in names and f.name in reader.schema_arrow.names])
    return bool(subject.mask(from_stored(reader.read(held.names), held), renamed).any())


def _remove_states(home: Home) -> int:
    """Remove carried rows of sources: a later run reads what they held again."""
    states = [p for v in local_path(home.ipc).glob("v*") for p in (v / "STATES.json", *v.glob("state-*"))]
    return remove_files(states)


def _remove_scratch(home: Home) -> None:
    """Remove what recreating and spilling left behind; a run that is under way fails and can be repeated."""
    for folder in (local_path(home.lock).parent, local_path(home.ipc)):
        with suppress(NotFoundError):
            for left in [p for p in folder.iterdir() if p.name.startswith(TEMPORARY) and p.is_dir()]:
                remove_folder(left)


def _log(home: Home) -> DeltaLog:
    log = read_log(local_path(home.delta))
    if log is None:
        raise NotFoundError(f"{home.title!r} has no Delta log", path=str(home.delta))
    return log
