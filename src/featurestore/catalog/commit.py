"""Commit: one version of the catalog as a file that people can read."""

import gc
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from featurestore.catalog.snapshot import CatalogSnapshot, Key, Record
from featurestore.core.canonical import digest_bytes, digest_json
from featurestore.core.time import format_instant
from featurestore.errors import CorruptDataError, DefinitionError

FORMAT: Final = 1
_DIGITS: Final = 20
_SNAPSHOT: Final = ".snapshot.json"
ACTIONS: Final = ("add", "change", "describe", "remove", "restore")


@dataclass(frozen=True, slots=True)
class Entry:
    """What a commit did to one definition.

    Attributes:
        action: `add`; `change`: a new version; `describe`: metadata or the recorded schema, same version;
            `remove`; `restore`: the record of an older catalog version is in force again.
        record: The record in force from here on; `None` for a removal.
    """

    action: str
    key: Key
    record: Record | None


@dataclass(frozen=True, slots=True)
class Commit:
    """One version of the catalog.

    Attributes:
        version: 1 for the first; its parent is one less.
        parent_digest: The digest of the parent's file, empty for the first: the chain.
        time_ns: When, ns since 1970 UTC; later than its parent.
        nonce: Tells two commits of the same content apart.
        digest: xxh3-128 of all the above, 32 hex digits.
    """

    version: int
    parent_digest: str
    time_ns: int
    author: str
    message: str
    nonce: str
    entries: tuple[Entry, ...]
    digest: str

    def __repr__(self) -> str:
        what = ", ".join(self.changed[:6]) + (", …" if len(self.entries) > 6 else "")
        return f"Commit({self.version}, {format_instant(self.time_ns)}, {self.message!r}: {what})"

    @property
    def changed(self) -> list[str]:
        """What it did, a word and a definition each, such as `add feature_view/quote@1`."""
        return [f"{e.action} {e.record.id if e.record else '/'.join(e.key)}" for e in self.entries]


NO_COMMIT: Final = Commit(0, "", 0, "", "nothing was applied yet", "", (), "")


def commit_name(version: int) -> str:
    """Return the file name of a commit."""
    return f"{version:0{_DIGITS}d}.json"


def snapshot_name(version: int) -> str:
    """Return the file name of a full snapshot, which only makes loading faster."""
    return f"{version:0{_DIGITS}d}{_SNAPSHOT}"


def mark_name(version: int) -> str:
    """Return the name of the empty file that says a version was committed, whatever becomes of its commit."""
    return f"{version:0{_DIGITS}d}.seen"


def marked_version(name: str) -> int:
    """Return the version that a mark speaks of; 0 for other files."""
    digits, _, rest = name.partition(".")
    return int(digits) if rest == "seen" and len(digits) == _DIGITS and digits.isdecimal() else 0


def version_of_name(name: str) -> tuple[int, bool] | None:
    """Return the version of a file and whether it is a snapshot; `None` for other files."""
    digits, _, rest = name.partition(".")
    if len(digits) != _DIGITS or not digits.isascii() or not digits.isdigit():
        return None
    return (int(digits), rest != "json") if rest in {"json", "snapshot.json"} else None


def make_commit(
    parent: CatalogSnapshot,
    parent_digest: str,
    entries: Sequence[Entry],
    *,
    time_ns: int,
    author: str,
    message: str,
    nonce: str,
) -> Commit:
    """Return the commit that follows a snapshot; its digest covers everything in it."""
    draft = Commit(
        version=parent.version + 1,
        parent_digest=parent_digest,
        time_ns=max(time_ns, parent.time_ns + 1),
        author=author,
        message=message,
        nonce=nonce,
        entries=tuple(entries),
        digest="",
    )
    return Commit(**{**_fields(draft), "digest": digest_json(_body(draft))})


def _fields(commit: Commit) -> dict[str, Any]:
    return {name: getattr(commit, name) for name in Commit.__slots__}


def _body(commit: Commit) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": commit.version,
        "parent_digest": commit.parent_digest,
        "time_ns": commit.time_ns,
        "time": format_instant(commit.time_ns),
        "author": commit.author,
        "message": commit.message,
        "nonce": commit.nonce,
        "changes": [_entry_json(entry) for entry in commit.entries],
    }


def _entry_json(entry: Entry) -> dict[str, Any]:
    kind, name = entry.key
    about = {"action": entry.action, "kind": kind, "name": name}
    return about if entry.record is None else {**about, **record_json(entry.record)}


def record_json(record: Record) -> dict[str, Any]:
    """Return a record as JSON values."""
    return {
        "kind": record.kind,
        "name": record.name,
        "version": record.version,
        "since": record.since,
        "definition": dict(record.spec),
        "columns": [list(c) for c in record.columns],
        "pins": list(record.pins),
    }


def record_of_json(data: Mapping[str, Any]) -> Record:
    """Read back what `record_json` wrote."""
    return Record(
        kind=data["kind"],
        name=data["name"],
        version=data["version"],
        spec=data["definition"],
        columns=tuple((name, text) for name, text in data["columns"]),
        pins=tuple(data["pins"]),
        since=data["since"],
    )


