"""Requests and answers of the native protocol from the caller's side; no sockets here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.core.time import INT64_MIN, Int64Array
from featurestore.errors import ServerError
from featurestore.serve.codec import fixed_array, fixed_dtype
from featurestore.serve.proto import online_pb2 as pb
from featurestore.serve.request import Column, Readers
from featurestore.serve.response import STATUS


@dataclass(frozen=True)
class AnswerSchema:
    """The columns of answers to one kind of request.

    Attributes:
        views: By column: its view's number, or `len(view_names)` for none.
        groups: Columns of each block.
        rest: Columns in no block.
    """

    id: int
    schema: pa.Schema
    views: tuple[int, ...]
    view_names: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    rest: tuple[int, ...]


class ClientResponse:
    """An answer: one row per entity row, one column per feature.

    Attributes:
        now_ns: The readers' instant.
        names: The feature columns.
    """

    def __init__(
        self, readers: Readers, shape: AnswerSchema, message: pb.GetOnlineFeaturesResponse, *, arrow: bool
    ) -> None:
        """Hold a message; columns are made when they are asked for."""
        self._readers = readers
        self._shape = shape
        self._message = message
        self._arrow = arrow
        self.now_ns = message.now_ns
        self.names = tuple(shape.schema.names)

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

    def to_dict(self) -> dict[str, list[object]]:
        """Return entity and feature columns as Python lists."""
        out: dict[str, list[object]] = {
            name: c.to_pylist() if isinstance(c, pa.ChunkedArray) else list(c)
            for name, c in self._readers.columns.items()
        }
        for name, column in zip(self.names, self._columns(), strict=True):
            out[name] = column.to_pylist()
        return out

    def to_numpy(self) -> npt.NDArray[np.generic]:
        """Return the features as a `(features, rows)` matrix, where all have one fixed-width type.

        Raises:
            ServerError: they do not.
        """
        if len(self._shape.groups) != 1 or self._shape.rest or self._arrow:
            raise ServerError("the features have several types", hint="use to_arrow()")
        dtype = fixed_dtype(self._shape.schema.field(0).type)
        return np.frombuffer(self._message.blocks[0], dtype).reshape(len(self.names), self.num_rows)

    def status_codes(self) -> npt.NDArray[np.int8]:
        """Return statuses as numbers; `(features, rows)`."""
        shape = (len(self.names), self.num_rows)
        if not self._message.statuses:
            return np.zeros(shape, np.int8)
        return np.frombuffer(self._message.statuses, np.int8).reshape(shape)

    def statuses(self) -> dict[str, list[str]]:
        """Return each feature's statuses: PRESENT, NULL_VALUE, NOT_FOUND or OUTSIDE_MAX_AGE."""
        codes = self.status_codes()
        return {n: [STATUS[code] for code in codes[at].tolist()] for at, n in enumerate(self.names)}

    def event_ns(self) -> Int64Array:
        """Return event timestamps; `(features, rows)`, `INT64_MIN` where no row was used."""
        rows = self.num_rows
        views = np.array(list(self._message.event_ns), np.int64).reshape(-1, rows)
        none = np.full((1, rows), INT64_MIN, np.int64)
        whole = np.vstack([views, none]) if len(views) else none
        return whole[[min(v, len(whole) - 1) for v in self._shape.views]]

    def event_timestamps(self) -> dict[str, list[int | None]]:
        """Return, by feature, the event timestamp of the newest row used, ns since 1970 UTC."""
        times = self.event_ns()
        return {
            name: [None if t == INT64_MIN else t for t in times[at].tolist()]
            for at, name in enumerate(self.names)
        }

    def _columns(self) -> list[pa.Array]:
        schema, rows = self._shape.schema, self.num_rows
        if self._arrow:
            return list(pa.ipc.read_record_batch(pa.py_buffer(self._message.arrow), schema).columns)
        valid = self.status_codes() == 0
        out: list[pa.Array] = [None] * len(schema)
        for block, columns in zip(self._message.blocks, self._shape.groups, strict=True):
            kind = schema.field(columns[0]).type
            cells = np.frombuffer(block, fixed_dtype(kind)).reshape(len(columns), rows)
            for at, column in enumerate(columns):
                out[column] = fixed_array(kind, cells[at], valid[column])
        if self._shape.rest:
            part = pa.schema([schema.field(at) for at in self._shape.rest])
            batch = pa.ipc.read_record_batch(pa.py_buffer(self._message.arrow), part)
            for at, array in zip(self._shape.rest, batch.columns, strict=True):
                out[at] = array
        return out


class SchemaCache:
    """The schemas a client has seen, so that the server need not send them again."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._by_name: dict[str, AnswerSchema] = {}

    def id_of(self, name: str) -> int:
        """Return the id of the schema that a kind of request last had; 0 for none."""
        found = self._by_name.get(name)
        return 0 if found is None else found.id

    def response(self, name: str, readers: Readers, data: bytes, *, arrow: bool) -> ClientResponse:
        """Read an answer.

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
        return ClientResponse(readers, shape, message, arrow=arrow)


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
    )


def write_request(
    features: str | Sequence[str],
    readers: Readers,
    *,
    now_ns: int | None,
    full_feature_names: bool,
    arrow: bool,
    schema_id: int,
) -> pb.GetOnlineFeaturesRequest:
    """Write a request; a text is the name of a feature service."""
    return pb.GetOnlineFeaturesRequest(
        features=() if isinstance(features, str) else features,
        feature_service=features if isinstance(features, str) else "",
        entities=[_entity_column(n, c) for n, c in readers.columns.items()],
        full_feature_names=full_feature_names,
        now_ns=now_ns,
        encoding=pb.ARROW if arrow else pb.COLUMNAR,
        schema_id=schema_id,
    )


_KINDS: Final[Mapping[type, str]] = {str: "strings", int: "integers", float: "doubles"}


def _entity_column(name: str, column: Column) -> pb.EntityColumn:
    if not isinstance(column, pa.ChunkedArray) and len(column):
        kinds = {type(v) for v in column}
        kind = _KINDS.get(next(iter(kinds))) if len(kinds) == 1 else None
        fits = kind != "integers" or all(-(2**63) <= v < 2**63 for v in column)
        if kind is not None and fits:
            out = pb.EntityColumn(name=name)
            getattr(out, kind).extend(column)
            return out
    table = Readers({name: column}, len(column)).arrow()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pb.EntityColumn(name=name, arrow=sink.getvalue().to_pybytes())
