"""OnlineBackend: the online store together with the catalog that says what is in it."""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import pyarrow as pa

from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.refs import Ref, parse_ref
from featurestore.catalog.service import FeatureService
from featurestore.catalog.snapshot import CatalogSnapshot
from featurestore.catalog.training_set import KeyMap, TrainingSet
from featurestore.core.clock import Clock, SystemClock
from featurestore.core.names import near
from featurestore.core.time import INT64_MIN, Instant, instant_ns
from featurestore.errors import DefinitionError, FeatureStoreError, NotFoundError
from featurestore.resolve.program import compile_view
from featurestore.serve.erasure import count_keys, erase_keys, export_keys, residue_of
from featurestore.serve.fitted import Lookup, no_preprocessing, preprocessing_in
from featurestore.serve.reader import Asked, ReadPlan, check_now, plan_read, read_features
from featurestore.serve.request import (
    EntityRows,
    KeyMapping,
    Readers,
    key_map_of,
    key_mapping,
    read_entity_rows,
)
from featurestore.serve.response import OnlineResponse
from featurestore.serve.store import Delivery, Edit, OnlineStore
from featurestore.serve.tracing import NO_TRACING, Tracing
from featurestore.serve.views import OnlineView, check_kept, online_view
from featurestore.serve.warming import warm_view
from featurestore.serve.writes import Prepared, merge_rows, prepare_rows
from featurestore.storage.files import AnyPath
from featurestore.storage.suppression import Ledger, no_ledger, read_ledger
from featurestore.temporal.visible import floor_of

