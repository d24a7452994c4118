"""Erasure under s3://: no object, copy or scratch file keeps a byte of the subject, however it is cut off."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs  # type: ignore[import-untyped] # it has no types
from tests.materialize.faults import dying_at
from tests.storage.buckets import BUCKET, remote_store, s3_server
from tests.store.test_erasure import DAY, SHOP, SUBJECT, USER, Row, rows_of, table, without

import featurestore as fs
from featurestore.errors import NotFoundError
from featurestore.materialize.context import path_of
from featurestore.materialize.garbage import unnamed_objects
from featurestore.storage.delta_log import read_log
from featurestore.storage.objects import ObjectPath
from featurestore.storage.version_files import fetched

Options = dict[str, Any]


@pytest.fixture(scope="module")
def s3() -> Iterator[Options]:
    with s3_server() as options:
        yield options


class Remote:
    """A root in a bucket, and this machine's folders for it."""

    def __init__(self, s3: Options, scratch: Path, name: str) -> None:
        self.options = s3
        self.scratch = scratch / name
        self.key = f"{BUCKET}{scratch}/{name}"
        self.files = s3fs.S3FileSystem(**s3, use_listings_cache=False)

    def store(self) -> fs.FeatureStore:
        """Open the store as a new process would."""
        return remote_store(f"s3://{self.key}", self.options, self.scratch, lease="1s")

    def filled(self, rows: list[Row], *, mixed: bool = False) -> fs.FeatureStore:
        """Put one file of payments and apply definitions."""
        sink = pa.BufferOutputStream()
        pq.write_table(table(rows), sink)
        self.files.pipe_file(f"{self.key}/payments/p0.parquet", sink.getvalue().to_pybytes())
        source = fs.Source("payments", path="payments", timestamp_field="ts", entities=[USER])
        last = fs.FeatureView(
            "last_payment", source=source, entities=[USER], features={"last_amount": "amount"}
        )
        spent = [fs.Aggregation("amount", "sum", "2d", name="spent_2d")]
        views = [fs.FeatureView("spent", source=source, entities=[USER], aggregations=spent), last]
        if mixed:
            of_shops = [fs.Aggregation("amount", "sum", "2d", name="turnover_2d")]
            views.append(fs.FeatureView("turnover", source=source, entities=[SHOP], aggregations=of_shops))
        opened = self.store()
        opened.apply([last, fs.TrainingSet("model", spine=source, features=views)])
        return opened

    def holding(self, needle: str) -> list[str]:
        """Read every object and every file of this machine that the store could own."""
        objects = self.files.find(self.key)
        found = [key for key in objects if _holds(self.files.cat_file(key), key, needle)]
        local = [path for path in self.scratch.rglob("*") if path.is_file()]
        found += [str(path) for path in local if _holds(path.read_bytes(), path.name, needle)]
        return sorted(name.removeprefix(f"{self.key}/") for name in found)

    def unnamed(self, store: fs.FeatureStore) -> list[str]:
        """Return the objects of the training set that no version needs."""
        root = path_of(store.root, store.config)
        assert isinstance(root, ObjectPath)
        base = root / "datasets" / "model"
        return [path.name for path in unnamed_objects(base / "ipc", base / "delta", read_log(base / "delta"))]


def _holds(data: bytes, name: str, needle: str) -> bool:
    decoded = name.endswith(".parquet") and needle in str(pq.read_table(pa.BufferReader(data)).to_pydict())
    return needle.encode() in data or decoded


