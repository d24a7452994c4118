"""Erasure: after it a store is what it would be had the subject never been, and nothing of it is left."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.materialize.faults import copied, dying_at

import featurestore as fs
from featurestore.core.clock import ManualClock
from featurestore.dataset import Dataset
from featurestore.errors import NotFoundError, PinnedVersionError, SchemaError
from featurestore.materialize.erasure.proof import _present, prove
from featurestore.materialize.erasure.subject import Subject
from featurestore.storage.suppression import NOTHING, read_ledger

DAY = 86_400_000_000_000
SUBJECT = "subject-7f3a9c1e55"
USER = fs.Entity("user")
SHOP = fs.Entity("shop")


@dataclass(frozen=True)
class Row:
    """One payment."""

    user: str
    shop: str
    ts: int
    amount: float


def table(rows: Sequence[Row]) -> pa.Table:
    return pa.table(
        {
            "user": pa.array([r.user for r in rows], pa.string()),
            "shop": pa.array([r.shop for r in rows], pa.string()),
            "ts": pa.array([r.ts for r in rows], pa.int64()),
            "amount": pa.array([r.amount for r in rows], pa.float64()),
        }
    )


def rows_of(seed: int, count: int, users: int = 6) -> list[Row]:
    rng = np.random.default_rng(seed)
    names = [SUBJECT, *(f"user-{i:04d}" for i in range(1, users))]
    return [
        Row(
            str(rng.choice(names)),
            f"shop-{rng.integers(3)}",
            int(rng.integers(0, 4 * DAY)),
            float(rng.integers(100)),
        )
        for _ in range(count)
    ]


def store_at(root: Path, rows: Sequence[Row], *, mixed: bool = False) -> fs.FeatureStore:
    """Open a store over one file of payments; `mixed` adds a feature of shops, made from many users' rows."""
    (root / "payments").mkdir(parents=True)
    pq.write_table(table(rows), root / "payments" / "p0.parquet")
    source = fs.Source("payments", path="payments", timestamp_field="ts", entities=[USER])
    last = fs.FeatureView("last_payment", source=source, entities=[USER], features=["amount"], ttl="7d")
    spent = fs.FeatureView(
        "spent", source=source, entities=[USER], aggregations=[fs.Aggregation("amount", "sum", "2d")]
    )
    turnover = fs.FeatureView(
        "turnover",
        source=source,
        entities=[SHOP],
        aggregations=[fs.Aggregation("amount", "sum", "2d", name="turnover_2d")],
    )
    views = [spent, *([turnover] if mixed else [])]
    model = fs.TrainingSet("model", spine=source, features=views)
    opened = fs.FeatureStore(root, {"buckets": 3}, clock=ManualClock(10 * DAY))
    opened.apply([last, model])
    return opened


def without(rows: Sequence[Row]) -> list[Row]:
    return [r for r in rows if r.user != SUBJECT]


def fingerprints(store: fs.FeatureStore, names: Sequence[str]) -> dict[str, str]:
    return {name: store.dataset(name).fingerprint for name in names}


def write_arrow(path: Path, rows: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)


def readable(store: fs.FeatureStore, names: Sequence[str]) -> list[Dataset]:
    versions = [(name, info.version) for name in names for info in store.history(name) if info.readable]
    return [store.dataset(name, version) for name, version in versions]


def grow(stores: Sequence[fs.FeatureStore], seed: int, ways: Sequence[str], names: Sequence[str]) -> None:
    """Bring rows in and materialize, in a store with all rows and in one without the subject's."""
    for number, way in enumerate(ways or ["as it is"]):
        rows = rows_of(seed + 1 + number, 12)
        for store, given_rows in zip(stores, (rows, without(rows)), strict=True):
            if way == "push":
                store.push("payments", table(given_rows))
            elif way == "ingest":
                store.ingest("payments", table(given_rows))
            for name in names:
                store.materialize(name)


