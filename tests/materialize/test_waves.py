"""Early dates are computed while later ones are read: same answers, no spill, in whatever order rows come."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.environment import cases
from tests.materialize.faults import Steps
from tests.materialize.house import START_NS, as_bag, build, events, spine_rows, whole_join, write

from featurestore.core.config import StoreConfig
from featurestore.core.time import DAY_NS, day_text
from featurestore.errors import CorruptDataError, StorageError
from featurestore.materialize.carried import Carrier
from featurestore.materialize.executors import Executor, Processes, Threads
from featurestore.materialize.gathering import Gathering
from featurestore.materialize.job import Rows
from featurestore.materialize.plan import Input, Task
from featurestore.materialize.staging import Budget, Held, Stager, timed
from featurestore.materialize.training_set import materialize, materialize_incremental
from featurestore.materialize.versions import open_version
from featurestore.resolve.events import EventTimes
from featurestore.storage.files import observed
from featurestore.storage.source_files import Place, SourceFile
from featurestore.storage.source_readers import GroupTimes, Scanned, group_times, scan_file
from featurestore.storage.sources import SourceSpec
from featurestore.storage.state_files import read_index

DAYS = 10


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Cut waves at a few rows; the list counts them, run by run."""
    counts: list[int] = []
    waves = Gathering.waves

    def counted(self: Gathering) -> Any:
        counts.append(0)
        for wave in waves(self):
            counts[-1] += 1
            yield wave

    monkeypatch.setattr("featurestore.materialize.gathering.task_rows_of", lambda *_: 30)
    monkeypatch.setattr(Gathering, "waves", counted)
    return counts


