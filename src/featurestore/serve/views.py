"""What the online store holds of a view, and how its keys are written."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from featurestore.catalog.refs import Ref
from featurestore.catalog.snapshot import CatalogSnapshot
from featurestore.errors import DefinitionError, SchemaError
from featurestore.resolve.events import Events
from featurestore.resolve.program import ViewProgram, compile_view
from featurestore.serve.codec import Block, RowCodec
from featurestore.serve.entity_keys import KeyEncoder, joined_parts, key_kind, part_encoder, stored_keys


@dataclass(frozen=True)
class OnlineView:
    """A view as the online store keeps it.

    A plain view (newest row decides, no windows) is kept as its features, evaluated once when a row is
    written. Any other view is kept as the columns it reads, and evaluated for each reader; a view over such
    a view as the columns that the last view of the chain reads.

    Attributes:
        program: How its features come from rows.
        key_types: The types of its join keys, in order.
        codec: How its rows are stored.
    """

    program: ViewProgram
    key_types: tuple[pa.DataType, ...]
    codec: RowCodec

    @cached_property
    def table(self) -> str:
        """The name of its table in the store."""
        return self.program.ref

    @cached_property
    def is_plain(self) -> bool:
        """Whether rows are stored as evaluated features: each value is a function of one row alone."""
        return self.program.is_row_by_row

    @cached_property
    def base(self) -> ViewProgram:
        """The program of the chain whose rows are stored."""
        return self.program.chain[-1]

    @cached_property
    def key_encoders(self) -> tuple[KeyEncoder, ...]:
        """One encoder per key column, for keys that come as Python values."""
        return tuple(
            part_encoder(name, kind)
            for name, kind in zip(self.program.join_keys, self.key_types, strict=True)
        )

    def encode_keys(self, columns: Sequence[Sequence[object]]) -> list[bytes | None]:
        """Write keys given as columns of Python values; a key with a null part is `None`.

        Raises:
            SchemaError: a value of the wrong kind; its column is named.
        """
        encoders = self.key_encoders
        if len(encoders) == 1:
            encode = encoders[0]
            return [None if v is None else encode(v) for v in columns[0]]
        parts = [[None if v is None else e(v) for v in c] for e, c in zip(encoders, columns, strict=True)]
        return joined_parts(parts)

    def encode_key_arrays(self, columns: Sequence[pa.Array | pa.ChunkedArray]) -> list[bytes | None]:
        """Write keys given as Arrow columns.

        Raises:
            SchemaError: a column of the wrong kind; it is named.
        """
        for name, kind, column in zip(self.program.join_keys, self.key_types, columns, strict=True):
            check_key_kind(name, kind, column.type)
        return stored_keys(columns)


def stored_events(view: OnlineView, block: Block) -> Events:
    """Return stored rows of a view that is evaluated for each reader."""
    times = view.program.times
    late = times.created is not None or times.delay_ns != 0
    known = block.clock("known") if late else None
    return Events(view.codec.table(block), block.clock("event"), None, known, block.clock("sequence"))


def online_view(snapshot: CatalogSnapshot, ref: Ref) -> OnlineView:
    """Make a view ready for the online store.

    Raises:
        NotFoundError: the view or its source is not in the catalog.
    """
    program = compile_view(snapshot, ref)
    rows = _rows_schema(snapshot, program.chain[-1])
    columns = program.schema if program.is_row_by_row else _inputs_schema(program, rows)
    key_types = tuple(rows.field(key).type for key in program.join_keys)
    return OnlineView(program, key_types, RowCodec(columns))


def check_kept(program: ViewProgram) -> None:
    """Check that the online store keeps a view.

    Raises:
        DefinitionError: it is not to be online, or what it takes to answer has no bound.
    """
    if not program.online:
        raise DefinitionError(
            f"{program.ref} is not kept online", hint="define it with online=True", view=program.ref
        )
    if not program.keys_are_kept:
        raise DefinitionError(
            f"{program.ref} is found by {', '.join(program.join_keys)}, which a view below it computes from "
            "more than one row; it cannot be kept online",
            hint="take the key from the source, or read it with get_historical_features",
            view=program.ref,
        )
    if not program.is_bounded:
        raise DefinitionError(
            f"{program.ref} takes last known values of any age from a view whose values depend on more than "
            "one row; no bounded number of rows answers that",
            hint="give the view that says nulls='last_known' a ttl, or read it with get_historical_features",
            view=program.ref,
        )


def _rows_schema(snapshot: CatalogSnapshot, program: ViewProgram) -> pa.Schema:
    """Return the types of the rows a program reads: keys and times from the source, else from upstream."""
    base = snapshot.schema_of(Ref(program.source))
    if program.upstream is None:
        return base
    own = [f for f in base if f.name not in program.upstream.schema.names]
    return pa.schema([*own, *program.upstream.schema])


def _inputs_schema(program: ViewProgram, rows: pa.Schema) -> pa.Schema:
    """Return the columns to be stored: what the last program of the chain reads, and others from its rows."""
    *above, base = program.chain
    passed = {name for view in above for name in view.values()} & set(base.carried())
    keys = {key for view in program.chain for key in view.join_keys} - set(program.join_keys)
    names = dict.fromkeys([*base.values(), *sorted(passed | keys)])
    return pa.schema([pa.field(n, rows.field(n).type) for n in names])


def check_key_kind(name: str, wanted: pa.DataType, found: pa.DataType) -> None:
    """Check that a key column is of the kind that the view's rows have.

    Raises:
        SchemaError: text where there should be integers, or the other way round.
    """
    if key_kind(found) != key_kind(wanted) and not pa.types.is_null(found):
        raise SchemaError(
            f"entity column {name!r} holds {found}, where the key is {wanted}",
            hint=f"send {key_kind(wanted)} keys",
            column=name,
        )