def raw_files_with(root: Path, needle: bytes) -> list[str]:
    """Search every byte below a root; Parquet's pages are compressed, so its rows are decoded."""
    found = []
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        held = needle in path.read_bytes()
        if path.suffix == ".parquet":
            held = held or needle.decode() in str(pq.read_table(path).to_pydict())
        if held:
            found.append(path.relative_to(root).as_posix())
    return found


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000),
    mixed=st.booleans(),
    pinned=st.booleans(),
    later=st.lists(st.sampled_from(["ingest", "push", "none"]), max_size=2),
)
def test_a_store_after_an_erasure_is_the_store_that_never_had_the_subject(
    tmp_path_factory: pytest.TempPathFactory, seed: int, mixed: bool, pinned: bool, later: list[str]
) -> None:
    rows = [*rows_of(seed, 60), Row(SUBJECT, "shop-1", DAY, 3.0)]
    root, twin_root = tmp_path_factory.mktemp("store"), tmp_path_factory.mktemp("twin")
    store, twin = store_at(root, rows, mixed=mixed), store_at(twin_root, without(rows), mixed=mixed)
    names = ["model", "last_payment"]
    grow((store, twin), seed, [], names)
    tagged = twin.dataset("model").fingerprint
    if pinned:
        store.pin("model", 1, "first")
    grow((store, twin), seed, later, names)
    report = store.erase("user", SUBJECT, pinned="rewrite")
    assert report.complete, report.spec()
    assert fingerprints(store, names) == fingerprints(twin, names)
    assert not pinned or store.dataset("model", "first").fingerprint == tagged
    for dataset in readable(store, names):
        assert dataset.verify().fingerprint == dataset.recreate().fingerprint
        assert SUBJECT not in dataset.to_arrow().column("user").to_pylist()
    users = {"user": [f"user-{i:04d}" for i in range(1, 6)]}
    now = 10 * DAY
    assert (
        store.get_online_features(["last_payment"], users, now=now).to_dict()
        == twin.get_online_features(["last_payment"], users, now=now).to_dict()
    )
    # A row that comes late does not bring the subject back, and a fresh run says the same as the twin's.
    late = [Row(SUBJECT, "shop-0", 2 * DAY, 5.0), Row("user-0001", "shop-0", 2 * DAY, 6.0)]
    store.push("payments", table(late))
    twin.push("payments", table(without(late)))
    for one in (store, twin):
        one.materialize_incremental("model")
        one.materialize("last_payment")
    assert fingerprints(store, names) == fingerprints(twin, names)
    assert store.export("user", SUBJECT) == {}
    assert raw_files_with(root, SUBJECT.encode()) == ["payments/p0.parquet"]
    store.close()
    twin.close()


