"""A feature store under s3:// answers as one on a local disk does, and keeps the same promises."""

import pickle
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import s3fs  # type: ignore[import-untyped] # it has no types
from deltalake import DeltaTable
from tests.materialize.house import House, events, seed_store, spine_rows, write
from tests.storage.buckets import BUCKET, copy_sources, filled_store, remote_store, s3_server

import featurestore as fs
from featurestore.catalog.definition import Definition
from featurestore.core.config import StoreConfig
from featurestore.errors import (
    AlreadyExistsError,
    CommitConflictError,
    CorruptDataError,
    DefinitionError,
    NotFoundError,
    StorageError,
)
from featurestore.loaders.source import open_rows
from featurestore.materialize.context import home_of
from featurestore.materialize.lock import check_writing, writing
from featurestore.materialize.versions import vacuum
from featurestore.storage.cache import FileCache
from featurestore.storage.delta_files import delta_options
from featurestore.storage.files import observed
from featurestore.storage.lease import Lease
from featurestore.storage.objects import ObjectPath
from featurestore.storage.source_files import place_of

Options = dict[str, Any]


@pytest.fixture(scope="module")
def s3() -> Iterator[Options]:
    with s3_server() as options:
        yield options


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    """The same store on a local disk."""
    config = StoreConfig(buckets=3, threads=2)
    return seed_store(tmp_path_factory.mktemp("local") / "root", days=2, config=config)


@pytest.fixture(scope="module")
def definitions(house: House) -> list[Definition]:
    return list(house.context.snapshot.definitions())


@pytest.fixture(scope="module")
def local(house: House) -> fs.FeatureStore:
    store = fs.FeatureStore(house.root, {"buckets": 3, "threads": 2})
    store.materialize("set")
    return store


@pytest.fixture(scope="module")
def stored(
    house: House, definitions: list[Definition], s3: Options, tmp_path_factory: pytest.TempPathFactory
) -> fs.FeatureStore:
    """A remote store with version 1 of `set`, for tests that only read."""
    store = remote_store(f"s3://{BUCKET}/stored", s3, tmp_path_factory.mktemp("stored"))
    filled_store(house.root, definitions, store, s3)
    store.materialize("set")
    return store


@pytest.fixture
def store(house: House, definitions: list[Definition], s3: Options, tmp_path: Path) -> fs.FeatureStore:
    """A remote store of the test's own, without versions."""
    return filled_store(house.root, definitions, remote_store(f"s3://{BUCKET}{tmp_path}", s3, tmp_path), s3)


def keys_of(store: fs.FeatureStore, s3: Options, under: str) -> set[str]:
    """List the objects below a name of a store."""
    remote = s3fs.S3FileSystem(**s3, use_listings_cache=False)
    return set(remote.find(f"{store.root.removeprefix('s3://')}/{under}"))


def test_a_remote_version_is_the_local_one(stored: fs.FeatureStore, local: fs.FeatureStore) -> None:
    mine, theirs = stored.dataset("set"), local.dataset("set")
    assert mine.fingerprint == theirs.fingerprint
    assert mine.to_arrow().equals(theirs.to_arrow())
    assert mine.to_arrow(["key", "value"]).equals(theirs.to_arrow(["key", "value"]))
    assert pa.Table.from_batches(mine.scan()).equals(pa.Table.from_batches(theirs.scan()))
    counted = "SELECT count(*) AS n, sum(last_size) AS s FROM dataset"
    assert mine.sql(counted).equals(theirs.sql(counted))
    assert stored.datasets() == ["set"]
    assert mine.verify().fingerprint == mine.fingerprint == mine.recreate().fingerprint
    assert not stored.materialize("set").created


