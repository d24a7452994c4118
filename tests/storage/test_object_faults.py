"""Requests fail, answers are lost, writers die: a version appears once and whole, or not at all."""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import s3fs  # type: ignore[import-untyped] # it has no types
from tests.environment import SOAK, cases
from tests.materialize.faults import dying_at
from tests.materialize.house import House, seed_store, spine_rows, write
from tests.storage.buckets import BUCKET, copy_sources, filled_store, remote_store, s3_options, s3_server
from tests.storage.proxy import FORWARD, LOSE, REFUSE, Faults, proxy

import featurestore as fs
from featurestore.core.config import StoreConfig
from featurestore.errors import FeatureStoreError, NotFoundError, StorageError

# One request, or step, in so many is tried in the gate; all of them with FEATURESTORE_SOAK=1.
STRIDE = cases(60, 1, "FEATURESTORE_STRIDE")
# Nobody between us and the store tries again: every fault is seen.
BARE = {"config_kwargs": {"retries": {"max_attempts": 0}, "read_timeout": 20}}


@dataclass
class Bench:
    """A store behind a proxy, and the same without."""

    house: House
    direct: dict[str, Any]
    through: dict[str, Any]
    faults: Faults
    fingerprint: str
    requests: int = 0

    def copy(self, name: str, scratch: Path) -> tuple[fs.FeatureStore, fs.FeatureStore]:
        """Make a new store with sources and definitions; returns it through the proxy, and directly."""
        url = f"s3://{BUCKET}/{name}"
        near = remote_store(url, self.direct, scratch / "near", lease="900ms", threads=1, buckets=2)
        filled_store(self.house.root, list(self.house.context.snapshot.definitions()), near, self.direct)
        far = remote_store(url, self.through, scratch / "far", lease="900ms", threads=1, buckets=2)
        return far, near


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    house = seed_store(
        tmp_path_factory.mktemp("local") / "root", days=1, config=StoreConfig(buckets=2, threads=1)
    )
    fingerprint = fs.FeatureStore(house.root, {"buckets": 2, "threads": 1}).materialize("set").fingerprint
    faults = Faults()
    with s3_server() as options, proxy(options["client_kwargs"]["endpoint_url"], faults) as endpoint:
        found = Bench(house, options, s3_options(endpoint, **BARE), faults, fingerprint)
        scratch = tmp_path_factory.mktemp("count")
        found.copy("first", scratch / "first")[0].materialize("set")  # connections open, the store is probed
        far, _ = found.copy("second", scratch / "second")
        faults.restart(never)
        far.materialize("set")
        found.requests = len(faults.seen)
        yield found


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let s3fs try once as well."""
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)


def never(_number: int, _method: str, _path: str) -> str:
    return FORWARD


def only(at: int, fault: str, number: int, _method: str, _path: str) -> str:
    return fault if number == at else FORWARD


def onward(at: int, number: int, _method: str, _path: str) -> str:
    return REFUSE if number >= at else FORWARD


def check_whole(store: fs.FeatureStore, bench: Bench) -> None:
    """Readers see no version, or version 1 as it must be."""
    try:
        dataset = store.dataset("set")
    except NotFoundError:
        return
    assert (dataset.version, dataset.fingerprint) == (1, bench.fingerprint)
    dataset.verify()


def check_healed(store: fs.FeatureStore, bench: Bench) -> None:
    """The next run completes once."""
    result = store.materialize("set")
    assert result.fingerprint == bench.fingerprint
    assert [v.version for v in store.history("set")] == [1]
    store.dataset("set").verify()
    assert not store.materialize("set").created


@pytest.mark.slow
@pytest.mark.parametrize("fault", [REFUSE, LOSE])
def test_any_one_request_may_fail_or_lose_its_answer(bench: Bench, tmp_path: Path, fault: str) -> None:
    count = bench.requests
    assert count > 40
    failed = 0
    for at in range(1, count + 1, STRIDE):
        far, near = bench.copy(f"{fault}{at}", tmp_path / str(at))
        bench.faults.restart(partial(only, at, fault))
        try:
            far.materialize("set")
        except StorageError:
            failed += 1
        bench.faults.restart(never)
        check_whole(near, bench)
        check_healed(near, bench)
    assert failed < count


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "_delta_log/0{19}1.json",
        pytest.param("v00000001/MANIFEST.json", marks=pytest.mark.soak),
        pytest.param("LOCK/", marks=pytest.mark.soak),
        pytest.param(".tmp-", marks=pytest.mark.soak),
    ],
)
def test_a_lost_answer_to_a_put_is_settled_by_what_is_there(bench: Bench, tmp_path: Path, name: str) -> None:
    """The put was done: nobody is told otherwise, and nothing is done twice."""
    far, near = bench.copy(f"lost-{re.sub(r'[^a-z]', '', name)}", tmp_path)
    hits: list[int] = []

    def rule(_number: int, method: str, path: str) -> str:
        if method == "PUT" and re.search(name, path) and not hits:
            hits.append(1)
            return LOSE
        return FORWARD

    bench.faults.restart(rule)
    result = far.materialize("set")
    assert hits == [1]
    assert (result.version, result.created, result.fingerprint) == (1, True, bench.fingerprint)
    bench.faults.restart(never)
    check_healed(near, bench)


@pytest.mark.slow
def test_an_outage_from_any_request_on_leaves_no_partial_version(bench: Bench, tmp_path: Path) -> None:
    count = bench.requests
    for at in range(count - 8, 1, -STRIDE):
        far, near = bench.copy(f"outage{at}", tmp_path / str(at))
        bench.faults.restart(partial(onward, at))
        with suppress(StorageError):
            far.materialize("set")
        bench.faults.restart(never)
        check_whole(near, bench)
        check_healed(near, bench)


@pytest.mark.soak
def test_a_store_that_fails_every_seventh_request_is_written_to_in_the_end(
    bench: Bench, tmp_path: Path
) -> None:
    far, near = bench.copy("seventh", tmp_path)
    bench.faults.restart(lambda number, _m, _p: (FORWARD, REFUSE, LOSE)[(number % 7 == 0) * (1 + number % 2)])
    for _ in range(60):
        with suppress(FeatureStoreError):
            far.materialize("set")
            break
    bench.faults.restart(never)
    check_whole(near, bench)
    check_healed(near, bench)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # threads die too
def test_a_writer_that_dies_at_any_step_leaves_no_partial_version(bench: Bench, tmp_path: Path) -> None:
    far, _ = bench.copy("steps", tmp_path / "steps")
    bench.faults.restart(never)
    with dying_at(0) as steps:
        far.materialize("set")
    commit = next(i for i, s in enumerate(steps.seen, 1) if s.endswith("put 00000000000000000001.json"))
    assert len(steps.seen) > 20
    chosen = range(1, len(steps.seen) + 1, STRIDE) if SOAK else (commit - 1, commit, commit + 1)
    for step in chosen:
        far, near = bench.copy(f"dies{step}", tmp_path / str(step))
        with dying_at(step):
            far.materialize("set")
        check_whole(near, bench)
        check_healed(near, bench)


@pytest.mark.soak
def test_appends_whose_answer_is_lost_are_there_once(bench: Bench, tmp_path: Path) -> None:
    far, near = bench.copy("appends", tmp_path)
    rows = spine_rows(3, 10, first_hour=1, hours=5)
    before = near.get_historical_features(rows, ["near"]).to_arrow().num_rows
    hits: list[int] = []

    def rule(_number: int, method: str, path: str) -> str:
        if method == "PUT" and "/zz-" in path:
            hits.append(1)
            return LOSE if len(hits) % 2 else FORWARD
        return FORWARD

    bench.faults.restart(rule)
    for _ in range(4):
        assert far.ingest("spine", rows).rows == 10
    bench.faults.restart(never)
    assert before == 10
    assert near.materialize("set").rows == 60 + 4 * 10


@pytest.mark.slow
def test_two_machines_that_append_at_once_both_keep_their_rows(bench: Bench, tmp_path: Path) -> None:
    far, near = bench.copy("both", tmp_path)
    bench.faults.restart(never)
    one, two = spine_rows(3, 10, first_hour=1, hours=5), spine_rows(4, 10, first_hour=1, hours=5)
    done: list[int] = []

    def rule(_number: int, method: str, path: str) -> str:
        if method == "PUT" and "/zz-" in path and not done:
            done.append(1)
            near.ingest("spine", two)  # the other is faster, and takes the name
        return FORWARD

    bench.faults.restart(rule)
    far.ingest("spine", one)
    bench.faults.restart(never)
    assert near.materialize("set").rows == 60 + 20


@pytest.mark.soak
def test_a_late_file_arrives_between_runs_whatever_fails(bench: Bench, tmp_path: Path) -> None:
    far, near = bench.copy("late", tmp_path)
    bench.faults.restart(never)
    far.materialize("set")
    write(tmp_path / "more" / "spine" / "d9.parquet", spine_rows(9, 20, first_hour=3, hours=20))
    copy_sources(tmp_path / "more", near.root, bench.direct)
    bench.faults.restart(lambda number, _m, _p: LOSE if number % 11 == 0 else FORWARD)
    for _ in range(60):
        with suppress(FeatureStoreError):
            far.materialize_incremental("set")
            break
    bench.faults.restart(never)
    result = near.materialize_incremental("set")
    assert [v.version for v in near.history("set")] == [1, 2]
    assert result.fingerprint == near.dataset("set").recreate().fingerprint
    assert near.dataset("set").verify().rows == 80
