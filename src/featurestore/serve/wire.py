"""The native protocol as bytes in, bytes out; no sockets here.

A plan's layout is made once: which columns form which block, and where their bytes lie in a stored record. A
single reader of plain views is answered by cutting those bytes out of what the store returned.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash
from google.protobuf.message import DecodeError

from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.on_demand import OnDemandFeatureView
from featurestore.catalog.service import FeatureService
from featurestore.errors import DefinitionError, LimitError, SchemaError
from featurestore.resolve.program import join_keys
from featurestore.serve.answers import Answer, OneReader, PlainAnswer
from featurestore.serve.backend import OnlineBackend
from featurestore.serve.batches import batch_to_bytes
from featurestore.serve.codec import HEADER_BYTES, fixed_dtype, fixed_values
from featurestore.serve.config import Limits
from featurestore.serve.proto import online_pb2 as pb
from featurestore.serve.reader import ReadPlan
from featurestore.serve.request import Column, Readers
from featurestore.serve.response import OnlineResponse


@dataclass(frozen=True, slots=True)
class Block:
    """Columns of one fixed-width type.

    Attributes:
        columns: Positions in the answer.
        runs: For a single reader: (view, first byte, byte after the last) in the views' stored values.
        pack: Where all its columns are cells of one pack of one plain view: the view, the pack's field, and
            the cells, `None` for all in order.
    """

    dtype: np.dtype[np.generic]
    columns: tuple[int, ...]
    runs: tuple[tuple[int, int, int], ...]
    pack: tuple[int, str, npt.NDArray[np.int64] | None] | None


@dataclass(frozen=True)
class Layout:
    """How a plan's answers are written.

    Attributes:
        rest: Columns in no block; they travel as an Arrow batch.
        full: By view, the bits of the features that are asked for; `masks` are the same as bytes.
    """

    schema_id: int
    schema: pb.Schema
    blocks: tuple[Block, ...]
    rest: tuple[int, ...]
    full: tuple[int, ...]
    masks: tuple[npt.NDArray[np.uint8], ...]


def layout_of(plan: ReadPlan) -> Layout:
    """Lay out a plan's answers; made once per plan."""
    found = _layouts.get(id(plan))
    if found is not None and found[0] is plan:
        return found[1]
    layout = _new_layout(plan)
    if len(_layouts) >= 1024:
        _layouts.clear()
    _layouts[id(plan)] = (plan, layout)
    return layout


_layouts: Final[dict[int, tuple[ReadPlan, Layout]]] = {}


def _new_layout(plan: ReadPlan) -> Layout:
    numbers = {read.key: at for at, read in enumerate(plan.reads)}
    groups: dict[str, list[int]] = {}
    rest: list[int] = []
    for at, field in enumerate(plan.schema):
        if pa.types.is_null(field.type) or fixed_dtype(field.type) is None:
            rest.append(at)
        else:
            groups.setdefault(str(field.type), []).append(at)
    schema = pb.Schema(
        names=plan.names,
        views=[numbers.get(view, len(plan.reads)) for view, _ in plan.origins],
        view_names=[read.program.ref for read in plan.reads],
        arrow=plan.schema.serialize().to_pybytes(),
        complete=sorted(plan.transforms),
    )
    schema.id = xxhash.xxh3_64_intdigest(schema.SerializeToString(deterministic=True)) or 1
    full = [0] * len(plan.reads)
    for key, name in plan.origins:
        if key in numbers:
            view = numbers[key]
            full[view] |= 1 << max(0, plan.reads[view].view.codec.schema.get_field_index(name))
    masks = tuple(
        np.frombuffer(bits.to_bytes(read.view.codec.mask_bytes, "little"), np.uint8)
        for bits, read in zip(full, plan.reads, strict=True)
    )
    blocks = tuple(_block(plan, columns) for columns in groups.values())
    return Layout(schema.id, schema, blocks, tuple(rest), tuple(full), masks)


