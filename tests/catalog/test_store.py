"""Stores of commits: one of many writers wins, or the store is refused."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.catalog.house import Columns, market, quote_view

from featurestore import Entity
from featurestore.catalog.catalog import Catalog, open_catalog
from featurestore.catalog.store import (
    CatalogStore,
    FsspecCatalogStore,
    LocalCatalogStore,
    open_catalog_store,
    probe,
)
from featurestore.errors import CommitConflictError, StorageError


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, Any]]:
    """An S3 server in this process, and how to reach it."""
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    running = server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    options = {
        "key": "t",
        "secret": "t",
        "client_kwargs": {"endpoint_url": f"http://{host}:{port}", "region_name": "eu-west-1"},
    }
    s3fs.S3FileSystem(**options).mkdir("bucket")
    yield options
    running.stop()


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CatalogStore:
    if request.param == "local":
        return open_catalog_store(tmp_path / "root" / "catalog")
    if request.param == "memory":
        return open_catalog_store(f"memory://{tmp_path}/catalog")
    return open_catalog_store(f"s3://bucket{tmp_path}/catalog", request.getfixturevalue("s3"))


def test_a_file_is_put_once_and_read_whole(store: CatalogStore) -> None:
    assert store.names() == []
    assert not store.has("a.json")
    assert store.read("a.json") is None
    assert store.put_if_absent("a.json", b"one")
    assert not store.put_if_absent("a.json", b"two")
    assert store.has("a.json")
    assert store.read("a.json") == b"one"
    assert store.put_if_absent("b.json", b"")
    assert store.names() == ["a.json", "b.json"]
    store.remove("b.json")
    store.remove("b.json")
    assert store.names() == ["a.json"]


def test_an_honest_store_passes_the_probe_and_is_left_clean(store: CatalogStore) -> None:
    probe(store)
    assert store.names() == []


def test_of_many_threads_one_wins_each_name(store: CatalogStore) -> None:
    wins: list[tuple[str, int]] = []

    def work(me: int) -> None:
        names = [f"{i}.json" for i in range(10)]
        wins.extend((name, me) for name in names if store.put_if_absent(name, str(me).encode()))

    threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for name, _ in wins) == sorted(f"{i}.json" for i in range(10))
    assert all(store.read(name) == str(me).encode() for name, me in wins)


class LastWriterWins(FsspecCatalogStore):
    """A store that ignores the condition, as some S3 look-alikes do."""

    def _create(self, target: str, data: bytes) -> None:
        self._fs.pipe_file(target, data)


def test_a_store_that_ignores_put_if_absent_is_refused_before_the_first_commit(tmp_path: Path) -> None:
    lying = LastWriterWins(f"memory://{tmp_path}/lying")
    with pytest.raises(StorageError, match="does not honour put-if-absent"):
        probe(lying)
    catalog = Catalog(lying, read_schema=Columns())
    with pytest.raises(StorageError, match="AWS S3, Azure Blob"):
        catalog.apply([Entity("x")])
    assert lying.names() == []


def test_a_catalog_lives_on_any_store(store: CatalogStore) -> None:
    catalog, other = (Catalog(store, read_schema=Columns()) for _ in range(2))
    catalog.apply([market()["train"]], message="one")
    assert other.head == 1
    stale = other.plan([quote_view("ask")])
    catalog.apply([quote_view("bid")])
    with pytest.raises(CommitConflictError):
        other.apply(stale)
    assert other.head == 2
    assert other.get("quote") == quote_view("bid")
    assert [c.version for c in Catalog(store).history()] == [2, 1]


def test_a_url_with_file_is_the_local_disk(tmp_path: Path) -> None:
    open_catalog(f"file://{tmp_path}", read_schema=Columns()).apply([Entity("x")])
    assert (tmp_path / "catalog" / "00000000000000000001.json").exists()


def test_a_folder_that_refuses_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "catalog").write_text("a file in the way")
    with pytest.raises(StorageError):
        LocalCatalogStore(tmp_path / "catalog").put_if_absent("a", b"")
    with pytest.raises(StorageError):
        LocalCatalogStore(tmp_path / "catalog").names()
