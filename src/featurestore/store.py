"""FeatureStore: the facade. It opens rooms when they are needed and holds no rule of its own."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from featurestore.catalog.definition import Definition
from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.refs import parse_ref
from featurestore.catalog.service import FeatureService
from featurestore.catalog.source import Source
from featurestore.core.clock import Clock, SystemClock
from featurestore.core.config import StoreConfig, store_config
from featurestore.core.names import near
from featurestore.core.time import Instant, instant_ns
from featurestore.errors import DefinitionError
from featurestore.settings import read_settings, user_name

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.catalog.catalog import Catalog, Commit
    from featurestore.catalog.plan import Plan
    from featurestore.dataset import Dataset
    from featurestore.materialize.context import Context
    from featurestore.materialize.executors import Executor
    from featurestore.materialize.ingest import IngestResult
    from featurestore.materialize.progress import Progress
    from featurestore.materialize.result import MaterializeResult
    from featurestore.materialize.retrieval import RetrievalJob
    from featurestore.materialize.subjects import EraseReport
    from featurestore.materialize.versions import VersionDiff, VersionInfo
    from featurestore.serve.answer_log import OnlineReport
    from featurestore.serve.backend import OnlineBackend, WriteResult
    from featurestore.serve.flight_server import FlightFront
    from featurestore.serve.response import OnlineResponse
    from featurestore.serve.server import ServerHandle

PUSH_TO: Final = ("both", "online", "offline")

Features = Sequence[str | Definition] | FeatureService | str


class FeatureStore:
    """A feature store: a folder or URL that holds a catalog, datasets and an online store.

    Attributes:
        root: The folder or URL.
        config: Its settings, from `feature_store.yaml` unless given.
    """

    def __init__(
        self,
        root: str | PathLike[str] = ".",
        config: StoreConfig | Mapping[str, Any] | None = None,
        *,
        clock: Clock | None = None,
    ) -> None:
        """Open a store; nothing is read or written but the settings.

        Raises:
            DefinitionError: the settings hold an unknown key or a value that cannot be right.
        """
        self.root = fspath(root)
        self.config = (
            config
            if isinstance(config, StoreConfig)
            else store_config(read_settings(self.root) if config is None else config)
        )
        self._clock = clock or SystemClock()
        self._catalog: Catalog | None = None
        self._online: OnlineBackend | None = None

    def __repr__(self) -> str:
        return f"FeatureStore({self.root!r})"

    # -- definitions ---------------------------------------------------------------------------------

    @property
    def catalog(self) -> "Catalog":
        """What exists, what it means and what it depends on, at every version."""
        if self._catalog is None:
            from featurestore.catalog.catalog import open_catalog

            self._catalog = open_catalog(
                self.root,
                storage_options=self.config.storage_options,
                clock=self._clock,
                read_schema=self._source_schema,
                author=user_name(),
            )
        return self._catalog

    def plan(self, objects: Sequence[Definition] | None = None, *, complete: bool = False) -> "Plan":
        """Say what `apply` would change, and check it against the sources as they are now.

        Args:
            objects: Definitions; what they hold by reference comes along. `None`: all definitions in the
                `.py` files beside `feature_store.yaml`.
            complete: Whether what is not among the objects is to be removed.

        Raises:
            DefinitionError: a definition that cannot be right, or two of one name.
            LeakageError: a definition that could see the future.
            NotFoundError: a source's file or an object that is referred to is missing.
            SchemaError: an unknown column or a type that does not fit.
        """
        found = self._definitions() if objects is None else list(objects)
        return self.catalog.plan(found, complete=complete)

    def apply(
        self,
        objects: "Sequence[Definition] | Plan | None" = None,
        *,
        complete: bool = False,
        message: str = "",
        author: str = "",
        expected_head: int | None = None,
    ) -> "Commit":
        """Commit definitions as one catalog version; applying the same again changes nothing.

        Returns:
            The commit, or the newest one where there was nothing to change.

        Raises:
            CommitConflictError: someone else applied since `expected_head`.
            DefinitionError: as for `plan`, which is done first.
        """
        given = self._definitions() if objects is None else objects
        commit = self.catalog.apply(
            given, complete=complete, message=message, author=author, expected_head=expected_head
        )
        if self._online is not None:
            self._online.reload()
        return commit

    # -- writing -------------------------------------------------------------------------------------

    def ingest(self, source: Source | str, data: Any) -> "IngestResult":
        """Append rows to a source: anything with the Arrow PyCapsule protocol, columns exactly as there.

        Raises:
            SchemaError: a column is missing, unknown or of another type.
        """
        from featurestore.materialize.ingest import ingest

        name = source if isinstance(source, str) else source.name
        return ingest(self._context(), parse_ref(name), data)

    def materialize(
        self,
        name: str,
        start: Instant | None = None,
        end: Instant | None = None,
        executor: "Executor | str | None" = None,
        *,
        progress: "Progress | None" = None,
    ) -> "MaterializeResult":
        """Write a new version of a training set or a view; the same inputs again write nothing.

        A view with `online=True` also has its newest rows written to the online store, where one can
        keep it: a view over a view whose values depend on several rows is read from history alone.

        Args:
            start: Rows from here on, included; `None`: from the first.
            end: Rows before this; `None`: to the last.

        Raises:
            NotFoundError: no such training set or view.
            CommitConflictError: another materialization of it committed first.
        """
        from featurestore.materialize.training_set import materialize

        start_ns = None if start is None else instant_ns(start, what="start")
        end_ns = None if end is None else instant_ns(end, what="end")
        result = materialize(
            self._context(), name, start_ns=start_ns, end_ns=end_ns, executor=executor, progress=progress
        )
        self._write_online(name, end_ns)
        return result

    def materialize_incremental(
        self, name: str, executor: "Executor | str | None" = None, *, progress: "Progress | None" = None
    ) -> "MaterializeResult":
        """Write a new version from what changed in the sources since the last; equal to a full one.

        Raises:
            NotFoundError: no such training set or view.
        """
        from featurestore.materialize.incremental import materialize_incremental

        result = materialize_incremental(self._context(), name, executor=executor, progress=progress)
        self._write_online(name, None)
        return result

    def push(self, source: Source | str, data: Any, *, to: str = "both") -> "WriteResult | None":
        """Hand over new rows of a source as they happen.

        Args:
            to: `both` appends them to the source and updates every online view over it; `online` and
                `offline` do one of the two.

        Returns:
            What the online store took; `None` for `offline`.

        Raises:
            DefinitionError: `to` is none of these.
        """
        if to not in PUSH_TO:
            raise DefinitionError(f"push to {to!r}", hint=near(to, PUSH_TO))
        name = source if isinstance(source, str) else source.name
        if to != "online":
            self.ingest(name, data)
        return None if to == "offline" else self.online.push(name, data)

    # -- training ------------------------------------------------------------------------------------

    def get_historical_features(
        self,
        spine: Any,
        features: Features,
        *,
        full_feature_names: bool = False,
        as_of: Instant | None = None,
        timestamps: bool = False,
        timestamp_field: str | None = None,
        key_map: Mapping[str, Any] | None = None,
    ) -> "RetrievalJob":
        """Join features onto a spine as each was known at its row's time: one row out per row in.

        Args:
            spine: Keys, an event timestamp and anything else; any Arrow PyCapsule table, or an iterator of
                record batches for spines larger than memory.
            as_of: Rows known only after this instant stay invisible.
            timestamps: Add each view's event timestamp as `view__event_timestamp`.
            timestamp_field: The spine's event timestamp; by default the only column of that kind, or the one
                named as the views' sources name theirs.

        Raises:
            NotFoundError: an unknown view or feature.
            SchemaError: the spine lacks a key or a time.
        """
        from featurestore.materialize.retrieval import historical_features

        return historical_features(
            self._context(),
            spine,
            self._refs(features),
            full_feature_names=full_feature_names,
            as_of_ns=None if as_of is None else instant_ns(as_of, what="as_of"),
            timestamps=timestamps,
            timestamp_field=timestamp_field,
            key_map=key_map or {},
        )

    def dataset(self, name: str, version: int | str | None = None) -> "Dataset":
        """Open one immutable version of a materialized training set or view.

        Args:
            version: A number, a tag, or an ISO time (the version that was newest then); `None`: the newest.

        Raises:
            NotFoundError: no such dataset or version, or a time before the first.
        """
        from featurestore.dataset import open_dataset

        return open_dataset(self._context(), name, version)

    def datasets(self) -> list[str]:
        """Return the names of the training sets and views that have a version to read."""
        from featurestore.materialize.versions import published_names

        return published_names(self._context())

    def sql(self, query: str) -> "pa.Table":
        """Query the newest versions of all datasets with DuckDB SQL, each under its name; read-only.

        Raises:
            DefinitionError: SQL that is not one SELECT, or that names something else.
            ExpressionError: it failed on the data.
        """
        from featurestore.storage.duckdb_sql import run_query

        return run_query(query, {name: self.dataset(name) for name in self.datasets()})

    def history(self, name: str) -> "list[VersionInfo]":
        """Return the versions of a dataset, oldest first."""
        from featurestore.materialize.versions import history

        return history(self._context(), name)

    def diff(self, name: str, older: int | str, newer: int | str) -> "VersionDiff":
        """Say which rows two versions of a dataset do not share, by partition."""
        from featurestore.materialize.versions import diff

        return diff(self._context(), name, older, newer)

    def rollback(self, name: str, version: int | str) -> "MaterializeResult":
        """Make an older version the newest again, as a new version."""
        from featurestore.materialize.versions import rollback

        return rollback(self._context(), name, version)

    def pin(self, name: str, version: int | str, tag: str) -> None:
        """Name a version and keep it from being vacuumed."""
        from featurestore.materialize.versions import pin

        pin(self._context(), name, version, tag)

    def unpin(self, name: str, version: int | str | None = None, tag: str | None = None) -> None:
        """Take a tag away, or every tag of a version; the version stays until a vacuum."""
        from featurestore.materialize.versions import unpin

        unpin(self._context(), name, version, tag)

    def compact(self, name: str) -> "MaterializeResult":
        """Rewrite small files into large ones, as a new version of the same content."""
        from featurestore.materialize.versions import compact

        return compact(self._context(), name)

    def vacuum(self, name: str, *, keep: int = 1, dry_run: bool = True) -> list[str]:
        """Delete what neither a pin, nor the newest `keep` versions, nor a recent reader needs.

        Returns:
            The files deleted, or with `dry_run` those that would be.
        """
        from featurestore.materialize.versions import vacuum

        return vacuum(self._context(), name, keep=keep, dry_run=dry_run)

    # -- serving -------------------------------------------------------------------------------------

    @property
    def online(self) -> "OnlineBackend":
        """The online store, opened on first use."""
        if self._online is None:
            from featurestore.serve.backend import open_backend

            self._online = open_backend(
                self._snapshots(),
                self.online_location,
                clock=self._clock,
                history_ns=self.config.online.history_ns,
            )
        return self._online

    @property
    def online_location(self) -> str:
        """Where newest values live: a folder, or a Redis URL."""
        online = self.config.online
        return online.url if online.store == "redis" else str(Path(self.root) / online.path)

    def get_online_features(
        self,
        features: Features,
        entity_rows: Any,
        *,
        now: Instant | None = None,
        full_feature_names: bool = False,
    ) -> "OnlineResponse":
        """Return each entity's features as of now: exactly what training would have seen at this instant.

        Args:
            entity_rows: A list of mappings, a mapping of columns, or an Arrow table.
            now: The reader's time; by default the clock's.

        Raises:
            NotFoundError: an unknown view or feature.
            SchemaError: a key column is missing or of the wrong type.
        """
        return self.online.get_online_features(
            self._refs(features), entity_rows, now=now, full_feature_names=full_feature_names
        )

    def serve(self, **options: Any) -> "ServerHandle":
        """Start a server over this store, in processes of its own; see `featurestore.serve.server.serve`."""
        from featurestore.serve.server import serve

        history_ns = self.config.online.history_ns
        return serve(self.root, online=self.online_location, history_ns=history_ns, **options)

    def serve_flight(self, **options: Any) -> "FlightFront":
        """Serve bulk reads over Arrow Flight from threads of this process.

        Datasets by version, SQL over them, and historical features of a streamed spine; the options are
        those of `featurestore.serve.config.ServerConfig`.
        """
        from featurestore.serve.config import ServerConfig
        from featurestore.serve.flight_server import BulkReads, FlightFront

        reads = BulkReads(
            historical=lambda spine, features, given: self.get_historical_features(
                spine, features, **given
            ).to_arrow(),
            scan=lambda name, version, columns: self.dataset(name, version).reader(columns),
            sql=lambda text: self.sql(text).to_reader(),
            names=self.datasets,
        )
        return FlightFront(reads, ServerConfig(root=self.root, **options))

    def verify_online(self, answers: str | PathLike[str]) -> "OnlineReport":
        """Replay logged answers (`serve(answer_log=folder)`) against history, value for value.

        Returns:
            Counts of rows and cells, and the mismatches; `.ok` where there is none.
        """
        from featurestore.serve.answer_log import NOW, verify_answers

        def historical(spine: "pa.Table", features: Sequence[str], full: bool) -> "pa.Table":
            job = self.get_historical_features(spine, features, full_feature_names=full, timestamp_field=NOW)
            return job.to_arrow()

        return verify_answers(answers, historical)

    # -- entities ------------------------------------------------------------------------------------

    def export(self, entity: str, keys: Any) -> "dict[str, pa.Table]":
        """Return every row that is stored of some keys of an entity, by place.

        Args:
            keys: The join keys as a mapping of columns, a list of mappings, or an Arrow table.

        Returns:
            `source/name`, `dataset/name@version` and `online/view@version` → rows; empty places left out.

        Raises:
            NotFoundError: no such entity.
            SchemaError: a join key is missing or of the wrong kind.
        """
        from featurestore.materialize.subjects import subject_rows

        found = subject_rows(self._context(), entity, keys)
        held = self.online.export(entity, keys)
        return found | {f"online/{view}": rows for view, rows in held.items()}

    def erase(self, entity: str, keys: Any) -> "EraseReport":
        """Erase some keys of an entity from the online store, for good: older rows do not bring them back.

        Sources and dataset versions are not rewritten; the report counts the rows that remain in each.

        Raises:
            NotFoundError: no such entity.
            SchemaError: a join key is missing or of the wrong kind.
        """
        from featurestore.materialize.subjects import EraseReport, subject_rows

        remaining = {p: t.num_rows for p, t in subject_rows(self._context(), entity, keys).items()}
        return EraseReport(online_rows=self.online.erase(entity, keys), remaining=remaining)

    # -- inside --------------------------------------------------------------------------------------

    def _context(self) -> "Context":
        from featurestore.materialize.context import Context

        return Context(
            root=self.root, snapshot=self.catalog.snapshot(), clock=self._clock, config=self.config
        )

    def _snapshots(self) -> Callable[[], Any]:
        return self.catalog.snapshot

    def _definitions(self) -> list[Definition]:
        from featurestore.catalog.discovery import load_definitions

        return load_definitions(self.root)

    def _refs(self, features: Features) -> list[str]:
        given = [features] if isinstance(features, (str, FeatureService)) else list(features)
        return [f if isinstance(f, str) else f.name for f in given]

    def _source_schema(self, source: Source) -> "pa.Schema":
        from featurestore.materialize.context import source_spec
        from featurestore.storage.sources import open_source

        return open_source(source_spec(source), self.root).schema

    def _write_online(self, name: str, end_ns: int | None) -> None:
        found = self.catalog.snapshot().get(parse_ref(name))
        if isinstance(found, FeatureView) and found.online and self.online.keeps(parse_ref(name)):
            from featurestore.materialize.newest import newest_rows

            self.online.write_rows(name, newest_rows(self._context(), name, end_ns=end_ns))

    def close(self) -> None:
        """Close the online store, if it was opened."""
        if self._online is not None:
            self._online.close()
            self._online = None

    def __enter__(self) -> "FeatureStore":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