def same(one: object, other: object) -> bool:
    """Compare what a batch holds, array by array."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return np.array_equal(np.asarray(one), np.asarray(other), equal_nan=True)


def test_loaders_read_a_remote_version_as_a_local_one(
    stored: fs.FeatureStore, local: fs.FeatureStore
) -> None:
    options: dict[str, Any] = {"batch_size": 16, "seed": 3, "dtype": "float64"}
    mine, theirs = stored.dataset("set").loader(**options), local.dataset("set").loader(**options)
    pairs = list(zip(mine, theirs, strict=True))
    assert all(same(dict(ours), dict(other)) for ours, other in pairs)
    assert sum(ours.rows for ours, _ in pairs) > 100


def test_frameworks_and_windows_read_a_remote_version_too(
    stored: fs.FeatureStore, local: fs.FeatureStore
) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("jax", reason="jax is not installed")
    options: dict[str, Any] = {"batch_size": 16, "seed": 3, "dtype": "float32"}
    for openers in (
        [store.dataset("set").torch(**options) for store in (stored, local)],
        [store.dataset("set").jax(**options, label_dtype="int32") for store in (stored, local)],
        [store.dataset("set").loader(**options, window=3) for store in (stored, local)],
    ):
        mine, theirs = (next(iter(opened)) for opened in openers)
        assert same(dict(mine), dict(theirs))
    assert stored.sql('SELECT count(*) AS n FROM "set"').column("n").to_pylist() == [120]
    assert not stored.compact("set").created


def test_opened_rows_pickle_and_open_their_own_copies_elsewhere(stored: fs.FeatureStore) -> None:
    rows = open_rows(stored.dataset("set")._opened.shards())
    again = pickle.loads(pickle.dumps(rows))
    assert again.rows == rows.rows == 120
    assert again.times(0).tolist() == rows.times(0).tolist()


def test_other_engines_read_the_remote_delta_table(stored: fs.FeatureStore, s3: Options) -> None:
    rows = stored.dataset("set").num_rows
    place = place_of("datasets/set/delta", home_of(stored._context(), "set").delta.parent.parent.parent)
    options = delta_options(place)
    uri = f"{stored.root}/datasets/set/delta"
    table = DeltaTable(uri, storage_options=options)
    assert table.version() == 1
    assert sum(pa.table(table.get_add_actions()).column("num_records").to_pylist()) == rows
    assert pl.scan_delta(uri, storage_options=options).select(pl.len()).collect().item() == rows
    connection = duckdb.connect()
    connection.register_filesystem(s3fs.S3FileSystem(**s3))
    found = connection.execute("SELECT count(*) FROM read_parquet(?)", [table.file_uris()]).fetchall()
    assert found == [(rows,)]


def test_an_incremental_version_shares_files_and_equals_a_full_one(
    store: fs.FeatureStore, s3: Options, tmp_path: Path
) -> None:
    store.materialize("set")
    before = keys_of(store, s3, "datasets/set/ipc/files")
    write(tmp_path / "more" / "spine" / "d9.parquet", spine_rows(9, 20, first_hour=40, hours=24))
    write(tmp_path / "more" / "events" / "d9.parquet", events(9, 20, first_hour=40, hours=24))
    copy_sources(tmp_path / "more", store.root, s3)
    result = store.materialize_incremental("set")
    assert result.version == 2
    assert 0 < result.written < result.partitions
    assert before & keys_of(store, s3, "datasets/set/ipc/files")
    dataset = store.dataset("set")
    assert dataset.recreate().fingerprint == dataset.verify().fingerprint == result.fingerprint
    assert store.dataset("set", 1).num_rows < dataset.num_rows
    difference = store.diff("set", 1, 2)
    assert difference.added == dataset.num_rows - store.dataset("set", 1).num_rows
    assert difference.same == result.partitions - result.written


def test_versions_are_pinned_rolled_back_and_vacuumed(
    store: fs.FeatureStore, s3: Options, tmp_path: Path
) -> None:
    store.materialize("set")
    for day in (8, 9):
        write(tmp_path / "more" / "spine" / f"d{day}.parquet", spine_rows(day, 20, first_hour=1, hours=40))
        copy_sources(tmp_path / "more", store.root, s3)
        store.materialize("set")
    store.pin("set", 1, "first")
    with pytest.raises(AlreadyExistsError, match="names version 1"):
        store.pin("set", 2, "first")
    rolled = store.rollback("set", "first")
    assert (rolled.version, rolled.fingerprint) == (4, store.dataset("set", "first").fingerprint)
    context = store._context()
    assert vacuum(context, "set", dry_run=True) == []  # everything is younger than a day
    gone = vacuum(context, "set", recent_hours=0, dry_run=False)
    assert any("v00000002/MANIFEST.json" in name for name in gone)
    assert [(v.version, v.readable, v.tags) for v in store.history("set")] == [
        (1, True, ("first",)),
        (2, False, ()),
        (3, False, ()),
        (4, True, ()),
    ]
    for version in (1, 4):
        store.dataset("set", version).verify()
    with pytest.raises(NotFoundError, match="no version 2"):
        store.dataset("set", 2)
    needed = {n for n in keys_of(store, s3, "datasets/set/ipc/files") if n.endswith(".arrow")}
    shards = store.dataset("set").manifest.shards
    assert len(needed) == len({x for s in shards for x in (s.xxh3, s.offsets_xxh3)})
    store.unpin("set", tag="first")
    with pytest.raises(NotFoundError, match="no version 'first'"):
        store.dataset("set", "first")


def test_features_come_from_remote_sources_and_remote_views_alike(
    store: fs.FeatureStore, local: fs.FeatureStore
) -> None:
    spine = spine_rows(5, 50, first_hour=0, hours=48)
    features = ["near", "recent", "ever"]
    expected = local.get_historical_features(spine, features).to_arrow()
    assert store.get_historical_features(spine, features).to_arrow().equals(expected)
    for view in features:
        store.materialize(view)
    job = store.get_historical_features(spine, features)
    assert "stored view" in job.explain()
    assert job.to_arrow().equals(expected)
    online = store.get_online_features(["near:value"], [{"key": "k1"}])
    assert online.to_dict()["key"] == ["k1"]


def test_rows_are_appended_to_remote_sources_and_exported(store: fs.FeatureStore, s3: Options) -> None:
    rows = events(77, 30, first_hour=5, hours=3)
    before = store.dataset("set").num_rows if store.datasets() else 0
    paths = {store.ingest("events", rows).path for _ in range(3)}
    assert before == 0
    assert len(paths) == 3
    assert paths == {f"s3://{n}" for n in keys_of(store, s3, "events") if "/zz-" in n}
    found = store.export("key", {"key": ["k1"]})["source/events"]
    here = pa.concat_tables([rows] * 3)
    assert found.num_rows >= here.filter(pa.compute.equal(here.column("key"), "k1")).num_rows > 0


def test_a_remote_delta_source_is_read_and_appended_to(s3: Options, tmp_path: Path) -> None:
    store = remote_store(f"s3://{BUCKET}{tmp_path}", s3, tmp_path)
    place = place_of("ticks", home_root(store))
    rows = pa.table({"key": ["a", "b"], "ts": pa.array([1, 2], pa.int64()), "v": [1.0, 2.0]})
    from deltalake import write_deltalake  # noqa: PLC0415 -- only here

    write_deltalake(f"{store.root}/ticks", rows, storage_options=delta_options(place))
    key = fs.Entity("key")
    source = fs.Source("ticks", path="ticks", timestamp_field="ts", entities=[key])
    store.apply([fs.FeatureView("last", source=source, entities=[key], features=["v"], online=False)])
    assert store.ingest("ticks", rows).version == 1
    assert store.materialize("last").rows == 4
    assert store.dataset("last").recreate().rows == 4


def home_root(store: fs.FeatureStore) -> Any:
    """Return a store's root as a path."""
    return store._context().path