@pytest.mark.parametrize(
    "stride",
    [
        pytest.param(41, id="some"),
        pytest.param(3, id="more", marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
    ],
)
def test_an_erasure_killed_at_any_step_is_run_to_its_end_by_the_same_call(
    tmp_path: Path, stride: int
) -> None:
    rows = [*rows_of(3, 30), Row(SUBJECT, "shop-1", DAY, 3.0)]
    with store_at(tmp_path / "store", rows) as store:
        store.materialize("model")
        store.materialize("last_payment")
        store.pin("model", 1, "first")
        store.ingest(
            "payments", table([Row(SUBJECT, "shop-2", 3 * DAY, 9.0), Row("user-0002", "s", DAY, 1.0)])
        )
        store.materialize("model")
    with store_at(tmp_path / "twin", without(rows)) as twin:
        twin.ingest("payments", table([Row("user-0002", "s", DAY, 1.0)]))
        twin.materialize("model")
        expected = twin.dataset("model").fingerprint
    counted = copied(tmp_path / "store", tmp_path / "counted")
    with dying_at(0) as steps, fs.FeatureStore(counted, {"buckets": 3}, clock=ManualClock(11 * DAY)) as whole:
        assert whole.erase("user", SUBJECT, pinned="rewrite").complete
    assert steps.count > 60
    for step in range(1, steps.count + 1, stride):
        root = copied(tmp_path / "store", tmp_path / f"killed-{step}")
        with dying_at(step), fs.FeatureStore(root, {"buckets": 3}, clock=ManualClock(11 * DAY)) as first:
            first.erase("user", SUBJECT, pinned="rewrite")
        with fs.FeatureStore(root, {"buckets": 3}, clock=ManualClock(12 * DAY)) as again:
            report = again.erase("user", SUBJECT, pinned="rewrite")
            assert report.complete, (step, report.spec())
            assert again.dataset("model").fingerprint == expected, step
            assert again.dataset("model", "first").verify().rows
            assert again.export("user", SUBJECT) == {}
        assert raw_files_with(root, SUBJECT.encode()) == ["payments/p0.parquet"], step


def test_the_scan_finds_what_an_erasure_did_not_know_of(tmp_path: Path) -> None:
    store = store_at(tmp_path, [*rows_of(1, 20), Row(SUBJECT, "shop-1", DAY, 3.0)])
    store.materialize("model")
    shard = next((tmp_path / "datasets" / "model" / "ipc").glob("v*/part-*.offsets.arrow"))
    rows = store.export("user", SUBJECT)["dataset/model@1"]
    clean = store.erase("user", SUBJECT)
    assert clean.complete
    left: dict[str, Callable[[Path], object]] = {
        "stray.parquet": lambda p: pq.write_table(rows, p),
        "stray.arrow": lambda p: write_arrow(p, rows),
        "stray.bin": lambda p: p.write_bytes(b"\0\1" + SUBJECT.encode() + b"\2"),
        "stray.json": lambda p: p.write_text(f'{{"of": "{SUBJECT}"}}'),
    }
    assert shard.suffix == ".arrow"
    for name, plant in left.items():
        path = tmp_path / ".cache" / name
        path.parent.mkdir(exist_ok=True)
        plant(path)
        report = store.erase("user", SUBJECT)
        assert not report.complete, name
        assert report.proof is not None
        assert list(report.proof.occurrences) == [f".cache/{name}"]
        path.unlink()
    assert store.erase("user", SUBJECT).complete
    store.close()


def test_the_scan_decodes_what_compression_and_numbers_hide(tmp_path: Path) -> None:
    names = {"user"}
    keys = pa.table({"user": pa.array([7], pa.int64())})
    subject = Subject("user", ("user",), keys, NOTHING)
    for kind in (pa.int8(), pa.int64(), pa.uint32()):
        rows = pa.table({"user": pa.array([1, 7, 7], kind), "other": pa.array([7, 7, 7])})
        pq.write_table(rows, tmp_path / "a.parquet", compression="zstd")
        write_arrow(tmp_path / "a.arrow", rows)
        found = prove(tmp_path, subject, names=names)
        assert found.occurrences == {"a.parquet": 2, "a.arrow": 2}
    text = Subject("user", ("user",), pa.table({"user": [SUBJECT]}), NOTHING)
    inside = pa.table({"user": ["u", f"{SUBJECT}0"], "seen": [[SUBJECT], ["x"]]})
    pq.write_table(inside, tmp_path / "a.parquet", compression="zstd")
    write_arrow(tmp_path / "a.arrow", inside)
    found = prove(tmp_path, text, names=names)
    assert (found.occurrences, found.mentions) == ({}, {"a.parquet": 1, "a.arrow": 1})


def test_the_scan_goes_on_where_another_process_took_a_file_away(tmp_path: Path) -> None:
    subject = Subject("user", ("user",), pa.table({"user": [SUBJECT]}), NOTHING)
    (tmp_path / "kept.bin").write_text(SUBJECT)
    found = prove(
        tmp_path / "root", subject, names={"user"}, extra=[tmp_path / "gone", tmp_path / "kept.bin"]
    )
    assert (found.files, found.occurrences) == (1, {str(tmp_path / "kept.bin"): 1})


def test_appended_files_that_hold_nothing_else_are_still_told_apart(tmp_path: Path) -> None:
    with store_at(tmp_path, without(rows_of(3, 30))) as store:
        for amount in (9.0, 8.0):
            store.ingest("payments", table([Row(SUBJECT, "shop-2", 3 * DAY, amount)]))
        store.materialize("model")
        report = store.erase("user", SUBJECT)
        assert report.complete
        assert report.erased["source/payments"] == 2
        dataset = store.dataset("model")
        assert dataset.recreate().fingerprint == dataset.verify().fingerprint


@given(st.integers(0, 2**32))
def test_many_keys_are_found_among_bytes_as_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def draw(size: int) -> str:
        return "".join(rng.choice(["a", "b"], size))

    texts = sorted({draw(int(rng.integers(4, 14))) for _ in range(40)})
    block = draw(int(rng.integers(0, 300))).encode()
    assert sorted(_present(block, texts)) == [text for text in texts if text.encode() in block]


def test_the_online_file_holds_no_byte_of_erased_keys_and_keeps_all_others(tmp_path: Path) -> None:
    keys = [f"{i:04x}-{np.random.default_rng(i).bytes(8).hex()}" for i in range(3000)]
    rows = [Row(key, "s", 1 + i, float(i)) for i, key in enumerate(keys)]
    store = store_at(tmp_path, rows)
    store.materialize("last_payment")
    store.materialize("last_payment")
    gone, kept = keys[::7], [k for i, k in enumerate(keys) if i % 7]
    before = store.get_online_features(["last_payment"], {"user": kept}, now=5 * DAY).to_dict()
    raw = (tmp_path / "online" / "data.mdb").read_bytes()
    assert sum(key.encode() in raw for key in gone) == len(gone)
    report = store.erase("user", pa.table({"user": gone}))
    raw = (tmp_path / "online" / "data.mdb").read_bytes()
    assert [key for key in gone if key.encode() in raw] == []
    assert report.complete
    assert report.online_rows == len(gone)
    assert store.get_online_features(["last_payment"], {"user": kept}, now=5 * DAY).to_dict() == before
    store.close()


def test_a_tag_stands_in_the_way_until_the_caller_says_what_becomes_of_it(tmp_path: Path) -> None:
    store = store_at(tmp_path, [*rows_of(1, 20), Row(SUBJECT, "shop-1", DAY, 3.0)])
    store.materialize("model")
    store.pin("model", 1, "paper")
    with pytest.raises(PinnedVersionError, match="paper"):
        store.erase("user", SUBJECT)
    assert read_ledger(str(tmp_path)).entries == ()
    assert "dataset/model@1" in store.export("user", SUBJECT)
    report = store.erase("user", SUBJECT, pinned="remove")
    assert report.removed["model"] == [1]
    with pytest.raises(NotFoundError):
        store.dataset("model", "paper")
    store.close()


def test_a_reader_that_has_a_version_mapped_reads_on_to_its_end(tmp_path: Path) -> None:
    store = store_at(tmp_path, [*rows_of(1, 40), Row(SUBJECT, "shop-1", DAY, 3.0)])
    store.materialize("model")
    held = store.dataset("model").to_arrow().column("user").to_pylist()
    batches = store.dataset("model").scan(["user"])
    first = next(iter(batches))
    store.erase("user", SUBJECT)
    assert set(first.column(0).to_pylist()) <= set(held)
    with pytest.raises(NotFoundError):
        store.dataset("model", 1)
    store.close()


def test_two_erasures_at_once_both_come_to_their_end(tmp_path: Path) -> None:
    rows = [*rows_of(1, 40), Row(SUBJECT, "shop-1", DAY, 3.0), Row("user-0001", "shop-1", DAY, 3.0)]
    with store_at(tmp_path, rows) as store:
        store.materialize("model")
    reports: dict[str, bool] = {}

    def erase(key: str) -> None:
        with fs.FeatureStore(tmp_path, {"buckets": 3}, clock=ManualClock(11 * DAY)) as one:
            reports[key] = one.erase("user", key).complete

    threads = [threading.Thread(target=erase, args=(key,)) for key in (SUBJECT, "user-0001")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reports == {SUBJECT: True, "user-0001": True}
    with fs.FeatureStore(tmp_path, {"buckets": 3}) as store:
        users = set(store.dataset("model").to_arrow().column("user").to_pylist())
        assert not users & {SUBJECT, "user-0001"}


def test_versions_without_the_subject_stay_as_they_are_byte_for_byte(tmp_path: Path) -> None:
    store = store_at(tmp_path, [*without(rows_of(1, 40)), Row(SUBJECT, "shop-1", 3 * DAY, 3.0)])
    store.materialize("model", end=2 * DAY)
    folder = tmp_path / "datasets" / "model"
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    report = store.erase("user", SUBJECT)
    assert report.complete
    assert report.erased == {}
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert store.dataset("model").recreate().fingerprint == store.dataset("model").fingerprint
    store.close()


def test_an_erasure_is_lifted_by_an_explicit_word_alone(tmp_path: Path) -> None:
    rows = [*rows_of(2, 30), Row(SUBJECT, "shop-1", DAY, 3.0)]
    store = store_at(tmp_path, rows)
    whole = store.materialize("model").fingerprint
    store.erase("user", SUBJECT)
    assert not store.materialize("model").created
    erased = store.dataset("model")
    assert store.unsuppress("user", SUBJECT)
    assert store.materialize_incremental("model").fingerprint == whole
    # What was made while the subject was absent is made again without it.
    assert erased.recreate().fingerprint == erased.fingerprint != whole
    assert not store.unsuppress("user", SUBJECT)
    store.close()


def test_the_ledger_and_the_certificate_hold_no_key(tmp_path: Path) -> None:
    store = store_at(tmp_path, [Row(SUBJECT, "shop-1", DAY, 3.0), Row("user-0001", "shop-1", DAY, 3.0)])
    store.materialize("model")
    store.erase("user", SUBJECT)
    assert raw_files_with(tmp_path / "erasures", SUBJECT.encode()) == []
    assert (tmp_path / "erasures" / "00000001.report.json").is_file()
    assert (tmp_path / "erasures").stat().st_mode & 0o077 == 0
    store.close()


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({"user": SUBJECT, "shop": "shop-1"}, id="one"),
        pytest.param([{"user": SUBJECT, "shop": "shop-1"}], id="a list"),
        pytest.param({"user": [SUBJECT], "shop": ["shop-1"]}, id="columns"),
        pytest.param(pa.table({"shop": ["shop-1"], "user": [SUBJECT]}), id="a table"),
    ],
)
def test_composite_keys_go_without_their_neighbours(tmp_path: Path, keys: object) -> None:
    rows = [Row(SUBJECT, "shop-1", DAY, 1.0), Row(SUBJECT, "shop-2", DAY, 2.0), Row("u", "shop-1", DAY, 3.0)]
    store = store_at(tmp_path, rows)
    both = fs.Entity("visit", join_keys=["user", "shop"])
    seen = fs.FeatureView("seen", source="payments", entities=[both], features=["amount"])
    store.apply([seen])
    store.materialize("seen")
    report = store.erase("visit", keys)
    assert report.complete, report.spec()
    assert sorted(store.dataset("seen").to_arrow().column("amount").to_pylist()) == [2.0, 3.0]
    store.close()


def test_keys_that_cannot_be_there_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    store = store_at(tmp_path, [Row(SUBJECT, "shop-1", DAY, 3.0)])
    with pytest.raises(SchemaError, match="of these types"):
        store.erase("user", 7)
    with pytest.raises(SchemaError, match="'user'"):
        store.erase("user", {"usr": ["x"]})
    with pytest.raises(NotFoundError):
        store.erase("usr", SUBJECT)
    assert not (tmp_path / "erasures").exists()
    store.close()
