"""Names of versions: numbers, tags and times, resolved to numbers."""

import json
from collections.abc import Iterable
from datetime import date
from pathlib import Path

import numpy as np

from featurestore.core.canonical import canonical_json, digest_json
from featurestore.core.names import near
from featurestore.core.time import format_instant, instant_ns
from featurestore.errors import CorruptDataError, DefinitionError, NotFoundError
from featurestore.materialize.context import Home
from featurestore.storage.delta_log import version_at
from featurestore.storage.files import AnyPath, read_files

# A number, a tag, or a time: the version that was newest then.
Version = int | str | date | np.datetime64


def resolve_version(home: Home, version: Version) -> int:
    """Turn a number, a tag or a time into a version number.

    Raises:
        NotFoundError: no such tag, or a time before the first version.
        DefinitionError: none of the three.
    """
    if isinstance(version, (date, np.datetime64)):
        return _version_at(home, instant_ns(version))
    if isinstance(version, (int, np.integer)) and not isinstance(version, (bool, np.timedelta64)):
        return int(version)
    if not isinstance(version, str):
        raise DefinitionError(
            f"version {version!r} is a {type(version).__name__}",
            hint="give a number, a tag, a date or datetime, or an ISO 8601 time",
        )
    text = version.strip()
    if text.lstrip("v").isdigit() and len(text) < 10:
        return int(text.lstrip("v"))
    tags = tags_of(home)
    if text in tags:
        return tags[text]
    try:
        at_ns = instant_ns(text)
    except DefinitionError as error:
        raise NotFoundError(
            f"{home.title!r} has no version {version!r}",
            hint=f"give a number, a tag ({near(text, tags)}) or an ISO 8601 time",
            version=version,
        ) from error
    return _version_at(home, at_ns)


def _version_at(home: Home, at_ns: int) -> int:
    try:
        return version_at(home.delta, at_ns, first=1)
    except NotFoundError as error:
        first_ns = error.context.get("first_ns")
        first = "" if first_ns is None else f"its first version was committed at {format_instant(first_ns)}"
        raise NotFoundError(
            f"{home.title!r} has no version as old as {format_instant(at_ns)}", hint=first, at_ns=at_ns
        ) from error


def tags_of(home: Home) -> dict[str, int]:
    """Return the pinned versions by tag.

    Raises:
        CorruptDataError: a tag's file is damaged.
    """
    if isinstance(home.pins, Path) and not home.pins.is_dir():
        return {}
    there: Iterable[AnyPath] = home.pins.glob("*.json")
    paths = sorted(there, key=str)
    out = {}
    for path, data in zip(paths, read_files(paths), strict=True):
        try:
            record = dict(json.loads(data))
            digest = record.pop("digest")
        except (ValueError, KeyError, TypeError) as error:
            found = _damaged(path)
            raise found from error
        if digest_json(record) != digest or record["tag"] != path.stem:
            found = _damaged(path)
            raise found
        out[path.stem] = int(record["version"])
    return out


def tag_record(tag: str, version: int) -> bytes:
    """Return what a tag's file holds."""
    record = {"tag": tag, "version": version}
    return canonical_json({**record, "digest": digest_json(record)}).encode()


def _damaged(path: AnyPath) -> CorruptDataError:
    return CorruptDataError(
        f"tag file {str(path)!r} is damaged", hint="remove it and pin again", path=str(path)
    )