def _block(plan: ReadPlan, columns: Sequence[int]) -> Block:
    dtype = fixed_dtype(plan.schema.field(columns[0]).type)
    if dtype is None:
        raise SchemaError("a block of variable width")
    runs: list[tuple[int, int, int]] = []
    for column in columns if plan.one else ():
        view, at = plan.cells[column]
        codec = plan.reads[view].view.codec
        pack, cell = codec.places[at]
        fields = codec.record.fields
        start = HEADER_BYTES + (0 if fields is None else fields[pack.field][1]) + cell * dtype.itemsize
        if runs and runs[-1][0] == view and runs[-1][2] == start:
            runs[-1] = (view, runs[-1][1], start + dtype.itemsize)
        else:
            runs.append((view, start, start + dtype.itemsize))
    return Block(dtype, tuple(columns), tuple(runs), _pack_of(plan, columns))


def _pack_of(plan: ReadPlan, columns: Sequence[int]) -> tuple[int, str, npt.NDArray[np.int64] | None] | None:
    numbers = {read.key: at for at, read in enumerate(plan.reads)}
    cells: list[int] = []
    found = None
    for column in columns:
        key, name = plan.join.columns[column].cell
        view = numbers.get(key)
        if view is None or not plan.reads[view].view.is_plain:
            return None
        codec = plan.reads[view].view.codec
        pack, cell = codec.places[codec.schema.get_field_index(name)]
        if found not in {None, (view, pack)}:
            return None
        found = (view, pack)
        cells.append(cell)
    if found is None:
        return None
    whole = cells == list(range(len(found[1].columns)))
    return found[0], found[1].field, None if whole else np.array(cells)


def parse_request(data: bytes) -> pb.GetOnlineFeaturesRequest:
    """Read a request.

    Raises:
        DefinitionError: the bytes are not one.
    """
    request = pb.GetOnlineFeaturesRequest()
    try:
        request.ParseFromString(data)
    except DecodeError as error:
        raise DefinitionError("the request is not a GetOnlineFeaturesRequest", hint=str(error)) from error
    return request


class RequestReader:
    """Reads requests. A list of features that comes again, byte for byte, is not parsed again.

    Joined bytes are joined messages in protobuf: what follows the bytes of a whole message is a message, too.
    Features are its first fields, so callers who ask the same of ever other entities differ behind them.
    """

    def __init__(self) -> None:
        """Know no list yet."""
        self._heads: dict[bytes, tuple[bytes, str | tuple[str, ...]]] = {}

    def read(self, data: bytes) -> tuple[pb.GetOnlineFeaturesRequest, str | tuple[str, ...]]:
        """Return a request and what it asks for: features, or a service; the request itself may lack them.

        Raises:
            DefinitionError: the bytes are no request, or one that contradicts itself.

        Cost: of long lists a tenth of reading them; 64 lists of 64 KiB are held at most.
        """
        head, features = self._heads.get(data[:_HEAD_MIN], _NO_HEAD)
        if head and data.startswith(head):
            rest = parse_request(data[len(head) :])
            if not rest.features and not rest.feature_service:
                return rest, features
        request = parse_request(data)
        if bool(request.feature_service) == bool(request.features):
            raise DefinitionError("give either features or a feature_service")
        features = request.feature_service or tuple(request.features)
        head = pb.GetOnlineFeaturesRequest(features=request.features).SerializeToString()
        if _HEAD_MIN <= len(head) <= _HEAD_MAX and data.startswith(head):
            if len(self._heads) >= _HEADS:
                self._heads.clear()
            self._heads[data[:_HEAD_MIN]] = head, features
        return request, features


_HEADS: Final = 64
_HEAD_MIN: Final = 64
_HEAD_MAX: Final = 1 << 16
_NO_HEAD: Final[tuple[bytes, str | tuple[str, ...]]] = (b"", "")


def encode_response(request: pb.GetOnlineFeaturesRequest, response: OnlineResponse) -> bytes:
    """Write an answer as the bytes of a GetOnlineFeaturesResponse."""
    layout = layout_of(response.plan)
    out = pb.GetOnlineFeaturesResponse(
        schema_id=layout.schema_id,
        rows=response.num_rows,
        now_ns=response.now_ns,
        request_id=request.request_id,
        schema=None if request.schema_id == layout.schema_id else layout.schema,
    )
    if request.encoding == pb.COLUMNAR:
        _write_columns(out, response, layout)
    else:
        _write_arrow(out, response)
    return out.SerializeToString()


