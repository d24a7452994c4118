"""The same on Azure Blob Storage, against Microsoft's emulator."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from tests.materialize.house import House, seed_store, spine_rows
from tests.storage.buckets import AZURE_ACCOUNT, BUCKET, azure_server, filled_store, remote_store

import featurestore as fs
from featurestore.core.config import StoreConfig
from featurestore.errors import CommitConflictError, NotFoundError
from featurestore.materialize.versions import vacuum
from featurestore.storage.delta_files import delta_options
from featurestore.storage.source_files import place_of

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with azure_server(tmp_path_factory.mktemp("azurite")) as options:
        yield options


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    config = StoreConfig(buckets=3, threads=2)
    return seed_store(tmp_path_factory.mktemp("local") / "root", days=2, config=config)


@pytest.fixture
def store(house: House, azure: dict[str, Any], tmp_path: Path) -> fs.FeatureStore:
    opened = remote_store(f"az://{BUCKET}{tmp_path}", azure, tmp_path)
    return filled_store(house.root, list(house.context.snapshot.definitions()), opened, azure)


def test_versions_make_the_round_trip(store: fs.FeatureStore, house: House) -> None:
    local = fs.FeatureStore(house.root, {"buckets": 3, "threads": 2})
    first = store.materialize("set")
    assert first.fingerprint == local.materialize("set").fingerprint
    dataset = store.dataset("set")
    assert dataset.to_arrow().equals(local.dataset("set").to_arrow())
    assert dataset.verify().fingerprint == dataset.recreate().fingerprint == first.fingerprint
    store.ingest("spine", spine_rows(5, 5, first_hour=1, hours=3))
    assert store.materialize_incremental("set").version == 2
    store.pin("set", 2, "second")
    assert store.rollback("set", 1).fingerprint == first.fingerprint
    assert vacuum(store._context(), "set", recent_hours=0, dry_run=False)
    assert [(v.version, v.readable) for v in store.history("set")] == [(1, False), (2, True), (3, True)]
    with pytest.raises(NotFoundError):
        store.dataset("set", 1)
    assert store.dataset("set", "second").verify().rows == 125
    options = delta_options(place_of("x", store._context().path)) or {}
    table = DeltaTable(f"{store.root}/datasets/set/delta", storage_options=options)
    assert (table.version(), options["azure_storage_account_name"]) == (3, AZURE_ACCOUNT)


def test_of_many_appliers_one_wins_each_version(azure: dict[str, Any], tmp_path: Path) -> None:
    url = f"az://{BUCKET}{tmp_path}"
    won: list[str] = []

    def work(name: str) -> None:
        catalog = remote_store(url, azure, tmp_path / name).catalog
        for number in range(4):
            while True:
                try:
                    catalog.apply([fs.Entity(f"{name}{number}")])
                except CommitConflictError:
                    continue
                won.append(f"{name}{number}")
                break

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    catalog = remote_store(url, azure, tmp_path / "reader").catalog
    assert catalog.head == len(won) == 12
    assert sorted(e.record.name for c in catalog.history() for e in c.entries if e.record) == sorted(won)