Named = str | FeatureView | FeatureService | TrainingSet
Features = Named | Sequence[Named]
_NAMED: Final = (str, FeatureView, FeatureService, TrainingSet)
_PLANS_MAX: Final = 512
_WARM_VIEWS: Final = 256


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What a write did.

    Attributes:
        rows: Rows given, counted once per view.
        dropped: Of these, rows that no reader can ever see: a null key, event or created timestamp, or an
            entity that was erased.
        views: The views that were written, as `view@version`.
        applied: False where the same numbered delivery had been applied before.
    """

    rows: int
    dropped: int
    views: tuple[str, ...]
    applied: bool


class OnlineBackend:
    """Reads and writes features online. Threads may share it; a process opens its own.

    Attributes:
        store: Where the rows are.
        clock: Says when now is.
        tracing: Where reads are traced.
    """

    def __init__(
        self,
        catalog: Callable[[], CatalogSnapshot],
        store: OnlineStore,
        *,
        clock: Clock,
        history_ns: int,
        preprocessing: Lookup = no_preprocessing,
        ledger: Callable[[], Ledger] = no_ledger,
    ) -> None:
        """Read the catalog's newest version; `reload` reads it again.

        Args:
            preprocessing: Finds what was fitted on `dataset@version[:name]`.
            ledger: Reads the store's ledger of erasures: rows of erased entities are never written.
        """
        self.store = store
        self.clock = clock
        self.tracing: Tracing = NO_TRACING
        self._preprocessing = preprocessing
        self._ledger = ledger
        self._catalog = catalog
        self._history_ns = history_ns
        self._replayed = not isinstance(clock, SystemClock)
        self._state = _State(catalog())

    @property
    def snapshot(self) -> CatalogSnapshot:
        """The catalog's version that answers are made from."""
        return self._state.snapshot

    def reload(self) -> bool:
        """Read the catalog's newest version; calls under way finish with the one they began with."""
        snapshot = self._catalog()
        if snapshot.version == self._state.snapshot.version:
            return False
        self._state = _State(snapshot)
        return True

    def get_online_features(
        self,
        features: Features,
        entity_rows: EntityRows,
        *,
        now: Instant | None = None,
        full_feature_names: bool = False,
        key_map: KeyMap | None = None,
        preprocessing: str | None = None,
    ) -> OnlineResponse:
        """Return features as a training row at this very instant would have them.

        Args:
            features: References in order, a feature service, or a training set: its features, under its names
                and key map.
            entity_rows: `{"symbol": ["IBM"]}`, `[{"symbol": "IBM"}]` or an Arrow table; request fields of
                on-demand views stand beside the keys.
            now: The readers' instant; by default the clock's.
            key_map: As for training: join key → entity column, or alias → join key → entity column.
            preprocessing: `dataset@version[:name]`: what was fitted on that version is applied to its
                columns, which then hold what a loader gives: float32, codes as int32, and no nulls. Read when
                first asked for; a new fit takes a new name.

        Raises:
            NotFoundError: an unknown view, feature, service or version; nothing fitted under that name.
            SchemaError: a key column is missing or of the wrong kind.
            DefinitionError: `now` lies further back than what the store keeps.

        Cost:
            One lookup per view and entity: tens of microseconds for one entity of plain views; views with
            windows or `last_known` are evaluated on their rows.
        """
        readers = read_entity_rows(entity_rows)
        plan = self.plan(
            features,
            tuple(readers.columns),
            full_feature_names=full_feature_names,
            key_map=key_mapping(key_map),
            preprocessing=preprocessing or "",
        )
        return self.read(plan, readers, None if now is None else instant_ns(now, what="now"))

    def read(self, plan: ReadPlan, readers: Readers, now_ns: int | None) -> OnlineResponse:
        """Answer readers by a plan that was made before; see `get_online_features`.

        Raises:
            DefinitionError: `now_ns` lies further back than what the store keeps.
        """
        if now_ns is None:
            now_ns = self.clock.now_ns()
            if self._replayed:
                check_now(self.store, plan, now_ns)
        else:
            check_now(self.store, plan, now_ns)
        return read_features(self.store, plan, readers, now_ns, self.tracing)

    def plan(
        self,
        features: Features,
        entity_columns: tuple[str, ...],
        *,
        full_feature_names: bool = False,
        key_map: KeyMapping = (),
        preprocessing: str = "",
    ) -> ReadPlan:
        """Return the plan of a read; made once per what is asked, entity columns and catalog version."""
        state = self._state
        key = (
            (features,) if isinstance(features, _NAMED) else tuple(features),
            entity_columns,
            full_feature_names,
            key_map,
            preprocessing,
        )
        plan = state.plans.get(key)
        if plan is None:
            fitted = self._preprocessing(preprocessing) if preprocessing else None
            asked = Asked(feature_refs_of(features), full_feature_names, key_map_of(key_map), fitted)
            plan = plan_read(state.snapshot, asked, entity_columns)
            if len(state.plans) >= _PLANS_MAX:
                state.plans.clear()
            state.plans[key] = plan
        return plan

    def write_rows(self, view: str, table: pa.Table, *, producer: str = "", sequence: int = 0) -> WriteResult:
        """Write rows of a view's source to that view alone; durable when this returns.

        Args:
            view: `view` or `view@version`.
            table: Rows in source order.
            producer: With `sequence`, numbers deliveries so that each is applied once.

        Raises:
            SchemaError: a column is missing or of another type than the catalog recorded.
        """
        ref = parse_ref(view)
        return self._write([self.online_view(ref)], table, _delivery(producer, sequence, "view"))

    def push(self, source: str, table: pa.Table, *, producer: str = "", sequence: int = 0) -> WriteResult:
        """Write rows of a source to every online view over it; durable when this returns.

        Raises:
            NotFoundError: an unknown source, or one that no online view reads.
            SchemaError: a column is missing or of another type than the catalog recorded.
        """
        views = self.views_over(source)
        return self._write(views, table, _delivery(producer, sequence, "source"))

    def online_view(self, ref: Ref) -> OnlineView:
        """Return a view as the store keeps it.

        Raises:
            DefinitionError: the view is not kept online.
        """
        state = self._state
        whole = ref.whole()
        found = state.views.get(whole)
        if found is None:
            found = online_view(state.snapshot, whole)
            check_kept(found.program)
            self.store.open_table(found.table, found.codec.fingerprint)
            state.views[whole] = found
        return found

    def keeps(self, ref: Ref) -> bool:
        """Say whether a view is kept online: it is to be, and its rows can be told one by one.

        Raises:
            NotFoundError: no such view.
        """
        return compile_view(self._state.snapshot, ref.whole()).can_be_online

    def views_over(self, source: str) -> list[OnlineView]:
        """Return the online views whose rows come from a source, through other views too.

        Raises:
            NotFoundError: an unknown source, or one that no online view reads.
        """
        state = self._state
        found = state.by_source.get(source)
        if found is None:
            state.snapshot.source(parse_ref(source))
            views = [
                self.online_view(Ref(d.name))
                for d in state.snapshot.definitions("feature_view")
                if isinstance(d, FeatureView) and self.keeps(Ref(d.name))
            ]
            for view in views:
                state.by_source.setdefault(view.program.source, []).append(view)
            found = state.by_source.get(source)
        if not found:
            raise NotFoundError(
                f"no online view reads source {source!r}", hint=near(source, state.by_source), source=source
            )
        return found

    def erase(self, entity: str, keys: EntityRows) -> int:
        """Delete entities from every online view, with every byte that the store keeps of them.

        Views over the same rows that are read by other keys are emptied: write them again. What keeps late
        rows out afterwards is the ledger of erasures, which the caller has written before.

        Returns:
            How many (view, key) pairs of the entities there were.

        Raises:
            OnlineStoreError: bytes stayed.
        """
        return erase_keys(self, entity, keys)

    def count(self, entity: str, keys: EntityRows) -> int:
        """Count the (view, key) pairs of entities, as `erase` would."""
        return count_keys(self, entity, keys)

    def residue(self, entity: str, keys: EntityRows) -> dict[str, int]:
        """Count erased entities of which something is still there, by where."""
        return residue_of(self, entity, keys)

    def export(self, entity: str, keys: EntityRows) -> dict[str, pa.Table]:
        """Return everything the online store holds of entities, by view."""
        return export_keys(self, entity, keys)

    def warm(self) -> None:
        """Do once, on made-up rows, what calls will do, so that kernels are there before them.

        Cost:
            A second for the kernels, and 3 ms a view; views share kernels, so the first few hundred do.
        """
        state = self._state
        names = (d.name for d in state.snapshot.definitions("feature_view"))
        kept = (Ref(name) for name in names if self.keeps(Ref(name)))
        for ref in itertools.islice(kept, _WARM_VIEWS):
            view = self.online_view(ref)
            source = state.snapshot.schema_of(Ref(view.program.source), "source")
            with contextlib.suppress(FeatureStoreError):
                warm_view(view, source)

    def newest_events(self) -> dict[str, int]:
        """Return the newest event written to each table, ns since 1970 UTC; the clock bounds it."""
        floors = {table: self.store.floor_ns(table) for table in self.store.tables()}
        return {table: floor + self._history_ns for table, floor in floors.items() if floor != INT64_MIN}

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def _write(self, views: Sequence[OnlineView], table: pa.Table, delivery: Delivery | None) -> WriteResult:
        """Write rows but those of erased entities; an erasure in between is heard of in the commit."""
        while True:
            ledger = self._ledger()
            kept = ledger.suppression().remaining(table)
            prepared = [prepare_rows(view, kept) for view in views]
            edits = [
                self._edit(view, rows, ledger.number)
                for view, rows in zip(views, prepared, strict=True)
                if rows.keys
            ]
            try:
                applied = self.store.update(edits, delivery) if edits else True
            except _LedgerMovedError:
                continue
            unseen = (table.num_rows - kept.num_rows) * len(views)
            return WriteResult(
                rows=table.num_rows * len(views),
                dropped=unseen + sum(rows.dropped for rows in prepared),
                views=tuple(view.table for view in views),
                applied=applied,
            )

    def _edit(self, view: OnlineView, prepared: Prepared, ledger_at: int) -> Edit:
        now_ns = self.clock.now_ns()
        events = prepared.block.clock("event")

        def floor(before: int) -> int:
            return floor_of(now_ns, events, self._history_ns, before)

        def merge(old: Sequence[bytes | None], at_ns: int) -> Sequence[bytes | None]:
            if self._ledger().number != ledger_at:
                raise _LedgerMovedError("an entity was erased meanwhile")
            return merge_rows(view, prepared, old, at_ns=at_ns)

        return Edit(view.table, prepared.keys, merge, floor)