def check_cells(rows: int, features: int, limits: Limits) -> None:
    """Check a request's size before any work.

    Raises:
        LimitError: too many rows, or rows times features.
    """
    if rows > limits.rows or rows * features > limits.cells:
        raise LimitError(
            f"{rows} rows of {features} features were asked for",
            hint=f"at most {limits.rows} rows and {limits.cells} cells a request; send several, or use a "
            "bulk read",
        )


def readers_of(columns: Sequence[pb.EntityColumn], limits: Limits) -> Readers:
    """Read a request's entity columns.

    Raises:
        SchemaError: columns of different lengths or of one name, or bytes that are no Arrow column.
        LimitError: too long a key.
    """
    out: dict[str, Column] = {}
    rows = -1
    for column in columns:
        if column.arrow:
            values: Column = _arrow_column(column, limits)
        elif column.strings:
            values = list(column.strings)
            if max(map(len, values)) > limits.key_bytes:
                raise LimitError(
                    f"column {column.name!r} holds a text over {limits.key_bytes} characters",
                    hint="shorten the key",
                )
        else:
            values = list(column.integers) or list(column.doubles)
        if rows not in {-1, len(values)}:
            raise SchemaError(
                f"entity column {column.name!r} has {len(values)} values, where others have {rows}",
                column=column.name,
            )
        rows = len(values)
        out[column.name] = values
    if len(out) != len(columns):
        raise SchemaError("two entity columns have one name", hint="give each column once")
    return Readers(out, max(rows, 0))


def _arrow_column(column: pb.EntityColumn, limits: Limits) -> pa.ChunkedArray:
    table = read_ipc(column.arrow, limits.message_bytes * 4)
    if table.num_columns != 1:
        raise SchemaError(
            f"entity column {column.name!r} holds {table.num_columns} Arrow columns", column=column.name
        )
    return table.column(0)


def read_ipc(data: bytes, max_bytes: int) -> pa.Table:
    """Read an Arrow IPC stream that a stranger sent.

    Raises:
        SchemaError: it is not one, or its contents contradict each other.
        LimitError: it unpacks to more than `max_bytes`.
    """
    try:
        return _read_batches(data, max_bytes)
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise SchemaError("the bytes are not an Arrow IPC stream", hint=str(error)[:200]) from error


def _read_batches(data: bytes, max_bytes: int) -> pa.Table:
    batches, total = [], 0
    # Inside a message the columns begin anywhere; kernels want their own alignment.
    options = pa.ipc.IpcReadOptions(ensure_alignment=pa.ipc.Alignment.DataTypeSpecific)
    with pa.ipc.open_stream(pa.py_buffer(data), options=options) as stream:
        # Every name and zone is read once here: a stranger's may not be UTF-8.
        _ = [(field.name, str(field.type)) for field in stream.schema]
        for batch in stream:
            batch.validate(full=True)
            total += batch.nbytes
            if total > max_bytes:
                raise LimitError(f"the Arrow stream holds more than {max_bytes} bytes")
            batches.append(batch)
        return pa.Table.from_batches(batches, stream.schema)


def _write_columns(out: pb.GetOnlineFeaturesResponse, response: OnlineResponse, layout: Layout) -> None:
    answers = list(response.answers.values())
    ones = [a for a in answers if isinstance(a, OneReader)]
    if response.plan.one and len(ones) == len(answers):
        _write_one(out, ones, response, layout)
    else:
        for block in layout.blocks:
            out.blocks.append(_block_bytes(response, block, answers))
        wholes = zip(answers, layout.masks, strict=True)
        if response.computed or not all(_is_whole(answer, need) for answer, need in wholes):
            codes = response.status_codes()
            out.statuses = codes.tobytes() if codes.any() else b""
        for answer in answers:
            out.event_ns.extend(answer.event_ns.tolist())
    if layout.rest:
        cells = response.plan.join.columns
        arrays = [response.array(cells[at].cell) for at in layout.rest]
        batch = pa.RecordBatch.from_arrays(arrays, names=[cells[at].name for at in layout.rest])
        out.arrow = batch_to_bytes(batch)


