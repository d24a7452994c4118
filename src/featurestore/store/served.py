"""ServedStore: what is read now, in process and through servers, and its check against history."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.refs import parse_ref
from featurestore.core.arguments import flag, folder, mapped, text
from featurestore.core.time import Instant
from featurestore.errors import DefinitionError
from featurestore.settings import online_folder
from featurestore.store.opened import Features
from featurestore.store.versions import VersionedStore

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.serve.answer_log import OnlineReport
    from featurestore.serve.backend import OnlineBackend
    from featurestore.serve.flight_server import FlightFront
    from featurestore.serve.response import OnlineResponse
    from featurestore.serve.server import ServerHandle


class ServedStore(VersionedStore):
    """The online store: newest values in process, over gRPC, HTTP and Flight, closed with the store."""

    @property
    def online(self) -> "OnlineBackend":
        """The online store, opened on first use."""
        if self._online is None:
            from featurestore.materialize.context import path_of
            from featurestore.serve.backend import open_backend

            self._online = open_backend(
                self._snapshots(),
                self.online_location,
                clock=self._clock,
                history_ns=self.config.online.history_ns,
                root=path_of(self.root, self.config),
            )
        return self._online

    @property
    def online_location(self) -> str:
        """Where newest values live: a folder, or a Redis URL."""
        online = self.config.online
        return online.url if online.store == "redis" else online_folder(self.root, online.path)

    def get_online_features(
        self,
        features: Features,
        entity_rows: Any,
        *,
        now: Instant | None = None,
        full_feature_names: bool = False,
        key_map: Mapping[str, Any] | None = None,
        preprocessing: str | None = None,
    ) -> "OnlineResponse":
        """Return each entity's features as of now: exactly what training would have seen at this instant.

        Args:
            features: References in order, a feature service, or a training set: its features, under its names
                and key map.
            entity_rows: A list of mappings, a mapping of columns, or an Arrow table.
            now: The reader's time; by default the clock's.
            key_map: As for training: join key → entity column, or alias → join key → entity column.
            preprocessing: `dataset@version[:name]`: columns come as a loader gives them after what was fitted
                on that version.

        Raises:
            NotFoundError: an unknown view or feature.
            SchemaError: a key column is missing or of the wrong type.
        """
        return self.online.get_online_features(
            self._refs(features),
            entity_rows,
            now=now,
            full_feature_names=flag("the read", "full_feature_names", full_feature_names),
            key_map=mapped("the read", "key_map", key_map, '{"join_key": "column"}'),
            preprocessing=None if preprocessing is None else text("the read", "preprocessing", preprocessing),
        )

    def serve(self, **options: Any) -> "ServerHandle":
        """Start a server over this store, in processes of its own; see `featurestore.serve.server.serve`."""
        from featurestore.serve.server import serve

        return serve(
            self.root,
            storage_options=self.config.storage_options,
            online=self.online_location,
            history_ns=self.config.online.history_ns,
            **options,
        )

    def serve_flight(self, **options: Any) -> "FlightFront":
        """Serve bulk reads over Arrow Flight from threads of this process.

        Datasets by version, SQL over them, and historical features of a streamed spine; the options are
        those of `featurestore.serve.config.ServerConfig`.

        Raises:
            DefinitionError: an unknown option.
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
        try:
            config = ServerConfig(root=self.root, **options)
        except TypeError as error:
            raise DefinitionError(
                f"serve_flight: {error}", hint="see ServerConfig for the options"
            ) from error
        return FlightFront(reads, config)

    def verify_online(self, answers: str | PathLike[str]) -> "OnlineReport":
        """Replay logged answers (`serve(answer_log=folder)`) against history, value for value.

        Returns:
            Counts of rows and cells, and the mismatches; `.ok` where there is none.
        """
        from featurestore.serve.answer_log import NOW, verify_answers

        def historical(spine: "pa.Table", features: Sequence[str], full: bool) -> "pa.Table":
            job = self.get_historical_features(spine, features, full_feature_names=full, timestamp_field=NOW)
            return job.to_arrow()

        return verify_answers(folder("verify_online", "answers", answers), historical)

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