def test_a_remote_store_after_an_erasure_is_the_store_that_never_had_the_subject(
    s3: Options, tmp_path: Path
) -> None:
    rows = [*rows_of(3, 60), Row(SUBJECT, "shop-1", DAY, 3.0)]
    later = [Row(SUBJECT, "shop-2", 3 * DAY, 9.0), Row("user-0002", "shop-0", DAY, 1.0)]
    remote, other = Remote(s3, tmp_path, "store"), Remote(s3, tmp_path, "twin")
    names = ["model", "last_payment"]
    with remote.filled(rows, mixed=True) as store, other.filled(without(rows), mixed=True) as twin:
        for one, own in ((store, later), (twin, without(later))):
            for name in names:
                one.materialize(name)
            one.push("payments", table(own))
            one.materialize("model")
        store.pin("model", 1, "first")
        first = twin.dataset("model", 1).fingerprint
        report = store.erase("user", SUBJECT, pinned="rewrite")
        assert report.complete, report.spec()
        assert remote.holding(SUBJECT) == ["payments/p0.parquet"]
        assert list(report.remaining_files.values()) == [sum(r.user == SUBJECT for r in rows)]
        for name in names:
            assert store.dataset(name).fingerprint == twin.dataset(name).fingerprint, name
        assert store.dataset("model", "first").fingerprint == first
        with pytest.raises(NotFoundError):
            store.dataset("model", 1)
        for name in names:
            assert store.dataset(name).verify().fingerprint == store.dataset(name).recreate().fingerprint
        late = [Row(SUBJECT, "shop-0", 2 * DAY, 5.0), Row("user-0001", "shop-0", 2 * DAY, 6.0)]
        store.push("payments", table(late))
        twin.push("payments", table(without(late)))
        for one in (store, twin):
            one.materialize_incremental("model")
        assert store.dataset("model").fingerprint == twin.dataset("model").fingerprint
        assert store.export("user", SUBJECT) == {}
    with remote.store() as again:
        assert again.erase("user", SUBJECT, pinned="rewrite").complete
        assert again.unsuppress("user", SUBJECT)


def test_the_scan_of_a_remote_root_finds_what_an_erasure_did_not_know_of(s3: Options, tmp_path: Path) -> None:
    remote = Remote(s3, tmp_path, "store")
    with remote.filled([*rows_of(1, 20), Row(SUBJECT, "shop-1", DAY, 3.0)]) as store:
        store.materialize("model")
        rows = store.export("user", SUBJECT)["dataset/model@1"]
        assert store.erase("user", SUBJECT).complete
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, compression="zstd")
        for name, data in (("stray.parquet", sink.getvalue().to_pybytes()), ("stray.bin", SUBJECT.encode())):
            remote.files.pipe_file(f"{remote.key}/datasets/{name}", data)
            report = store.erase("user", SUBJECT)
            assert not report.complete
            assert report.proof is not None
            assert list(report.proof.occurrences) == [f"datasets/{name}"]
            remote.files.rm_file(f"{remote.key}/datasets/{name}")
        assert store.erase("user", SUBJECT).complete


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # a lease's thread dies too
def test_what_an_interrupted_run_put_goes_and_a_writer_that_wakes_up_late_is_refused(
    s3: Options, tmp_path: Path
) -> None:
    remote = Remote(s3, tmp_path, "store")
    rows = [*without(rows_of(1, 30)), Row(SUBJECT, "shop-1", DAY, 3.0)]
    with remote.filled(rows) as store:
        store.materialize("model", end=DAY)  # without the subject

    def of_model() -> list[str]:
        found = remote.holding(SUBJECT)
        return [name for name in found if name.startswith("datasets/model") and "/state-" not in name]

    step = 60
    while not of_model():
        with remote.store() as dying, dying_at(step) as steps:
            dying.materialize("model")
        assert steps.count >= step, "the run left nothing behind"
        step += 20
    with remote.store() as store:
        assert store.dataset("model").version == 1
        report = store.erase("user", SUBJECT)
        assert report.complete, report.spec()
        assert of_model() == []
        assert report.erased == {}
        # The same rows as a new version: a commit of the stopped writer would have had its number.
        assert store.dataset("model").version == 2
        assert store.dataset("model").fingerprint == store.dataset("model", 1).fingerprint


