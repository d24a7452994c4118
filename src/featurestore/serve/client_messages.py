"""Requests and answers of the native protocol from the caller's side; no sockets here."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.core.python_values import as_pandas, python_values
from featurestore.core.time import INT64_MIN, Int64Array
from featurestore.errors import ServerError
from featurestore.serve.batches import batch_of_bytes
from featurestore.serve.codec import fixed_array, fixed_dtype
from featurestore.serve.proto import online_pb2 as pb
from featurestore.serve.request import Column, KeyMapping, Readers
from featurestore.serve.response import STATUS

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class AnswerSchema:
    """The columns of answers to one kind of request.

    Attributes:
        views: By column: its view's number, or `len(view_names)` for none.
        groups: Columns of each block.
        rest: Columns in no block.
        complete: Columns that hold a value whatever their status.
    """

    id: int
    schema: pa.Schema
    views: tuple[int, ...]
    view_names: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    rest: tuple[int, ...]
    complete: tuple[int, ...]


@dataclass(frozen=True)
class Received:
    """An answer as it came, for the entity rows of one request or of several that were sent together."""

    shape: AnswerSchema
    message: pb.GetOnlineFeaturesResponse
    rows: int
    arrow: bool

    @cached_property
    def codes(self) -> npt.NDArray[np.int8]:
        """Statuses as numbers; `(features, rows)`."""
        shape = (len(self.shape.schema), self.rows)
        if not self.message.statuses:
            return np.zeros(shape, np.int8)
        return np.frombuffer(self.message.statuses, np.int8).reshape(shape)

    @cached_property
    def blocks(self) -> tuple[npt.NDArray[np.generic], ...]:
        """The blocks' cells; each `(columns, rows)`."""
        kinds = [fixed_dtype(self.shape.schema.field(columns[0]).type) for columns in self.shape.groups]
        return tuple(
            np.frombuffer(block, kind).reshape(-1, self.rows)
            for block, kind in zip(self.message.blocks, kinds, strict=True)
        )

    @cached_property
    def view_event_ns(self) -> Int64Array:
        """Event timestamps by view, and a last row for what comes from none; `(views + 1, rows)`."""
        views = np.array(list(self.message.event_ns), np.int64).reshape(-1, self.rows)
        return np.vstack([views, np.full((1, self.rows), INT64_MIN, np.int64)])

    @cached_property
    def batch(self) -> pa.RecordBatch:
        """What travelled as Arrow."""
        whole = self.shape.schema
        schema = whole if self.arrow else pa.schema([whole.field(at) for at in self.shape.rest])
        return batch_of_bytes(self.message.arrow, schema)


class ClientResponse:
    """An answer: one row per entity row, one column per feature.

    Attributes:
        now_ns: The readers' instant.
        names: The feature columns.
    """

    def __init__(self, readers: Readers, received: Received, first: int = 0) -> None:
        """Hold the rows of a message from `first` on; columns are made when they are asked for."""
        self._readers = readers
        self._received = received
        self._shape = received.shape
        self._rows = slice(first, first + readers.rows)
        self.now_ns = received.message.now_ns
        self.names = tuple(self._shape.schema.names)

    @property
    def num_rows(self) -> int:
        """How many entity rows there were."""
        return self._readers.rows

    def to_arrow(self) -> pa.Table:
        """Return entity columns, then feature columns."""
        table = self._readers.arrow()
        for field, column in zip(self._shape.schema, self._columns(), strict=True):
            table = table.append_column(field, column)
        return table

    def to_pandas(self) -> "pd.DataFrame":
        """Return what `to_arrow` does as a pandas frame; there, integers beside nulls are floats.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        return as_pandas(self.to_arrow())

    def to_dict(self) -> dict[str, list[object]]:
        """Return entity and feature columns as lists of `featurestore.core.python_values`."""
        out: dict[str, list[object]] = {
            name: python_values(c) if isinstance(c, pa.ChunkedArray) else list(c)
            for name, c in self._readers.columns.items()
        }
        for name, column in zip(self.names, self._columns(), strict=True):
            out[name] = python_values(column)
        return out

    def to_numpy(self) -> npt.NDArray[np.generic]:
        """Return the features as a `(features, rows)` matrix, where all have one fixed-width type.

        Raises:
            ServerError: they do not.
        """
        if len(self._shape.groups) != 1 or self._shape.rest or self._received.arrow:
            raise ServerError("the features have several types", hint="use to_arrow()")
        return self._received.blocks[0][:, self._rows]

    def status_codes(self) -> npt.NDArray[np.int8]:
        """Return statuses as numbers; `(features, rows)`."""
        return self._received.codes[:, self._rows]

    def statuses(self) -> dict[str, list[str]]:
        """Return each feature's statuses: PRESENT, NULL_VALUE, NOT_FOUND or OUTSIDE_MAX_AGE."""
        codes = self.status_codes()
        return {n: [STATUS[code] for code in codes[at].tolist()] for at, n in enumerate(self.names)}

    def event_ns(self) -> Int64Array:
        """Return event timestamps; `(features, rows)`, `INT64_MIN` where no row was used."""
        whole = self._received.view_event_ns[:, self._rows]
        return whole[[min(v, len(whole) - 1) for v in self._shape.views]]

    def event_timestamps(self) -> dict[str, list[int | None]]:
        """Return, by feature, the event timestamp of the newest row used, ns since 1970 UTC."""
        times = self.event_ns()
        return {
            name: [None if t == INT64_MIN else t for t in times[at].tolist()]
            for at, name in enumerate(self.names)
        }

    def _columns(self) -> list[pa.Array]:
        received, schema, rows = self._received, self._shape.schema, self._rows
        if received.arrow:
            return [c.slice(rows.start, self.num_rows) for c in received.batch.columns]
        valid = self.status_codes() == 0
        if self._shape.complete:
            valid[list(self._shape.complete)] = True
        out: list[pa.Array] = [None] * len(schema)
        for block, columns in zip(received.blocks, self._shape.groups, strict=True):
            kind = schema.field(columns[0]).type
            for at, column in enumerate(columns):
                out[column] = fixed_array(kind, block[at, rows], valid[column])
        if self._shape.rest:
            for at, array in zip(self._shape.rest, received.batch.columns, strict=True):
                out[at] = array.slice(rows.start, self.num_rows)
        return out


