"""Source: a table of events."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar, Final

from featurestore.catalog.definition import Definition
from featurestore.catalog.entity import Entity, entity_names
from featurestore.core.arguments import folder, text
from featurestore.core.names import check_feature_name, check_name
from featurestore.core.time import Duration, duration_ns
from featurestore.errors import DefinitionError

FORMATS: Final = ("delta", "parquet", "arrow", "csv")


@dataclass(frozen=True, slots=True, eq=False, repr=False, init=False)
class Source(Definition):
    """A table of events: Delta, Parquet (file, folder, glob, Hive), Arrow IPC or CSV; local or by fsspec URL.

    Attributes:
        path: Where it is; a relative path is taken from the store's root.
        timestamp_field: The event timestamp: when a row became true.
        created_timestamp_column: When a row could have been known; rows are invisible before.
        sequence_column: Decides between rows of equal event and created timestamps, the greater wins;
            without one the position in the source decides.
        availability_delay_ns: A row becomes visible this long after its created timestamp
            (after its event timestamp where there is no created one); 0 for none.
        entities: Names of the entities whose join keys the table holds.
        query: DuckDB SQL that reads the table under the name `source`; its result is the table.
        format: One of `FORMATS`; `None` finds out from the path.
    """

    kind: ClassVar[str] = "source"

    path: str
    timestamp_field: str
    created_timestamp_column: str | None
    sequence_column: str | None
    availability_delay_ns: int
    entities: tuple[str, ...]
    query: str | None
    format: str | None
    entity_objects: tuple[Entity, ...]

    def __init__(
        self,
        name: str,
        *,
        path: str | PathLike[str],
        timestamp_field: str = "event_timestamp",
        created_timestamp_column: str | None = None,
        sequence_column: str | None = None,
        availability_delay: Duration | None = None,
        entities: Sequence[Entity | str] = (),
        query: str | None = None,
        format: str | None = None,  # noqa: A002 -- the word users know from every reader
        owner: str = "",
        description: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Validate and freeze; the path is not looked at before `plan`.

        Raises:
            DefinitionError: a bad name, an empty path, an unknown format, or a negative delay.
        """
        what = f"source {check_name(name, 'source')!r}"
        place = folder(what, "path", path)
        if not place:
            raise DefinitionError(f"{what} has an empty path", hint="give a file, a folder, a glob or a URL")
        if format is not None and format not in FORMATS:
            raise DefinitionError(
                f"{what} has format {format!r}",
                hint=f"one of {', '.join(FORMATS)}, or None to find out from the path",
            )
        columns = [timestamp_field, created_timestamp_column, sequence_column]
        for column in columns:
            if column is not None:
                check_feature_name(column, "column")
        _check_distinct(name, [c for c in columns if c is not None])
        delay = 0 if availability_delay is None else availability_delay
        names, objects = entity_names(what, entities)
        self._put(
            name=name,
            path=place,
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            sequence_column=sequence_column,
            availability_delay_ns=duration_ns(delay, what=f"availability_delay of {what}"),
            entities=names,
            query=None if query is None else text(what, "query", query),
            format=format,
            entity_objects=objects,
        )
        self._describe(owner, description, tags)

    @property
    def availability_delay(self) -> int | None:
        """The delay in nanoseconds, as the constructor takes it too; `None` for none."""
        return self.availability_delay_ns or None

    def spec(self) -> dict[str, Any]:
        """Return the source as plain JSON values."""
        return {
            "kind": self.kind,
            "name": self.name,
            "path": self.path,
            "timestamp_field": self.timestamp_field,
            "created_timestamp_column": self.created_timestamp_column,
            "sequence_column": self.sequence_column,
            "availability_delay_ns": self.availability_delay_ns,
            "entities": list(self.entities),
            "query": self.query,
            "format": self.format,
            **self.about(),
        }


def _check_distinct(name: str, columns: Sequence[str]) -> None:
    if len(set(columns)) != len(columns):
        raise DefinitionError(
            f"source {name!r} uses one column for two of event, created and sequence: {list(columns)}",
            hint="leave created_timestamp_column out where there is only the event timestamp",
            source=name,
        )