def test_values_made_from_the_subjects_rows_go_with_the_versions_that_share_them(
    s3: Options, tmp_path: Path
) -> None:
    remote = Remote(s3, tmp_path, "store")
    with remote.filled(rows_of(3, 60), mixed=True) as store:
        store.materialize("model")
        store.push("payments", table([Row("user-0002", "shop-0", 3 * DAY, 1.0)]))
        store.materialize_incremental("model")
        assert store.erase("user", SUBJECT).complete
        assert remote.unnamed(store) == []


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # a lease's thread dies too
@pytest.mark.parametrize("version", [0, 1])
def test_what_a_run_put_that_died_before_its_commit_goes_with_the_subject(
    s3: Options, tmp_path: Path, version: int
) -> None:
    remote = Remote(s3, tmp_path, "store")
    with remote.filled(rows_of(3, 60), mixed=True) as store:
        if version:
            store.materialize("model", end=DAY)
    last = 0
    while not last or not remote.unnamed(store):
        last += 30
        with remote.store() as dying, dying_at(last) as steps:
            dying.materialize("model")
        assert steps.count >= last, "the run left nothing behind"
    with remote.store() as store:
        assert len(store.history("model")) == version
        report = store.erase("user", SUBJECT)
        assert report.complete, report.spec()
        assert remote.unnamed(store) == []
        assert remote.holding(SUBJECT) == ["payments/p0.parquet"]


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # a lease's thread dies too
@pytest.mark.parametrize(
    "stride",
    [
        pytest.param(57, id="some"),
        pytest.param(5, id="more", marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
    ],
)
def test_a_remote_erasure_killed_at_any_step_is_run_to_its_end_by_the_same_call(
    s3: Options, tmp_path: Path, stride: int
) -> None:
    rows = [*rows_of(3, 30), Row(SUBJECT, "shop-1", DAY, 3.0)]

    def prepared(name: str) -> Remote:
        remote = Remote(s3, tmp_path, name)
        with remote.filled(rows) as store:
            store.materialize("model", end=3 * DAY)
            store.ingest("payments", table([Row(SUBJECT, "shop-2", 3 * DAY, 9.0)]))
            store.materialize("model")
        return remote

    with prepared("counted").store() as store, dying_at(0) as steps:
        assert store.erase("user", SUBJECT).complete
        expected = store.dataset("model").fingerprint
    assert steps.count > 40
    for step in range(2, steps.count + 1, stride):
        remote = prepared(f"killed-{step}")
        with remote.store() as first, dying_at(step):
            first.erase("user", SUBJECT)
        with remote.store() as again:
            assert again.erase("user", SUBJECT).complete, step
            assert remote.holding(SUBJECT) == ["payments/p0.parquet"], step
            assert again.dataset("model").fingerprint == expected, step
            assert again.export("user", SUBJECT) == {}


def test_the_ledger_of_a_remote_root_holds_no_key_and_is_read_anew_where_a_root_was_replaced(
    s3: Options, tmp_path: Path
) -> None:
    remote = Remote(s3, tmp_path, "store")
    with remote.filled([Row(SUBJECT, "shop-1", DAY, 3.0), Row("user-0001", "shop-1", DAY, 3.0)]) as store:
        store.erase("user", SUBJECT)
        assert [f for f in remote.holding(SUBJECT) if f.startswith("erasures")] == []
        root = path_of(store.root, store.config)
        assert isinstance(root, ObjectPath)
        assert (root / "erasures" / "00000001.report.json").is_file()
        kept = root / "payments" / "p0.parquet"
        size = len(kept.read_bytes())
        with fetched(kept, size) as copy:
            assert copy.read_bytes() == kept.read_bytes()
            # A process that is killed here leaves nothing of it behind.
            assert [f for f in remote.holding(SUBJECT) if f.startswith(str(remote.scratch))] == []
    remote.files.rm(remote.key, recursive=True)
    with remote.filled([Row(SUBJECT, "shop-1", DAY, 3.0)]) as store:
        store.materialize("model")
        assert store.dataset("model").to_arrow().column("user").to_pylist() == [SUBJECT]