def encode_commit(commit: Commit) -> bytes:
    """Write a commit as indented JSON; short lists and objects stay on one line."""
    return (readable_json({**_body(commit), "digest": commit.digest}) + "\n").encode()


def decode_commit(data: bytes, version: int) -> Commit:
    """Read a commit and check it against its digest.

    Raises:
        CorruptDataError: it is not what was written.
    """
    with _collector_paused():
        return _decoded(_checked_json(data, f"commit {version} of the catalog"), version)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep the cycle collector still while many small objects are made, none of which can be garbage."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _decoded(body: Mapping[str, Any], version: int) -> Commit:
    try:
        commit = Commit(
            version=body["version"],
            parent_digest=body["parent_digest"],
            time_ns=body["time_ns"],
            author=body["author"],
            message=body["message"],
            nonce=body["nonce"],
            entries=tuple(_entry_of_json(e) for e in body["changes"]),
            digest=body["digest"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptDataError(f"commit {version} of the catalog lacks {error}", version=version) from error
    if commit.version != version:
        raise CorruptDataError(f"the file of catalog version {version} holds {commit.version}")
    return commit


def _checked_json(data: bytes, what: str) -> dict[str, Any]:
    try:
        body = json.loads(data)
        digest = body.pop("digest")
        good = digest_json(body) == digest
    except (ValueError, KeyError, TypeError, AttributeError, DefinitionError) as error:
        raise CorruptDataError(f"{what} cannot be read: {error}", hint=_HINT) from error
    if not good:
        raise CorruptDataError(f"{what} is not what was written: its digest differs", hint=_HINT)
    if body.get("format") != FORMAT:
        raise CorruptDataError(
            f"{what} has format {body.get('format')!r}, this version reads {FORMAT}",
            hint="update featurestore",
        )
    return {**body, "digest": digest}


_HINT: Final = "restore the file from a backup; commits are never edited in place"


def _entry_of_json(data: Mapping[str, Any]) -> Entry:
    if data["action"] not in ACTIONS:
        raise ValueError(data["action"])
    record = record_of_json(data) if "definition" in data else None
    return Entry(data["action"], (data["kind"], data["name"]), record)


def apply_commit(parent: CatalogSnapshot, commit: Commit) -> CatalogSnapshot:
    """Return the snapshot after a commit. Cost: copies three dicts, decodes nothing."""
    records = dict(parent.records)
    heads = dict(parent.heads)
    last = dict(parent.last)
    for entry in commit.entries:
        if entry.record is None:
            heads.pop(entry.key, None)
            continue
        version = entry.record.version
        records[(*entry.key, version)] = entry.record
        heads[entry.key] = version
        last[entry.key] = max(version, last.get(entry.key, 0))
    return CatalogSnapshot(commit.version, commit.time_ns, records, heads, last)


def encode_snapshot(snapshot: CatalogSnapshot, commit_digest: str) -> bytes:
    """Write a whole snapshot, for readers that come later."""
    body: dict[str, Any] = {
        "format": FORMAT,
        "version": snapshot.version,
        "time_ns": snapshot.time_ns,
        "commit_digest": commit_digest,
        "records": [record_json(r) for r in snapshot.records.values()],
        "heads": [[*key, version] for key, version in snapshot.heads.items()],
    }
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"{digest_bytes(text.encode())}\n{text}\n".encode()


def decode_snapshot(data: bytes, version: int) -> tuple[CatalogSnapshot, str]:
    """Read a snapshot and the digest of the commit it stands for.

    Raises:
        CorruptDataError: it is not what was written.
    """
    digest, _, text = data.partition(b"\n")
    if digest_bytes(text.rstrip(b"\n")) != digest.decode("ascii", "replace"):
        raise CorruptDataError(
            f"snapshot {version} of the catalog is not what was written",
            hint=f"remove {snapshot_name(version)}: it only makes loading faster",
        )
    with _collector_paused():
        return _decoded_snapshot(json.loads(text))


def _decoded_snapshot(body: Mapping[str, Any]) -> tuple[CatalogSnapshot, str]:
    records = {(r["kind"], r["name"], r["version"]): record_of_json(r) for r in body["records"]}
    heads = {(kind, name): number for kind, name, number in body["heads"]}
    last: dict[Key, int] = {}
    for kind, name, number in records:
        last[kind, name] = max(number, last.get((kind, name), 0))
    return CatalogSnapshot(body["version"], body["time_ns"], records, heads, last), body["commit_digest"]


def readable_json(value: Any, indent: int = 0, width: int = 110) -> str:
    """Write JSON with sorted keys for people: what fits on a line stays on one."""
    flat = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    if len(flat) + indent <= width or not isinstance(value, (dict, list)) or not value:
        return flat
    pad = " " * (indent + 2)
    if isinstance(value, dict):
        items: Iterable[str] = (
            f"{json.dumps(key, ensure_ascii=False)}: {readable_json(value[key], indent + 2, width)}"
            for key in sorted(value)
        )
        opening, closing = "{", "}"
    else:
        items = (readable_json(item, indent + 2, width) for item in value)
        opening, closing = "[", "]"
    return opening + "\n" + ",\n".join(pad + item for item in items) + "\n" + " " * indent + closing
