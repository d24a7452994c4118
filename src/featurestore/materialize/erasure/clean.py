"""One training set or view without a subject: new versions, old ones removed, pins as the caller decides."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from featurestore.core.names import near
from featurestore.errors import DefinitionError, PinnedVersionError
from featurestore.materialize.context import Context, Home
from featurestore.materialize.erasure.removal import (
    finish_removals,
    log_of,
    remove_scratch,
    remove_states,
    remove_unnamed,
    remove_versions,
)
from featurestore.materialize.erasure.rewrite import Affected, affected_version, cleaned, republish
from featurestore.materialize.erasure.subject import Subject
from featurestore.materialize.lock import writing
from featurestore.materialize.publish import INTERIM, heal, local_folder, staging_folder
from featurestore.materialize.tags import tag_record, tags_of
from featurestore.storage.delta_log import DeltaLog, read_log
from featurestore.storage.files import AnyPath, remove_files, remove_folder, replace_file
from featurestore.storage.manifest import MANIFEST, current_version, published_versions, version_folder
from featurestore.storage.objects import ObjectPath
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
        remove_scratch(home)
        finish_removals(home)
        plan = plan_home(context, home, subject, held)
        log = read_log(home.delta)
        if plan is not None and log is not None:
            check_pins([plan], pinned)
            _republish_all(context, plan, subject, result, ledger=ledger, pinned=pinned)
            gone = [one for one in plan.affected if one.version in result.rows]
            _move_tags(plan, result, pinned)
            result.files_removed += remove_versions(home, gone)
            result.removed += [one.version for one in gone]
        since = None if log is None else log.head
        result.files_removed += remove_unnamed(home, subject, since=since, now_ns=context.clock.now_ns())
        result.files_removed += remove_states(home)
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
    log = log_of(home)
    done = _published_before(log, affected.version, ledger)
    if done is not None and (home.ipc / version_folder(done) / MANIFEST).exists():
        result.rows[affected.version] = sum(affected.rows.values())
        result.rewritten[affected.version] = done
        return done
    with _staging(home) as staged:
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
    with _staging(home) as staged:
        clean = cleaned(context, home, log_of(home), affected, subject, staged)
        remove_folder(staged)
    heal(home)
    if clean.gone:
        result.rows[affected.version] = clean.rows
    elif clean.unresolved:
        result.unresolved[affected.version] = clean.unresolved


@contextmanager
def _staging(home: Home) -> Iterator[AnyPath]:
    """Give a folder for a version's files; of a remote one nothing is left on this machine."""
    staged = staging_folder(home)
    try:
        yield staged
    finally:
        if isinstance(staged, ObjectPath):
            remove_folder(local_folder(staged))


def _published_before(log: DeltaLog, version: int, ledger: int) -> int | None:
    """Return what an interrupted run of the same erasure made of a version."""
    for commit in reversed(log.commits):
        if commit.fs.get("erasure") == ledger and commit.fs.get("of") == version:
            return commit.version
    return None


def _move_tags(plan: HomePlan, result: HomeResult, pinned: str) -> None:
    for tag, version in plan.tags.items():
        path = plan.home.pins / f"{tag}.json"
        if version in result.rewritten and pinned == "rewrite":
            replace_file(path, tag_record(tag, result.rewritten[version]))
        elif version in result.rows:
            remove_files([path])