def _write_one(
    out: pb.GetOnlineFeaturesResponse, ones: Sequence[OneReader], response: OnlineResponse, layout: Layout
) -> None:
    raw = [one.raw for one in ones]
    for block in layout.blocks:
        parts = [
            value[start:stop] if (value := raw[view]) is not None else b"\0" * (stop - start)
            for view, start, stop in block.runs
        ]
        out.blocks.append(parts[0] if len(parts) == 1 else b"".join(parts))
    if any(one.lacks(full) for one, full in zip(ones, layout.full, strict=True)):
        out.statuses = bytes([ones[view].status_at(at) for view, at in response.plan.cells])
    out.event_ns.extend([one.event for one in ones])


def _is_whole(answer: Answer, need: npt.NDArray[np.uint8]) -> bool:
    """Whether all cells that were asked of a plain view hold a value."""
    if not isinstance(answer, PlainAnswer) or answer.row_status.any():
        return False
    return bool((answer.block.records["mask"] & need == need).all())


def _block_bytes(response: OnlineResponse, block: Block, answers: Sequence[Answer]) -> bytes:
    """Return a block's cells, column after column."""
    if block.pack is not None:
        view, field, cells = block.pack
        answer = answers[view]
        if isinstance(answer, PlainAnswer):
            matrix = answer.block.records[field].T
            return (matrix if cells is None else matrix[cells]).tobytes()
    return b"".join([_cells(response, at, block.dtype) for at in block.columns])


def _cells(response: OnlineResponse, at: int, dtype: np.dtype[np.generic]) -> bytes:
    cell = response.plan.join.columns[at].cell
    answer = response.answers.get(cell[0])
    if isinstance(answer, PlainAnswer):
        pack, place = answer.codec.places[answer.codec.schema.get_field_index(cell[1])]
        return answer.matrices[pack.field][:, place].tobytes()
    return fixed_values(response.array(cell), dtype).tobytes()


def _write_arrow(out: pb.GetOnlineFeaturesResponse, response: OnlineResponse) -> None:
    codes = response.status_codes()
    out.statuses = codes.tobytes() if codes.any() else b""
    for answer in response.answers.values():
        out.event_ns.extend(answer.event_ns.tolist())
    out.arrow = batch_to_bytes(response.features())


def push_rows(backend: OnlineBackend, request: pb.PushRequest, table: pa.Table) -> bytes:
    """Apply a push; returns the bytes of a PushResponse once the rows are durable.

    Raises:
        NotFoundError: no such source.
        SchemaError: the rows do not fit it.
    """
    result = backend.push(request.source, table, producer=request.producer, sequence=request.sequence)
    return pb.PushResponse(
        rows=result.rows, dropped=result.dropped, applied=result.applied, views=result.views
    ).SerializeToString()


def parse_push(data: bytes) -> pb.PushRequest:
    """Read a push.

    Raises:
        DefinitionError: the bytes are not one.
    """
    try:
        return pb.PushRequest.FromString(data)
    except DecodeError as error:
        raise DefinitionError("the request is not a PushRequest", hint=str(error)) from error


def list_features(backend: OnlineBackend) -> bytes:
    """Return the bytes of a ListFeaturesResponse."""
    snapshot = backend.snapshot
    out = pb.ListFeaturesResponse(catalog_version=snapshot.version)
    for definition in snapshot.definitions():
        if isinstance(definition, FeatureService):
            out.services.add(name=definition.name, features=[str(f) for f in definition.features])
        elif isinstance(definition, (FeatureView, OnDemandFeatureView)):
            if isinstance(definition, FeatureView):
                if not definition.online:
                    continue
                keys = join_keys(snapshot, definition.entities)
            else:
                keys = tuple(definition.request)
            schema = snapshot.schema_of(definition.name)
            version = snapshot.version_of(definition.name)
            for name in definition.feature_names:
                out.features.add(
                    view=definition.name,
                    version=version,
                    name=name,
                    type=str(schema.field(name).type),
                    join_keys=keys,
                )
    return out.SerializeToString()