class _LedgerMovedError(FeatureStoreError):
    """An entity was erased after a write had looked at the ledger."""

    retryable = True


class _State:
    """A catalog version with what was derived from it; replaced whole, so that readers never mix two."""

    def __init__(self, snapshot: CatalogSnapshot) -> None:
        self.snapshot = snapshot
        self.plans: dict[object, ReadPlan] = {}
        self.views: dict[Ref, OnlineView] = {}
        self.by_source: dict[str, list[OnlineView]] = {}


def feature_refs_of(features: Features) -> list[Ref]:
    """Turn what callers name into references: texts, views, services, or one of these alone.

    Raises:
        DefinitionError: nothing was asked for, or a text is not a reference.
    """
    if isinstance(features, _NAMED):
        features = [features]
    if not features:
        raise DefinitionError("no features were asked for", hint='give ["view:feature"] or a feature service')
    return [parse_ref(f) if isinstance(f, str) else Ref(f.name) for f in features]


def _delivery(producer: str, sequence: int, what: str) -> Delivery | None:
    if not producer:
        return None
    if not 0 < sequence < 2**63:
        raise DefinitionError(
            f"delivery {sequence} of producer {producer!r} to a {what}", hint="number deliveries from 1"
        )
    return Delivery(producer, sequence)


def open_backend(
    catalog: Callable[[], CatalogSnapshot],
    online: str,
    *,
    clock: Clock | None = None,
    history_ns: int | None = None,
    root: AnyPath | None = None,
) -> OnlineBackend:
    """Open the online store beside a catalog.

    Args:
        root: The feature store's root, where dataset versions keep what was fitted on them, and where the
            ledger of erasures is.
        online: A folder (LMDB), or `redis://…`, `rediss://…`, `unix://…`.
        clock: The wall clock by default; a fixed one replays the past.
        history_ns: How far behind the newest event readers may still look; by default 0, and 1 s where
            readers on other machines may have clocks that lag.

    Raises:
        OnlineStoreError: the store cannot be opened.
        MissingDependencyError: the client library of the store is not installed.
    """
    store: OnlineStore
    if online.startswith(("redis://", "rediss://", "unix://")):
        from featurestore.serve.redis_store import RedisStore  # noqa: PLC0415 -- an optional adapter

        store = RedisStore(online)
        history_ns = 1_000_000_000 if history_ns is None else history_ns
    else:
        from featurestore.serve.lmdb_store import LmdbStore  # noqa: PLC0415 -- opened only where used

        store = LmdbStore(online)
    return OnlineBackend(
        catalog,
        store,
        clock=clock or SystemClock(),
        history_ns=history_ns or 0,
        preprocessing=no_preprocessing if root is None else preprocessing_in(root),
        ledger=no_ledger if root is None else partial(read_ledger, root),
    )