def test_of_concurrent_writers_one_proceeds_and_the_other_waits_or_is_told(
    store: fs.FeatureStore, s3: Options, tmp_path: Path
) -> None:
    other = remote_store(store.root, s3, tmp_path / "other")
    results: list[bool] = []

    def work(mine: fs.FeatureStore) -> None:
        results.append(mine.materialize("set").created)

    threads = [threading.Thread(target=work, args=(each,)) for each in (store, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False, True]
    assert [v.version for v in store.history("set")] == [1]


def test_a_lease_passes_on_when_its_holder_falls_silent_and_the_holder_is_told(
    store: fs.FeatureStore, s3: Options, tmp_path: Path
) -> None:
    home = home_of(store._context(), "set")
    silent = threading.Event()

    def fail(operation: str, path: str) -> None:
        if (
            silent.is_set()
            and operation == "put"
            and "LOCK" in path
            and threading.current_thread().name == "lease"
        ):
            raise StorageError("the network is gone")

    other = remote_store(store.root, s3, tmp_path / "other")
    with observed(fail), writing(home):
        check_writing(home)
        silent.set()
        begin = time.monotonic()
        assert other.materialize("set").version == 1
        assert time.monotonic() - begin > 1.5  # not before the term was over
        with pytest.raises(CommitConflictError, match="was lost"):
            check_writing(home)
    assert store.dataset("set").num_rows == 120


def test_a_writer_that_lost_its_lease_unaware_cannot_commit(
    store: fs.FeatureStore, s3: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit is the fence: a paused writer wakes up behind its successor and is refused."""
    other = remote_store(store.root, s3, tmp_path / "other")
    monkeypatch.setattr("featurestore.materialize.publish.check_writing", lambda _home: None)
    monkeypatch.setattr(Lease, "_keep", lambda _lease: None)  # stopped: it renews nothing
    done: list[int] = []

    def overtake(operation: str, path: str) -> None:
        if operation == "put" and path.endswith("_delta_log/00000000000000000001.json") and not done:
            done.append(1)
            # As if the lease had expired while this writer was stopped.
            for lease in keys_of(store, s3, "datasets/set/LOCK"):
                s3fs.S3FileSystem(**s3).pipe_file(lease, b'{"released":true}')
            other.materialize("set")

    with observed(overtake), pytest.raises(CommitConflictError, match="another writer committed version 1"):
        store.materialize("set")
    assert [v.version for v in store.history("set")] == [1]
    store.dataset("set").verify()


def test_copies_are_verified_refetched_and_bounded(
    stored: fs.FeatureStore, s3: Options, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = remote_store(stored.root, s3, tmp_path, cache="20kB")
    expected = stored.dataset("set").to_arrow()
    assert reader.dataset("set").to_arrow().equals(expected)
    report = FileCache(tmp_path / "cache", 20_000).report()
    assert 0 < report.bytes <= 20_000
    for path in (tmp_path / "cache" / "objects").rglob("*"):
        if path.is_file():
            raw = bytearray(path.read_bytes())
            raw[len(raw) // 2] ^= 1
            path.write_bytes(raw)
    from featurestore.storage.cache import file_cache  # noqa: PLC0415 -- a new process would start without it

    file_cache.cache_clear()
    assert remote_store(stored.root, s3, tmp_path, cache="20kB").dataset("set").to_arrow().equals(expected)
    assert "is damaged" in caplog.text


def test_a_loader_outlives_the_eviction_of_what_it_reads(
    stored: fs.FeatureStore, s3: Options, tmp_path: Path
) -> None:
    reader = remote_store(stored.root, s3, tmp_path)
    expected = [dict(b) for b in stored.dataset("set").loader(batch_size=10, seed=1, dtype="float64")]
    loader = iter(reader.dataset("set").loader(batch_size=10, seed=1, dtype="float64"))
    found = [dict(next(loader))]
    assert FileCache(tmp_path / "cache", 1).clear().entries > 0
    (tmp_path / "cache").rename(tmp_path / "gone")  # in one step: loader threads may be fetching into it
    found += [dict(batch) for batch in loader]
    assert len(found) == len(expected) > 5
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))


def test_a_flipped_bit_in_the_store_is_an_error_to_readers_and_to_verify(
    store: fs.FeatureStore, s3: Options, tmp_path: Path
) -> None:
    store.materialize("set")
    remote = s3fs.S3FileSystem(**s3)
    for under in ("datasets/set/ipc/files", "datasets/set/delta"):
        name = next(n for n in sorted(keys_of(store, s3, under)) if n.endswith((".arrow", ".parquet")))
        good = remote.cat_file(name)
        bad = bytearray(good)
        bad[len(bad) // 2] ^= 4
        remote.pipe_file(name, bytes(bad))
        fresh = remote_store(store.root, s3, tmp_path / under)
        with pytest.raises(CorruptDataError):
            fresh.dataset("set").verify()
        if under.endswith("files"):
            with pytest.raises(CorruptDataError, match="came with checksum"):
                fresh.dataset("set").to_arrow()
        remote.pipe_file(name, good)
    # A copy in the cache does not hide it: verify reads the store.
    store.dataset("set").verify()


def test_a_store_without_put_if_absent_is_refused_before_any_work(
    house: House, definitions: list[Definition], tmp_path: Path
) -> None:
    import fsspec  # noqa: PLC0415 -- only here
    from tests.catalog.test_store import LastWriterWins  # noqa: PLC0415

    fsspec.register_implementation("lying", LastWriterWins, clobber=True)
    store = remote_store(f"lying://{tmp_path}/root", {}, tmp_path)
    with pytest.raises(StorageError, match="does not honour put-if-absent"):
        filled_store(house.root, definitions, store, {})
    assert not any("catalog" in name or ".probe" in name for name in LastWriterWins.store)


def test_worker_processes_write_to_the_store(
    store: fs.FeatureStore, local: fs.FeatureStore, tmp_path: Path
) -> None:
    assert store.materialize("set", executor="processes").fingerprint == local.dataset("set").fingerprint
    assert not any(p.is_file() for p in (tmp_path / "cache" / "scratch").rglob("*"))


def test_what_cannot_be_reached_says_why(tmp_path: Path, s3: Options) -> None:
    with pytest.raises(DefinitionError, match="cannot read 'nosuch://"):
        fs.FeatureStore("nosuch://bucket/x").catalog  # noqa: B018 -- opening is the test
    nowhere = remote_store("s3://no-such-bucket/root", s3, tmp_path)
    with pytest.raises((NotFoundError, StorageError), match="no-such-bucket"):
        nowhere.apply([fs.Entity("x")])
    refused = {**s3, "client_kwargs": {**s3["client_kwargs"], "endpoint_url": "http://127.0.0.1:9"}}
    refused["config_kwargs"] = {"retries": {"max_attempts": 0}, "connect_timeout": 1}
    away = remote_store(f"s3://{BUCKET}/root", refused, tmp_path)
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:9"):
        away.apply([fs.Entity("x")])


def test_paths_of_objects_behave_as_paths_do(s3: Options, tmp_path: Path) -> None:
    root = home_root(remote_store(f"s3://{BUCKET}{tmp_path}", s3, tmp_path))
    path = root / "a" / "b.json"
    assert (path.name, path.stem, path.parent) == ("b.json", "b", root / "a")
    assert str(path) == f"s3://{BUCKET}{tmp_path}/a/b.json"
    assert path.with_name("c") == root / "a" / "c"
    assert path.relative_to(root).as_posix() == "a/b.json"
    assert not path.exists()
    assert (root / "a").iterdir() == []
    path.put_if_absent(b"one")
    (root / "a" / "d" / "e.json").put(b"two")
    assert (path.exists(), path.is_file(), (root / "a").is_dir(), (root / "a").is_file()) == (
        True,
        True,
        True,
        False,
    )
    assert (root / "a").iterdir() == [path, root / "a" / "d"]
    assert (root / "a").glob("*.json") == [path]
    assert root.rglob("*.json") == [path, root / "a" / "d" / "e.json"]
    assert isinstance(path, ObjectPath)
    assert path.remove()
    assert not path.exists()
