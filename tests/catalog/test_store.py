"""Stores of commits: one of many writers wins, or the store is refused."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from tests.catalog.house import Columns, market, quote_view
from tests.storage.buckets import s3_server

from featurestore import Entity
from featurestore.catalog.catalog import Catalog, open_catalog
from featurestore.catalog.store import CatalogStore, open_catalog_store
from featurestore.errors import CommitConflictError, StorageError


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, Any]]:
    """An S3 server in this process, and how to reach it."""
    with s3_server() as options:
        yield options


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CatalogStore:
    if request.param == "local":
        return open_catalog_store(str(tmp_path / "root" / "catalog"))
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


def test_the_same_bytes_again_are_the_same_file_where_an_answer_may_be_lost(s3: dict[str, Any]) -> None:
    store = open_catalog_store("s3://bucket/again/catalog", s3)
    assert store.put_if_absent("a.json", b"one")
    assert store.put_if_absent("a.json", b"one")
    assert not store.put_if_absent("a.json", b"two")


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


class LastWriterWins(MemoryFileSystem):  # type: ignore[misc] # fsspec has no types
    """A store that ignores the condition, as some S3 look-alikes do."""

    protocol = "lying"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def pipe_file(self, path: str, value: bytes, **given: Any) -> None:
        super().pipe_file(path, value, **{**given, "mode": "overwrite"})


def test_a_store_that_ignores_put_if_absent_is_refused_before_the_first_commit(tmp_path: Path) -> None:
    fsspec.register_implementation("lying", LastWriterWins, clobber=True)
    store = open_catalog_store(f"lying://{tmp_path}/catalog")
    for _ in range(2):
        with pytest.raises(StorageError, match="does not honour put-if-absent") as caught:
            Catalog(store, read_schema=Columns()).apply([Entity("x")])
        assert "AWS S3, Azure Blob" in caught.value.hint
    assert store.names() == []
    assert [path for path in LastWriterWins.store if str(tmp_path) in path] == []


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
        open_catalog_store(str(tmp_path / "catalog")).put_if_absent("a", b"")
    with pytest.raises(StorageError):
        open_catalog_store(str(tmp_path / "catalog")).names()
