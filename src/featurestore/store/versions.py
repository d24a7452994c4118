"""VersionedStore: what is read of the past, historical features and the versions of datasets."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from featurestore.core.arguments import flag, mapped, text
from featurestore.core.time import Instant, instant_ns
from featurestore.store.opened import Features, Named, OpenedStore, name_of

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.dataset import Dataset
    from featurestore.materialize.maintenance import CompactReport
    from featurestore.materialize.result import MaterializeResult
    from featurestore.materialize.retrieval import RetrievalJob
    from featurestore.materialize.tags import Version
    from featurestore.materialize.versions import VersionDiff, VersionInfo


class VersionedStore(OpenedStore):
    """Historical features, and datasets by version: opened, compared, pinned, rolled back, vacuumed."""

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
            full_feature_names=flag("the read", "full_feature_names", full_feature_names),
            as_of_ns=None if as_of is None else instant_ns(as_of, what="as_of"),
            timestamps=flag("the read", "timestamps", timestamps),
            timestamp_field=None
            if timestamp_field is None
            else text("the read", "timestamp_field", timestamp_field),
            key_map=mapped("the read", "key_map", key_map, '{"join_key": "column"}'),
        )

    def dataset(self, name: Named, version: "Version | None" = None) -> "Dataset":
        """Open one immutable version of a materialized training set or view.

        Args:
            version: A number, a tag, or a time (the version that was newest then); `None`: the newest.

        Raises:
            NotFoundError: no such dataset or version, or a time before the first.
        """
        from featurestore.dataset import open_dataset

        return open_dataset(self._context(), name_of(name), version)

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

    def history(self, name: Named) -> "list[VersionInfo]":
        """Return the versions of a dataset, oldest first."""
        from featurestore.materialize.versions import history

        return history(self._context(), name_of(name))

    def diff(self, name: Named, older: "Version", newer: "Version") -> "VersionDiff":
        """Say which rows two versions of a dataset do not share, by partition."""
        from featurestore.materialize.versions import diff

        return diff(self._context(), name_of(name), older, newer)

    def rollback(self, name: Named, version: "Version") -> "MaterializeResult":
        """Make an older version the newest again, as a new version."""
        from featurestore.materialize.versions import rollback

        return rollback(self._context(), name_of(name), version)

    def pin(self, name: Named, version: "Version", tag: str) -> None:
        """Name a version and keep it from being vacuumed."""
        from featurestore.materialize.versions import pin

        pin(self._context(), name_of(name), version, tag)

    def unpin(self, name: Named, version: "Version | None" = None, tag: str | None = None) -> None:
        """Take a tag away, or every tag of a version; the version stays until a vacuum."""
        from featurestore.materialize.versions import unpin

        unpin(self._context(), name_of(name), version, None if tag is None else text("unpin", "tag", tag))

    def compact(self, name: Named) -> "CompactReport":
        """Checkpoint the log and say how the files lie: each partition is one sorted file already."""
        from featurestore.materialize.versions import compact

        return compact(self._context(), name_of(name))

    def vacuum(self, name: Named, *, keep: int = 1, dry_run: bool = True) -> list[str]:
        """Delete what neither a pin, nor the newest `keep` versions, nor a recent reader needs.

        Returns:
            The files deleted, or with `dry_run` those that would be.
        """
        from featurestore.materialize.versions import vacuum

        return vacuum(self._context(), name_of(name), keep=keep, dry_run=dry_run)
