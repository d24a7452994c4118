"""The catalog's versions: committed one by one, read at any time, never forgotten."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.catalog.house import SYMBOL, Columns, catalog_in, in_force, market, quote_view

from featurestore import Entity, FeatureService
from featurestore.catalog.catalog import Catalog, open_catalog
from featurestore.catalog.commit import commit_name, mark_name, snapshot_name
from featurestore.core.clock import ManualClock
from featurestore.errors import (
    CommitConflictError,
    CorruptDataError,
    DefinitionError,
    NotFoundError,
    StorageError,
)

HOUR = 3_600_000_000_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_000 * HOUR)


@pytest.fixture
def catalog(tmp_path: Path, clock: ManualClock) -> Catalog:
    return catalog_in(tmp_path, clock=clock)


def reopened(folder: Path) -> Catalog:
    return catalog_in(folder)


def commits_of(folder: Path) -> list[Path]:
    return sorted(p for p in (folder / "catalog").glob("*.json") if "snapshot" not in p.name)


def test_an_empty_catalog_is_version_zero(catalog: Catalog, tmp_path: Path) -> None:
    assert catalog.head == 0
    assert catalog.history() == []
    assert catalog.at(0).definitions() == []
    assert not list(tmp_path.iterdir())
    with pytest.raises(NotFoundError, match="there is none yet"):
        catalog.get("quote")


def test_an_apply_is_one_file_that_people_can_read(catalog: Catalog, tmp_path: Path) -> None:
    commit = catalog.apply([quote_view()], message="first light", author="ada")
    (file,) = commits_of(tmp_path)
    assert file.name == "00000000000000000001.json"
    text = file.read_text()
    told = json.loads(text)
    assert (told["version"], told["author"], told["message"]) == (1, "ada", "first light")
    assert told["time"] == "1970-02-11T16:00:00Z"
    assert [c["action"] + " " + c["name"] for c in told["changes"]] == [
        "add symbol",
        "add quotes",
        "add quote",
    ]
    assert '{"expression": "(bid + ask) / 2", "name": "mid"}' in text
    assert '["ts", "timestamp[ns, tz=UTC]"]' in text
    assert max(len(line) for line in text.splitlines()) <= 140
    assert commit.version == 1
    assert repr(commit).startswith("Commit(1, 1970-02-11T16:00:00Z, 'first light': add entity/symbol@1")


def test_applying_the_same_again_is_a_no_op(catalog: Catalog, tmp_path: Path) -> None:
    first = catalog.apply([market()["train"]])
    assert catalog.apply([market()["train"]]) == first
    assert reopened(tmp_path).apply([market()["train"]]) == first
    assert catalog.head == 1
    assert len(commits_of(tmp_path)) == 1
    assert Catalog.apply(catalog_in(tmp_path / "other"), []).version == 0


def test_old_versions_stay_readable_and_keep_reading_what_they_read(catalog: Catalog, tmp_path: Path) -> None:
    catalog.apply([market()["train"]])
    catalog.apply([quote_view("bid")])
    for opened in (catalog, reopened(tmp_path)):
        snapshot = opened.snapshot()
        assert opened.get("quote") == quote_view("bid")
        assert opened.get("quote@1") == quote_view()
        assert snapshot.source_of("drift@1") == quote_view()
        assert snapshot.source_of("drift") == quote_view("bid")
        assert snapshot.source_of(snapshot.view("drift@1")) == quote_view()
        assert [r.version for r in snapshot.versions_of("drift")] == [1, 2]
        with pytest.raises(NotFoundError, match="there are versions 1 to 2"):
            opened.get("quote@3")


def test_the_catalog_at_a_version_or_a_time(catalog: Catalog, clock: ManualClock, tmp_path: Path) -> None:
    for mid in ("bid", "ask", "bid + ask"):
        catalog.apply([quote_view(mid)])
        clock.advance(HOUR)
    for opened in (catalog, reopened(tmp_path)):
        assert opened.at(2).get("quote") == quote_view("ask")
        assert opened.at(0).definitions() == []
        for moment, version in [
            (1_000 * HOUR, 1),
            (1_001 * HOUR - 1, 1),
            (1_001 * HOUR, 2),
            (9_999 * HOUR, 3),
        ]:
            stamp = datetime.fromtimestamp(moment // 10**9, UTC)
            wanted = 1 if moment == 1_001 * HOUR - 1 else version
            assert opened.at(stamp).version == wanted
        assert opened.at("1970-02-11T16:59:59.999999999Z").version == 1
        assert opened.at("1970-02-11T17:00:00Z").version == 2
        with pytest.raises(NotFoundError, match="its first is of 1970-02-11T16:00:00Z"):
            opened.at("1970-02-11T15:59:59.999999999Z")
        for version in (4, -1):
            with pytest.raises(NotFoundError, match="there is 0 \\(empty\\) to 3"):
                opened.at(version)


def test_commit_times_never_run_backwards(catalog: Catalog, clock: ManualClock) -> None:
    catalog.apply([quote_view("bid")])
    clock.time_ns = 0
    catalog.apply([quote_view("ask")])
    newest, first = catalog.history()
    assert newest.time_ns == first.time_ns + 1


def test_history_says_who_when_why_and_what(catalog: Catalog) -> None:
    catalog.apply([quote_view()], message="begin")
    catalog.apply([quote_view("bid")], message="simpler", author="grace")
    newest, first = catalog.history()
    assert (newest.version, newest.author, newest.message) == (2, "grace", "simpler")
    assert newest.changed == ["change feature_view/quote@2"]
    assert (first.author, first.message) == ("tester", "begin")
    assert newest.parent_digest == first.digest


def test_a_difference_between_versions_holds_only_what_differs(catalog: Catalog) -> None:
    catalog.apply([market()["train"]])
    catalog.apply([quote_view("bid")])
    catalog.apply([Entity("venue")], remove=["train"])
    assert [(c.action, c.name) for c in catalog.diff(1, 2)] == [
        ("change", n) for n in ("drift", "quote", "edge", "model", "move", "train")
    ]
    assert [(c.action, c.name) for c in catalog.diff(2, 3)] == [("add", "venue"), ("remove", "train")]
    assert [(c.action, c.name) for c in catalog.diff(3, 2)] == [("remove", "venue"), ("add", "train")]
    assert catalog.diff(3, 3) == []
    (mid,) = [c.fields for c in catalog.diff(2, 1) if c.name == "quote"]
    assert (mid[0].before, mid[0].after) == ("bid", "(bid + ask) / 2")


def test_a_rollback_is_a_new_commit_that_forgets_nothing(catalog: Catalog) -> None:
    catalog.apply([market()["train"]])
    catalog.apply([quote_view("bid"), Entity("venue")])
    commit = catalog.rollback(1)
    assert (commit.version, commit.message) == (3, "rollback to version 1")
    assert catalog.get("quote") == quote_view()
    assert dict(catalog.at(3).heads) == dict(catalog.at(1).heads)
    assert catalog.get("quote@2") == quote_view("bid")
    with pytest.raises(NotFoundError, match="was removed"):
        catalog.get("venue")
    assert catalog.rollback(3) == commit
    catalog.apply([quote_view("ask")])
    assert in_force(catalog)["feature_view", "quote"] == 3
    catalog.rollback(0)
    assert catalog.snapshot().definitions() == []


def test_a_plan_that_was_overtaken_is_told_what_changed(catalog: Catalog, tmp_path: Path) -> None:
    other = reopened(tmp_path)
    plan = catalog.plan([quote_view()])
    other.apply([Entity("venue")], author="grace")
    with pytest.raises(CommitConflictError, match="version 1 by grace: add entity/venue@1") as raised:
        catalog.apply(plan)
    assert raised.value.retryable
    assert (raised.value.context["since"], raised.value.context["head"]) == (0, 1)
    assert catalog.apply([quote_view()]).version == 2


def test_an_expected_head_that_is_not_the_head_is_a_conflict(catalog: Catalog) -> None:
    catalog.apply([Entity("venue")])
    with pytest.raises(CommitConflictError):
        catalog.apply([quote_view()], expected_head=0)
    assert catalog.apply([quote_view()], expected_head=1).version == 2


def test_a_race_for_one_version_has_one_winner(catalog: Catalog, tmp_path: Path) -> None:
    """The other commits between our look at the head and our put."""
    store = catalog._log._store
    put, other = store.put_if_absent, reopened(tmp_path)

    def late(name: str, data: bytes) -> bool:
        other.apply([Entity("venue")])
        return put(name, data)

    store.put_if_absent = late  # type: ignore[method-assign]
    with pytest.raises(CommitConflictError, match="add entity/venue@1"):
        catalog.apply([quote_view()])
    store.put_if_absent = put  # type: ignore[method-assign]
    assert catalog.head == 1
    assert catalog.apply([quote_view()]).version == 2


def test_a_put_that_failed_after_it_was_done_counts_as_done(catalog: Catalog) -> None:
    store = catalog._log._store
    put = store.put_if_absent

    calls: list[str] = []

    def ambiguous(name: str, data: bytes) -> bool:
        calls.append(name)
        done = put(name, data)
        if len(calls) == 1:
            raise StorageError("the connection broke")
        return done

    store.put_if_absent = ambiguous  # type: ignore[method-assign]
    assert catalog.apply([quote_view()]).version == 1
    assert calls == [commit_name(1), commit_name(1), mark_name(1)]

    def broken(name: str, data: bytes) -> bool:  # noqa: ARG001 -- the signature is the store's
        raise StorageError("the connection broke")

    store.put_if_absent = broken  # type: ignore[method-assign]
    with pytest.raises(StorageError):
        catalog.apply([quote_view("bid")])
    assert catalog.head == 1


def test_readers_see_new_commits_at_once(catalog: Catalog, tmp_path: Path) -> None:
    reader = reopened(tmp_path)
    assert reader.head == 0
    catalog.apply([quote_view()])
    assert reader.get("quote") == quote_view()
    catalog.apply([quote_view("bid")])
    assert reader.get("quote") == quote_view("bid")
    held = reader.at(1)
    catalog.apply([], remove=["quote"])
    assert held.get("quote") == quote_view()


def test_a_definition_is_decoded_once(catalog: Catalog, tmp_path: Path) -> None:
    catalog.apply([quote_view()])
    reader = reopened(tmp_path)
    assert reader.get("quote") is reader.get("quote")
    assert reader.at(1).get("quote") is reader.get("quote@1")


# -- loading -------------------------------------------------------------------------------------------


def test_loading_is_bounded_by_snapshots(tmp_path: Path) -> None:
    catalog = catalog_in(tmp_path)
    for i in range(70):
        catalog.apply([quote_view(f"bid + {i}")])
    names = [p.name for p in (tmp_path / "catalog").iterdir() if "snapshot" in p.name]
    assert sorted(names) == [snapshot_name(32), snapshot_name(64)]
    reader = reopened(tmp_path)
    assert reader.head == 70
    assert set(reader._log._commits) == {0, *range(65, 71)}
    for version in (70, 64, 33, 1):
        assert reader.at(version).get("quote") == quote_view(f"bid + {version - 1}")
    assert reader.get("quote@17") == quote_view("bid + 16")
    assert len(reader.history()) == 70


def test_a_snapshot_that_cannot_be_written_does_not_undo_its_commit(tmp_path: Path) -> None:
    catalog = catalog_in(tmp_path)
    store = catalog._log._store
    put = store.put_if_absent

    def no_snapshots(name: str, data: bytes) -> bool:
        if "snapshot" in name:
            raise StorageError("the disk is full")
        return put(name, data)

    store.put_if_absent = no_snapshots  # type: ignore[method-assign]
    for i in range(33):
        assert catalog.apply([quote_view(f"bid + {i}")]).version == i + 1
    store.put_if_absent = put  # type: ignore[method-assign]
    catalog.apply([quote_view("bid")])
    assert (tmp_path / "catalog" / snapshot_name(34)).exists()
    assert reopened(tmp_path).head == 34


def test_snapshots_only_make_loading_faster(tmp_path: Path) -> None:
    catalog = catalog_in(tmp_path)
    for i in range(40):
        catalog.apply([quote_view(f"bid + {i}")])
    with_it = reopened(tmp_path).snapshot()
    (tmp_path / "catalog" / snapshot_name(32)).unlink()
    without = reopened(tmp_path).snapshot()
    assert dict(with_it.records) == dict(without.records)
    assert dict(with_it.heads) == dict(without.heads)
    assert (with_it.version, with_it.time_ns) == (without.version, without.time_ns)


def test_left_over_temporary_files_are_ignored(catalog: Catalog, tmp_path: Path) -> None:
    catalog.apply([quote_view()])
    (tmp_path / "catalog" / ".tmp-00000000000000000002.json-abc").write_bytes(b"{")
    (tmp_path / "catalog" / "README").write_text("hello")
    (tmp_path / "catalog" / "00000000000000000002.json.bak").write_text("hello")
    assert reopened(tmp_path).head == 1


@pytest.mark.parametrize("position", range(0, 1400, 100))
def test_a_flipped_byte_in_a_commit_is_noticed(catalog: Catalog, tmp_path: Path, position: int) -> None:
    catalog.apply([quote_view()])
    file = tmp_path / "catalog" / commit_name(1)
    data = bytearray(file.read_bytes())
    while chr(data[position]).isspace():
        position += 1
    data[position] ^= 0x04
    file.write_bytes(data)
    with pytest.raises(CorruptDataError):
        reopened(tmp_path).snapshot()


def test_a_cut_a_missing_and_an_empty_commit_are_noticed(catalog: Catalog, tmp_path: Path) -> None:
    for mid in ("bid", "ask", "bid + ask"):
        catalog.apply([quote_view(mid)])
    files = commits_of(tmp_path)
    whole = files[1].read_bytes()
    for damaged in (whole[:200], b"", whole[:-2]):
        files[1].write_bytes(damaged)
        with pytest.raises(CorruptDataError):
            reopened(tmp_path).snapshot()
    files[1].unlink()
    with pytest.raises(CorruptDataError, match="commit 2 of the catalog is missing"):
        reopened(tmp_path).snapshot()


def test_a_commit_of_another_catalog_is_noticed(catalog: Catalog, tmp_path: Path) -> None:
    other = catalog_in(tmp_path / "other")
    for each in (catalog, other):
        each.apply([quote_view("bid")])
        each.apply([quote_view("ask")])
    source = tmp_path / "other" / "catalog" / commit_name(2)
    (tmp_path / "catalog" / commit_name(2)).write_bytes(source.read_bytes())
    with pytest.raises(CorruptDataError, match="does not follow"):
        reopened(tmp_path).snapshot()
    source.rename(tmp_path / "catalog" / commit_name(3))
    with pytest.raises(CorruptDataError):
        reopened(tmp_path).history()


def test_a_damaged_snapshot_is_noticed(tmp_path: Path) -> None:
    catalog = catalog_in(tmp_path)
    for i in range(32):
        catalog.apply([quote_view(f"bid + {i}")])
    file = tmp_path / "catalog" / snapshot_name(32)
    file.write_bytes(file.read_bytes().replace(b"bid + 7", b"bid + 8"))
    with pytest.raises(CorruptDataError, match="it only makes loading faster"):
        reopened(tmp_path).snapshot()


def test_planning_needs_a_way_to_read_sources(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="through a FeatureStore"):
        open_catalog(tmp_path).plan([quote_view()])
    assert open_catalog(tmp_path).apply([Entity("x")]).version == 1


def test_a_name_alone_means_the_view_before_the_source(catalog: Catalog) -> None:
    catalog.apply([FeatureService("symbol", features=["quote"]), quote_view(), SYMBOL])
    assert catalog.get("symbol").kind == "feature_service"
    assert catalog.get("symbol", "entity") == SYMBOL
    snapshot = catalog.snapshot()
    assert snapshot.entity("symbol") == SYMBOL
    assert snapshot.definitions("entity") == [SYMBOL]
    with pytest.raises(NotFoundError, match="no source 'symbol'"):
        snapshot.source("symbol")


def test_typed_getters_give_each_kind(catalog: Catalog) -> None:
    named = market()
    catalog.apply([named["train"]])
    snapshot = catalog.snapshot()
    assert snapshot.view("quote") == named["quote"]
    assert snapshot.on_demand("edge") == named["edge"]
    assert snapshot.service("model") == named["model"]
    assert snapshot.label("move") == named["move"]
    assert snapshot.training_set("train") == named["train"]
    assert snapshot.source("quotes").name == "quotes"
    assert snapshot.version_of("train") == 1
    assert len(snapshot.definitions()) == 10


def test_a_catalog_serves_many_schema_readers(tmp_path: Path) -> None:
    columns = Columns()
    catalog_in(tmp_path, columns).apply([market()["train"]])
    assert sorted(columns.asked) == ["quotes", "trades"]


def test_a_lost_newest_commit_is_noticed(catalog: Catalog, tmp_path: Path) -> None:
    catalog.apply([quote_view()])
    catalog.apply([quote_view(description="another word")])
    commits_of(tmp_path)[-1].unlink()
    with pytest.raises(CorruptDataError, match="commit 2 of the catalog is missing"):
        open_catalog(tmp_path).snapshot()
    (mark,) = (tmp_path / "catalog").glob("*.seen")
    mark.unlink()
    assert open_catalog(tmp_path).head == 1
