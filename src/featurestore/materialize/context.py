"""What every path of this room is given: the root, the definitions as they stand, a clock and settings."""

from dataclasses import dataclass

from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.refs import Ref, parse_ref
from featurestore.catalog.snapshot import CatalogSnapshot
from featurestore.catalog.source import Source
from featurestore.catalog.training_set import TrainingSet
from featurestore.core.clock import Clock
from featurestore.core.config import StoreConfig
from featurestore.core.names import near
from featurestore.errors import NotFoundError
from featurestore.storage.files import AnyPath, root_path
from featurestore.storage.manifest import Manifest
from featurestore.storage.objects import CachePlace, default_cache_folder
from featurestore.storage.sources import SourceSpec, SourceTable, open_source
from featurestore.storage.suppression import read_ledger


@dataclass(frozen=True, slots=True)
class Context:
    """One store at one catalog version.

    Attributes:
        root: The store's folder or URL.
        snapshot: The definitions.
        ledger_at: What counted as absent at this entry of the ledger of erasures does so, too, besides what
            does now.
    """

    root: str
    snapshot: CatalogSnapshot
    clock: Clock
    config: StoreConfig
    ledger_at: int = 0

    @property
    def path(self) -> AnyPath:
        """The root as a path: a folder, or a name in a store of objects."""
        return path_of(self.root, self.config)

    def open(self, source: Source) -> SourceTable:
        """Open a source's table.

        Raises:
            NotFoundError: nothing is at its path.
        """
        return open_source(source_spec(source), self.path, ledger_at=self.ledger_at)


@dataclass(frozen=True, slots=True)
class Home:
    """Where the versions of one training set or view live.

    Attributes:
        kind: `training_set` or `view`.
        title: As users name it.
        delta: Folder of the Delta table, the truth.
        ipc: Folder of the published Arrow versions.
        lock: File that a writer holds; in a store of objects the name of its lease.
        lease_s: Term of the lease.
    """

    kind: str
    title: str
    delta: AnyPath
    ipc: AnyPath
    lock: AnyPath
    lease_s: float = 30.0

    @property
    def pins(self) -> AnyPath:
        """The folder of tags, one file each."""
        return self.lock.parent / f"{self.lock.stem}.pins"


def path_of(root: str, config: StoreConfig) -> AnyPath:
    """Return a root as a path, reached and cached as the settings say."""
    return root_path(root, config.storage_options, cache_place(config))


def cache_place(config: StoreConfig) -> CachePlace:
    """Return where copies of a remote root's files are kept, and how many bytes of them."""
    return CachePlace(config.cache.path or default_cache_folder(), config.cache.size_bytes)


def source_spec(source: Source) -> SourceSpec:
    """Return a source as storage knows it: a path, a format, a query."""
    return SourceSpec(
        name=source.name,
        path=source.path,
        timestamp_field=source.timestamp_field,
        format=source.format,
        query=source.query,
    )


def lacks_lifted(context: Context, manifest: Manifest) -> bool:
    """Say whether an erasure that a version takes into account may have been lifted since."""
    return read_ledger(context.path).lifted_since(int(manifest.erasure.get("ledger", 0)))


def home_of(context: Context, name: str) -> Home:
    """Find where a training set or view is stored; `view@2` names a version of a view.

    What was removed from the catalog keeps its versions: it is found as it last was.

    Raises:
        NotFoundError: no such training set or view.
    """
    root = context.path
    lease_s = context.config.lease_ns / 1e9
    ref = parse_ref(name)
    stored = (TrainingSet.kind, FeatureView.kind)
    removed = [] if ref.version else context.snapshot.versions_of(ref.whole(), *stored)
    if removed and not any((kind, ref.name) in context.snapshot.heads for kind in stored):
        ref = Ref(ref.name, removed[-1].version)
    found = context.snapshot.get(ref.whole(), *stored)
    if isinstance(found, TrainingSet):
        base = root / "datasets" / found.name
        return Home("training_set", found.name, base / "delta", base / "ipc", base / "LOCK", lease_s)
    if isinstance(found, FeatureView):
        version = ref.version or context.snapshot.version_of(found.name, FeatureView.kind)
        folder = f"{found.name}_v{version}"
        ipc = root / "ipc" / folder
        lock = root / "ipc" / f"{folder}.LOCK"
        return Home("view", f"{found.name}@{version}", root / "tables" / folder, ipc, lock, lease_s)
    kinds = [d.name for d in context.snapshot.definitions() if isinstance(d, (TrainingSet, FeatureView))]
    raise NotFoundError(f"{name!r} is a {found.kind}, which has no versions", hint=near(ref.name, kinds))
