"""Dataset: one immutable version of a materialized training set or view."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from featurestore.core.arguments import listed, text
from featurestore.materialize.context import Context
from featurestore.materialize.versions import DatasetVersion, open_version, recreate, verify

if TYPE_CHECKING:
    from featurestore.loaders.jax_loader import JaxLoader
    from featurestore.loaders.loader import Loader
    from featurestore.loaders.torch_loader import TorchLoader
    from featurestore.materialize.tags import Version
    from featurestore.materialize.versions import RecreateReport, VerifyReport
    from featurestore.storage.manifest import Manifest


class Dataset:
    """One version, as it was committed: it never changes, and it can be made again from its inputs.

    Attributes:
        name: The training set or view.
        version: Its number: the Delta table's version.
    """

    def __init__(self, context: Context, opened: DatasetVersion) -> None:
        self._context = context
        self._opened = opened
        self.name = opened.name
        self.version = opened.version

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, version={self.version}, rows={self.num_rows:,})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dataset) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process maps the files itself.
        return open_dataset, (self._context, self.name, self.version)

    def _identity(self) -> tuple[str, str, int, str]:
        return self._context.root, self.name, self.version, self.fingerprint

    @property
    def manifest(self) -> "Manifest":
        """What the version says of itself: inputs, definitions, schema, shards, checksums."""
        return self._opened.manifest

    @property
    def fingerprint(self) -> str:
        """xxh3-128 of the logical content, 32 hex digits; independent of shards and files."""
        return self.manifest.fingerprint

    @property
    def schema(self) -> pa.Schema:
        """Columns and types, in order: the spine's, then features, then labels."""
        return self._opened.schema

    @property
    def num_rows(self) -> int:
        """How many rows the version holds."""
        return self.manifest.rows

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the version, or some columns of it, in canonical order; checksums are verified."""
        return self._opened.to_arrow(_listed(columns))

    def scan(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Read the version batch by batch, in canonical order."""
        return self._opened.scan(_listed(columns))

    def reader(self, columns: Sequence[str] | None = None) -> pa.RecordBatchReader:
        """Read the version as an Arrow stream, in canonical order."""
        columns = _listed(columns)
        return pa.RecordBatchReader.from_batches(self._opened.selected(columns), self.scan(columns))

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Hand the rows to any library that speaks the Arrow PyCapsule protocol."""
        return self.reader().__arrow_c_stream__(requested_schema)

    def sql(self, query: str) -> pa.Table:
        """Query the version with DuckDB SQL, as the table `dataset`; read-only, nothing else can be reached.

        float16 is read as float32, and a duration of nanoseconds as a whole number of them.

        Raises:
            DefinitionError: SQL that is not one SELECT.
            ExpressionError: it failed on the data.
        """
        from featurestore.storage.duckdb_sql import run_query

        return run_query(query, {"dataset": self})

    def verify(self) -> "VerifyReport":
        """Hash every file again and compare rows, order, manifest, log and fingerprint.

        Raises:
            CorruptDataError: something is not as it was written.
        """
        return verify(self._context, self.name, self.version)

    def recreate(self, executor: Any = None) -> "RecreateReport":
        """Compute the version again from its pinned inputs and compare fingerprints.

        Raises:
            NotFoundError: an input version is gone.
            CorruptDataError: an input that is a plain file was changed, or the fingerprint differs.
        """
        return recreate(self._context, self.name, self.version, executor=executor)

    def loader(self, **options: Any) -> "Loader":
        """Open a NumPy loader over this version; see `featurestore.loaders.open_loader` for the options."""
        from featurestore.loaders import open_loader

        return open_loader(self._opened.shards(), **options)

    def torch(self, **options: Any) -> "TorchLoader":
        """Open a PyTorch loader over this version; the options are those of `loader`, plus `device`."""
        from featurestore.loaders.torch_loader import open_torch_loader

        return open_torch_loader(self._opened.shards(), **options)

    def jax(self, **options: Any) -> "JaxLoader":
        """Open a JAX loader over this version; the options are those of `loader`, plus `sharding`."""
        from featurestore.loaders.jax_loader import open_jax_loader

        return open_jax_loader(self._opened.shards(), **options)


def _listed(columns: Sequence[str] | None) -> Sequence[str] | None:
    if columns is None or isinstance(columns, str):
        return None if columns is None else [columns]
    return [text("the read", "columns", name) for name in listed("the read", "columns", columns, "names")]


def open_dataset(context: Context, name: str, version: "Version | None") -> Dataset:
    """Open a version by number, tag or time.

    Raises:
        NotFoundError: no such dataset or version.
    """
    return Dataset(context, open_version(context, name, version))