class SchemaCache:
    """The schemas a client has seen, so that the server need not send them again."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._by_name: dict[object, AnswerSchema] = {}

    def id_of(self, name: object) -> int:
        """Return the id of the schema that a kind of request last had; 0 for none."""
        found = self._by_name.get(name)
        return 0 if found is None else found.id

    def received(self, name: object, rows: int, data: bytes, *, arrow: bool) -> Received:
        """Read an answer to `rows` entity rows.

        Raises:
            ServerError: it needs a schema that the server did not send.
        """
        message = pb.GetOnlineFeaturesResponse.FromString(data)
        shape = self._by_name.get(name)
        if message.HasField("schema"):
            if len(self._by_name) > 1024:
                self._by_name.clear()
            shape = self._by_name[name] = _answer_schema(message.schema)
        if shape is None or shape.id != message.schema_id:
            raise ServerError("the answer's schema is not known", hint="ask again")
        return Received(shape, message, rows, arrow)


def _answer_schema(message: pb.Schema) -> AnswerSchema:
    schema = pa.ipc.read_schema(pa.py_buffer(message.arrow))
    groups: dict[str, list[int]] = {}
    rest = []
    for at, field in enumerate(schema):
        if pa.types.is_null(field.type) or fixed_dtype(field.type) is None:
            rest.append(at)
        else:
            groups.setdefault(str(field.type), []).append(at)
    return AnswerSchema(
        message.id,
        schema,
        tuple(message.views),
        tuple(message.view_names),
        tuple(tuple(g) for g in groups.values()),
        tuple(rest),
        tuple(message.complete),
    )


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, whoever the entities are; a text is the name of a feature service or training set."""

    features: str | tuple[str, ...]
    now_ns: int | None = None
    full_feature_names: bool = False
    key_map: KeyMapping = ()
    preprocessing: str = ""
    arrow: bool = False

    def name(self, columns: Iterable[str]) -> tuple[object, ...]:
        """Return what stands for the schema of its answers."""
        return self.features, tuple(columns), self.full_feature_names, self.key_map, self.preprocessing

    def to_bytes(self, schema_id: int) -> bytes:
        """Write it as a request without entities; those may follow as `entity_bytes`."""
        return pb.GetOnlineFeaturesRequest(
            features=() if isinstance(self.features, str) else self.features,
            feature_service=self.features if isinstance(self.features, str) else "",
            full_feature_names=self.full_feature_names,
            now_ns=self.now_ns,
            encoding=pb.ARROW if self.arrow else pb.COLUMNAR,
            schema_id=schema_id,
            key_map=[pb.KeyMapping(alias=a, join_key=k, column=c) for a, k, c in self.key_map],
            preprocessing=self.preprocessing,
        ).SerializeToString()


def entity_bytes(columns: Mapping[str, Column]) -> bytes:
    """Write entity columns; they follow a `Question`'s bytes, as protobuf joins messages by their bytes."""
    entities = [_entity_column(n, c) for n, c in columns.items()]
    return pb.GetOnlineFeaturesRequest(entities=entities).SerializeToString()


def write_request(question: Question, readers: Readers, schema_id: int) -> bytes:
    """Write a request."""
    return question.to_bytes(schema_id) + entity_bytes(readers.columns)


_KINDS: Final[Mapping[type, str]] = {str: "strings", int: "integers", float: "doubles"}


def entity_kind(column: Column) -> str | None:
    """Return the field that carries a column's values as they are; `None` where only Arrow does."""
    if isinstance(column, pa.ChunkedArray) or not len(column):
        return None
    kinds = {type(v) for v in column}
    kind = _KINDS.get(next(iter(kinds))) if len(kinds) == 1 else None
    fits = kind != "integers" or all(-(2**63) <= v < 2**63 for v in column)
    return kind if fits else None


def _entity_column(name: str, column: Column) -> pb.EntityColumn:
    kind = entity_kind(column)
    if kind is not None:
        out = pb.EntityColumn(name=name)
        getattr(out, kind).extend(column)
        return out
    table = Readers({name: column}, len(column)).arrow()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pb.EntityColumn(name=name, arrow=sink.getvalue().to_pybytes())