def cut(folder: Path, table: pa.Table, rng: np.random.Generator, order: str) -> None:
    """Write rows as files: in the order of time, roughly so, or in none, some without statistics."""
    folder.mkdir(parents=True)
    ts = np.asarray(table.column("ts").cast(pa.int64()))
    if order == "roughly":
        ts = ts + rng.integers(-DAY_NS // 8, DAY_NS // 8, len(ts))
    places = np.argsort(ts, kind="stable") if order != "none" else rng.permutation(len(ts))
    edges = np.sort(rng.integers(0, len(ts), int(rng.integers(0, 9))))
    for number, own in enumerate(np.split(places, edges)):
        told = order != "none" or bool(rng.random() < 0.5)
        size = int(rng.integers(5, 60))
        path = folder / f"f{number:02d}.parquet"
        pq.write_table(table.take(pa.array(own)), path, row_group_size=size, write_statistics=told)


ORDERS = st.sampled_from(["time", "time", "roughly", "none"])


@settings(
    max_examples=cases(6, 500),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@pytest.mark.usefixtures("small_tasks")
@given(
    seed=st.integers(0, 2**31),
    orders=st.tuples(ORDERS, ORDERS),
    unbounded=st.booleans(),
    crossed=st.booleans(),
    threads=st.integers(1, 3),
)
def test_in_whatever_files_rows_come_the_answer_is_that_of_one_join(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    orders: tuple[str, str],
    unbounded: bool,
    crossed: bool,
    threads: int,
) -> None:
    rng = np.random.default_rng(seed)
    root = tmp_path_factory.mktemp("waves")
    cut(root / "spine", spine_rows(seed % 1000, 120, first_hour=0, hours=24 * DAYS), rng, orders[0])
    # Some begin before the spine, some end before it.
    first, hours = int(rng.integers(-60, 40)), int(rng.integers(30, 24 * DAYS + 60))
    cut(root / "events", events(seed % 1000, 300, first_hour=first, hours=hours), rng, orders[1])
    config = StoreConfig(buckets=3, threads=threads, memory_bytes=int(rng.choice([20_000, 1 << 30])))
    house = build(root, config=config, unbounded=unbounded, crossed=crossed)
    materialize(house.context, "set")
    assert as_bag(open_version(house.context, "set").to_arrow()) == as_bag(whole_join(house))


def daily(root: Path, name: str, make: Any, rows: int) -> None:
    """Write a file per day, in order."""
    for day in range(DAYS):
        write(root / name / f"d{day:02d}.parquet", make(day, rows, first_hour=24 * day, hours=24))


@pytest.mark.parametrize("unbounded", [True, False], ids=["state is carried", "look-back is read again"])
def test_what_comes_in_the_order_of_time_is_computed_as_it_comes_and_never_spilled(
    tmp_path: Path, small_tasks: list[int], unbounded: bool
) -> None:
    daily(tmp_path, "spine", spine_rows, 60)
    daily(tmp_path, "events", events, 150)
    # A few days of rows fit, the whole does not.
    config = StoreConfig(buckets=3, threads=1, memory_bytes=100_000)
    house = build(tmp_path, config=config, unbounded=unbounded)
    seen: list[str] = []

    def spy(place: Place, file: SourceFile, kind: str, **of: Any) -> Iterator[Scanned]:
        seen.append(f"open {Path(file.path).parent.name}/{file.name}")
        return scan_file(place, file, kind, **of)

    with pytest.MonkeyPatch.context() as patch, observed(lambda what, path: seen.append(f"{what} {path}")):
        patch.setattr("featurestore.storage.sources.scan_file", spy)
        materialize(house.context, "set")
    assert small_tasks == [DAYS]
    first = next(i for i, what in enumerate(seen) if what.startswith("write") and ".parquet" in what)
    # What is read ahead, and a label's reach, come before.
    assert first < seen.index(f"open events/d{DAYS - 1:02d}.parquet")
    spilled = {Path(s).parent.name for s in seen if s.startswith("spill")}
    assert spilled <= {"states"}, "rows of a source were spilled"
    assert as_bag(open_version(house.context, "set").to_arrow()) == as_bag(whole_join(house))


@pytest.mark.usefixtures("small_tasks")
def test_rows_in_no_order_spill_and_answer_the_same(tmp_path: Path) -> None:
    daily(tmp_path, "spine", spine_rows, 60)
    daily(tmp_path, "events", events, 150)
    (tmp_path / "events" / "d00.parquet").rename(tmp_path / "events" / "late.parquet")
    house = build(tmp_path, config=StoreConfig(buckets=3, threads=1, memory_bytes=100_000))
    steps = Steps()
    with observed(steps):
        materialize(house.context, "set")
    assert any(s.startswith("spill") for s in steps.seen)
    assert as_bag(open_version(house.context, "set").to_arrow()) == as_bag(whole_join(house))


def test_statistics_that_lie_are_an_error_and_no_wrong_answer(
    tmp_path: Path, small_tasks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    daily(tmp_path, "spine", spine_rows, 60)
    daily(tmp_path, "events", events, 150)

    def lying(place: Place, file: SourceFile, timestamp: str) -> list[GroupTimes] | None:
        found = group_times(place, file, timestamp)
        assert found is not None
        late = file.name == "d05.parquet" and "events" in file.path
        return [g._replace(min_ns=g.max_ns + DAY_NS * DAYS) for g in found] if late else found

    monkeypatch.setattr("featurestore.storage.sources.group_times", lying)
    with pytest.raises(CorruptDataError, match="statistics"):
        materialize(build(tmp_path, unbounded=False).context, "set")
    assert len(small_tasks) == 1


@pytest.mark.parametrize("day", [DAYS, DAYS - 2], ids=["what is new", "what is late"])
@pytest.mark.parametrize("crossed", [False, True], ids=["its own buckets", "other buckets, too"])
def test_states_left_behind_by_waves_serve_later_runs(
    tmp_path: Path, small_tasks: list[int], crossed: bool, day: int
) -> None:
    daily(tmp_path, "spine", spine_rows, 60)
    daily(tmp_path, "events", events, 150)
    house = build(tmp_path, config=StoreConfig(buckets=3, threads=2), crossed=crossed)
    first = materialize(house.context, "set")
    assert small_tasks == [DAYS]
    index = read_index(first.folder, open_version(house.context, "set").manifest.states)
    by_source = {(s.source, s.bucket) for s in index.states}
    assert by_source == {("events", b) for b in range(3)} | ({("events*", -1)} if crossed else set())
    assert max(s.date for s in index.states) >= day_text(START_NS // DAY_NS + DAYS - 1)
    write(tmp_path / "spine" / "new.parquet", spine_rows(70, 40, first_hour=24 * day, hours=20))
    write(tmp_path / "events" / "new.parquet", events(70, 40, first_hour=24 * day, hours=20))
    materialize_incremental(house.context, "set")
    stored = open_version(house.context, "set").to_arrow()
    assert as_bag(stored) == as_bag(whole_join(house).cast(stored.schema))


def test_a_full_budget_is_relieved_by_the_source_that_holds_most(tmp_path: Path) -> None:
    """The one that is read later keeps its rows; no file holds just a batch."""
    budget = Budget(100_000)

    def stager(name: str) -> Stager:
        rows = Rows(SourceSpec(name, name), EventTimes("ts", None, None, 0), ("key", "ts"), ("key",), None)
        return Stager(rows, buckets=2, held=Held(budget, tmp_path / name, in_memory=True), spine=False)

    rows = events(1, 500, first_hour=0, hours=5).select(["key", "ts"]).combine_chunks().to_batches()[0]
    batch = timed(rows, "ts")
    early, late = stager("early"), stager("late")
    steps = Steps()
    with observed(steps):
        while not any((tmp_path / "early").glob("*")):
            early.add(batch)
        spills = len(steps.seen)
        for _ in range(4):
            early.add(batch)
        for _ in range(3):
            late.add(batch)
    assert len(steps.seen) == spills, "the later source found no room"
    assert sum(p.rows for p in early.held.parts().values()) % 500 == 0
    assert sum(p.rows for p in late.held.parts().values()) == 1500


@pytest.mark.parametrize(
    "executor", [Threads(1), Threads(3), Processes(2)], ids=["one", "three", "processes"]
)
@pytest.mark.parametrize(
    ("unbounded", "crossed"),
    [(True, False), (False, False), (True, True)],
    ids=["state is carried", "look-back is read again", "rows of other buckets answer"],
)
def test_executors_take_waves_alike(
    tmp_path: Path, small_tasks: list[int], executor: Executor, unbounded: bool, crossed: bool
) -> None:
    daily(tmp_path, "spine", spine_rows, 60)
    daily(tmp_path, "events", events, 150)
    house = build(tmp_path, unbounded=unbounded, crossed=crossed)
    materialize(house.context, "set", executor=executor)
    carried_elsewhere = unbounded and isinstance(executor, Processes)
    assert small_tasks == [1 if carried_elsewhere else DAYS]
    assert as_bag(open_version(house.context, "set").to_arrow()) == as_bag(whole_join(house))


@pytest.mark.usefixtures("small_tasks")
def test_rows_of_a_source_go_to_their_buckets_once_and_to_all_of_them_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many buckets: views by the set's key read their own rows, all others are answered together."""
    daily(tmp_path, "spine", spine_rows, 60)
    daily(tmp_path, "events", events, 150)
    given: Counter[str] = Counter()
    rows_for = Carrier.rows_for

    def counted(self: Carrier, task: Task, need: Input) -> pa.Table:
        rows = rows_for(self, task, need)
        given[need.source] += rows.num_rows
        return rows

    monkeypatch.setattr(Carrier, "rows_for", counted)
    seen = []
    for buckets in (1, 6):
        given.clear()
        root = tmp_path / str(buckets)
        for name in ("spine", "events"):
            shutil.copytree(tmp_path / name, root / name)
        house = build(root, config=StoreConfig(buckets=buckets, threads=1), crossed=True)
        materialize(house.context, "set")
        seen.append(dict(given))
    assert seen[0].keys() == {"events", "events*"}
    assert seen[1]["events*"] == seen[0]["events*"]
    # Nor more: a task that looks further ahead or back reads some dates again.
    assert seen[1]["events"] <= 1.2 * seen[0]["events"]


@pytest.mark.usefixtures("small_tasks")
def test_a_task_that_fails_ends_the_run(tmp_path: Path) -> None:
    """What waits for its states does not wait for ever."""
    daily(tmp_path, "spine", spine_rows, 60)
    daily(tmp_path, "events", events, 150)
    house = build(tmp_path, config=StoreConfig(buckets=3, threads=3))
    failing = Steps(40, StorageError("disk full", hint="on purpose"))
    with observed(failing), pytest.raises(StorageError, match="disk full"):
        materialize(house.context, "set")
    assert materialize(house.context, "set").rows == 60 * DAYS
