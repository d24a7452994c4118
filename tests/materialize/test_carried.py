"""Carried state on disk: later runs go on from it, read no history, and answer as if they had."""

import gc
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.environment import cases
from tests.materialize.faults import flipped
from tests.materialize.house import START_NS, House, events, write

import featurestore as fs
from featurestore.catalog.catalog import open_catalog
from featurestore.core.clock import ManualClock
from featurestore.core.config import StoreConfig
from featurestore.core.time import DAY_NS, day_text
from featurestore.errors import CorruptDataError
from featurestore.materialize.context import Context, home_of, source_spec
from featurestore.materialize.job import compile_job
from featurestore.materialize.plan import (
    FileStat,
    MaterializationPlan,
    SourceStat,
    plan_materialization,
)
from featurestore.materialize.training_set import materialize, materialize_incremental, plan_run
from featurestore.materialize.versions import open_version, recreate, rollback, vacuum, verify
from featurestore.storage.source_files import Place, SourceFile
from featurestore.storage.source_readers import Scanned, scan_file
from featurestore.storage.sources import open_source
from featurestore.storage.state_files import read_index

CONFIG = StoreConfig(buckets=3, threads=1)
SOURCES = ("spine", "events", "prices")
DAYS = 8
START_DAY = START_NS // DAY_NS


def spine_of(seed: int, rows: int, *, first_hour: int, hours: int) -> pa.Table:
    """Draw spine rows of a key and of a venue and a site that have nothing to do with it."""
    table = events(seed + 1000, rows, first_hour=first_hour, hours=hours).select(["key", "ts", "site"])
    venues = np.random.default_rng(seed).integers(0, 3, rows)
    return table.append_column("venue", pa.array([f"v{v}" for v in venues]))


def prices_of(seed: int, rows: int, *, first_hour: int, hours: int) -> pa.Table:
    """Draw rows of a venue."""
    table = events(seed + 500, rows, first_hour=first_hour, hours=hours, keys=3)
    venue = pa.array([None if k is None else f"v{k[1:]}" for k in table.column("key").to_pylist()])
    return pa.table({"venue": venue, "ts": table.column("ts"), "price": table.column("value")})


MAKE = {"spine": spine_of, "events": events, "prices": prices_of}


def define(root: Path, *, nulls: str = "last_known", wide: bool = False) -> House:
    """Define a set that looks back for ever, by its own key, by another, and through a view over a view.

    Args:
        wide: Also over days by ttl and window, through an upstream that looks back itself, and into the
            same rows by another key, by several, and by its own above what was computed by another.
    """
    key, venue, site = fs.Entity("key"), fs.Entity("venue"), fs.Entity("site")
    both = fs.Entity("both", join_keys=["key", "site"])
    spine = fs.Source("spine", path="spine", timestamp_field="ts", entities=[key, venue])
    rows = fs.Source(
        "events", path="events", timestamp_field="ts", created_timestamp_column="created", entities=[key]
    )
    prices = fs.Source("prices", path="prices", timestamp_field="ts", entities=[venue])
    known = fs.FeatureView("known", source=rows, entities=[key], features=["value", "size"], nulls=nulls)
    half = fs.FeatureView("half", source=rows, entities=[key], features={"half": "value / 2"})
    views: list[fs.FeatureView | str] = [
        known,
        fs.FeatureView("tops", source=half, entities=[key], features={"top": "half + 1"}, nulls=nulls),
        fs.FeatureView("market", source=prices, entities=[venue], features=["price"]),
    ]
    if wide:
        sums = [fs.Aggregation("size", "sum", "70h", name="total")]
        far = {"far": "value * 3"}
        views += [
            fs.FeatureView("long", source=rows, entities=[key], features=far, ttl="4d", aggregations=sums),
            fs.FeatureView("above", source=known, entities=[key], features={"both": "value + size"}),
        ]
        there = {"here": "size", "key": "key"}
        heard = [fs.Aggregation("value", "sum", "60h", name="noise")]
        crowd = fs.FeatureView("crowd", source=rows, entities=[site], features=there, aggregations=heard)
        most = [fs.Aggregation("noise", "max", "50h", name="loudest")]
        seen = [fs.Aggregation("*", "count", "80h", name="visits")]
        views += [
            "crowd:here",
            "crowd:noise",
            fs.FeatureView("taste", source=crowd, entities=[key], aggregations=most),
            fs.FeatureView(
                "pair", source=rows, entities=[both], features={"last": "size"}, aggregations=seen
            ),
        ]
    wanted = fs.TrainingSet("set", spine=spine, features=views, entities=[key])
    catalog = open_catalog(
        root, read_schema=lambda s: open_source(source_spec(s), str(root)).schema, clock=ManualClock(1)
    )
    catalog.apply([wanted])
    context = Context(str(root), catalog.at(catalog.head), ManualClock(START_NS), CONFIG)
    return House(root, context)


def seeded(root: Path, *, wide: bool = False) -> House:
    """Write a file per source and day, and define the set."""
    for day in range(DAYS):
        for name in SOURCES:
            write(root / name / f"d{day:02d}.parquet", MAKE[name](day, 40, first_hour=24 * day, hours=24))
    return define(root, wide=wide)


def fresh(house: House, name: str, *, wide: bool = False, start_ns: int | None = None) -> str:
    """Return the fingerprint that a store without any history would get from the same sources."""
    with tempfile.TemporaryDirectory() as folder:
        for source in SOURCES:
            shutil.copytree(house.root / source, Path(folder) / source)
        return materialize(define(Path(folder), wide=wide).context, name, start_ns=start_ns).fingerprint


@contextmanager
def opened_files() -> Iterator[set[str]]:
    """Collect the names of the source files that are read while the block runs."""
    read: set[str] = set()

    def spy(place: Place, file: SourceFile, kind: str, **of: Any) -> Iterator[Scanned]:
        read.add(f"{Path(file.path).parent.name}/{file.name}")
        return scan_file(place, file, kind, **of)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featurestore.storage.sources.scan_file", spy)
        yield read


def test_what_was_appended_is_all_that_is_read(tmp_path: Path) -> None:
    house = seeded(tmp_path)
    materialize(house.context, "set")
    for name in SOURCES:
        write(tmp_path / name / "new.parquet", MAKE[name](70, 30, first_hour=24 * DAYS, hours=20))
    with opened_files() as read:
        found = materialize_incremental(house.context, "set")
    assert read == {f"{name}/new.parquet" for name in SOURCES}
    assert found.fingerprint == fresh(house, "set")
    verify(house.context, "set")


def test_a_late_row_is_answered_from_the_state_before_its_date(tmp_path: Path) -> None:
    house = seeded(tmp_path)
    materialize(house.context, "set")
    write(tmp_path / "events" / "late.parquet", events(71, 3, first_hour=24 * 6 + 1, hours=3))
    with opened_files() as read:
        found = materialize_incremental(house.context, "set")
    assert read == {"events/late.parquet"} | {f"{n}/d{d:02d}.parquet" for n in SOURCES for d in (6, 7)}
    assert found.fingerprint == fresh(house, "set")


def test_a_range_goes_on_from_the_state_before_its_start(tmp_path: Path) -> None:
    house = seeded(tmp_path)
    materialize(house.context, "set")
    start_ns = START_NS + 6 * DAY_NS + 5
    with opened_files() as read:
        found = materialize(house.context, "set", start_ns=start_ns)
    assert read == {f"{n}/d{d:02d}.parquet" for n in SOURCES for d in (6, 7)}
    assert found.fingerprint == fresh(house, "set", start_ns=start_ns)
    # What the range does not reach is known still: a late row before its start changes the state under it.
    write(tmp_path / "events" / "late.parquet", events(72, 9, first_hour=30, hours=50))
    assert materialize_incremental(house.context, "set").fingerprint == fresh(house, "set", start_ns=start_ns)


def test_a_whole_run_and_a_recreation_take_nothing_over(tmp_path: Path) -> None:
    house = seeded(tmp_path)
    first = materialize(house.context, "set")
    write(tmp_path / "events" / "late.parquet", events(71, 3, first_hour=24 * 6 + 1, hours=3))
    with opened_files() as read:
        materialize(house.context, "set")
    assert len(read) == 3 * DAYS + 1
    (tmp_path / "events" / "late.parquet").unlink()
    with opened_files() as read:
        assert recreate(house.context, "set", 1).fingerprint == first.fingerprint
    assert len(read) == 3 * DAYS


def test_the_plan_names_what_the_run_reads_and_writes(tmp_path: Path) -> None:
    house = seeded(tmp_path)
    whole = plan_run(house.context, "set")
    assert whole.rows == 40 * DAYS
    assert {i.source for c in whole.chains for t in c.tasks for i in t.inputs} == {"events"}
    assert {i.source for t in whole.whole.tasks for i in t.inputs} == {"prices"}
    first = materialize(house.context, "set")
    shards = open_version(house.context, "set").manifest.shards
    assert {(day_text(d), b): n for (d, b), n in whole.partitions.items()} == {
        (s.date, s.bucket): s.rows for s in shards
    }
    for name in SOURCES:
        write(tmp_path / name / "new.parquet", MAKE[name](70, 30, first_hour=24 * DAYS, hours=20))
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    plan = plan_run(house.context, "set", incremental=True)
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before
    inputs = [i for c in (plan.whole, *plan.chains) for t in c.tasks for i in t.inputs]
    assert {i.extent.files for i in inputs} == {("new.parquet",)}
    assert {day_text(i.state_day) for i in inputs if i.state_day is not None} == {
        day_text(START_DAY + DAYS - 1)
    }
    assert plan.columns["prices"] == ("venue", "ts", "price")
    text = plan.explain()
    for part in (
        "30 rows into 3 partitions",
        "source events: 9 files",
        "of 1 files (new.parquet), on the state stored at the end of 2013-10-29",
    ):
        assert part in text, text
    result = materialize_incremental(house.context, "set")
    assert (result.written, result.rows) == (len(plan.partitions), first.rows + plan.rows)
    assert plan_run(house.context, "set", incremental=True).tasks == 0


def test_the_time_of_a_plan_grows_with_its_tasks_alone(tmp_path: Path) -> None:
    """100,000 tasks of 10^12 rows take about a second of CPU, files and states included."""
    house = seeded(tmp_path)
    job = compile_job(house.context, "set", buckets=100, range_ns=(None, None))
    day_ns = [(16_000 + d) * DAY_NS for d in range(1001)]
    files = [FileStat(f"d{d}", 1 << 30, 10**9, day_ns[d], day_ns[d + 1] - 1) for d in range(1000)]
    sources = {name: SourceStat(None, tuple(files)) for name in SOURCES}
    states = {("events", bucket): tuple(range(16_000, 17_000, 7)) for bucket in range(100)}

    def planned(days: int) -> tuple[MaterializationPlan, float]:
        places = {(16_000 + day, bucket): 10_000_000 for day in range(days) for bucket in range(100)}
        gc.collect()
        gc.disable()  # what the tests before left on the heap is not the plan's to walk through
        try:
            begin = time.process_time()
            plan = plan_materialization(job, places, task_rows=1 << 20, sources=sources, states=states)
            return plan, time.process_time() - begin
        finally:
            gc.enable()

    _, tenth_s = planned(100)
    plan, whole_s = planned(1000)
    assert (plan.tasks, plan.rows) == (100_000, 10**12)
    assert whole_s < 30 * tenth_s
    for chain, bucket, extent in (
        (plan.chains[0], 0, (("d1",), 10_000_000, round((1 << 30) / 100))),
        (plan.whole, -1, (("d1",), 10**9, 1 << 30)),
    ):
        (need,) = chain.tasks[1].inputs
        assert (need.bucket, need.extent) == (bucket, extent)


changes = st.lists(
    st.tuples(
        st.sampled_from(["append", "late", "replace", "delete"]),
        st.sampled_from(SOURCES),
        st.integers(0, 10_000),
    ),
    min_size=1,
    max_size=cases(3, 5),
)


def change(root: Path, what: str, source: str, seed: int, step: int) -> None:
    """Add, replace or delete one file of a source."""
    files = sorted((root / source).iterdir())
    make = MAKE[source]
    if what == "append":
        write(root / source / f"e{step}.parquet", make(seed, 12, first_hour=24 * DAYS + 20 * step, hours=30))
    elif what == "late":
        write(root / source / f"a{step}.parquet", make(seed, 4, first_hour=seed % (24 * DAYS), hours=3))
    elif what == "replace":
        write(files[seed % len(files)], make(seed, 20, first_hour=24 * (seed % DAYS), hours=24))
    elif len(files) > 1:
        files[seed % len(files)].unlink()


@pytest.mark.parametrize(("name", "wide"), [("set", False), ("set", True), ("known", False), ("above", True)])
@settings(max_examples=cases(3, 400), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=changes)
def test_runs_on_stored_state_give_what_whole_runs_give(
    name: str, wide: bool, changes: list[tuple[str, str, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        house = seeded(Path(folder), wide=wide)
        materialize(house.context, name)
        for step, (what, source, seed) in enumerate(changes):
            change(house.root, what, source if name == "set" else "events", seed, step)
            assert materialize_incremental(house.context, name).fingerprint == fresh(house, name, wide=wide)
        start_ns = START_NS + (changes[0][2] % DAYS) * DAY_NS + changes[0][2] * 10**9
        ranged = materialize(house.context, name, start_ns=start_ns)
        assert ranged.fingerprint == fresh(house, name, wide=wide, start_ns=start_ns)
        verify(house.context, name)


def test_a_flipped_bit_in_a_state_is_found_and_its_rows_are_read_again(tmp_path: Path) -> None:
    house = seeded(tmp_path)
    materialize(house.context, "set")
    folder = Path(str(open_version(house.context, "set").folder))
    rng = np.random.default_rng(4)
    for path in [*sorted(folder.glob("state-*")), folder / "STATES.json"]:
        for _ in range(cases(3, 20)):
            data = flipped(path, rng)
            with pytest.raises(CorruptDataError):
                verify(house.context, "set")
            path.write_bytes(data)
    verify(house.context, "set")
    for path in sorted(folder.glob("state-*")):
        path.write_bytes(path.read_bytes()[:-9] + b"\xff" * 9)
    for name in SOURCES:
        write(tmp_path / name / "new.parquet", MAKE[name](70, 30, first_hour=24 * DAYS, hours=20))
    assert materialize_incremental(house.context, "set").fingerprint == fresh(house, "set")
    with pytest.raises(CorruptDataError):
        verify(house.context, "set")
    materialize(house.context, "set", start_ns=START_NS)
    assert materialize(house.context, "set").fingerprint == fresh(house, "set")
    verify(house.context, "set")


def test_states_that_are_gone_only_cost_time(tmp_path: Path) -> None:
    house = seeded(tmp_path)
    materialize(house.context, "set")
    folder = Path(str(open_version(house.context, "set").folder))
    (folder / "STATES.json").unlink()
    for path in folder.glob("state-*"):
        path.unlink()
    verify(house.context, "set")
    write(tmp_path / "spine" / "new.parquet", spine_of(70, 30, first_hour=24 * DAYS, hours=20))
    assert materialize_incremental(house.context, "set").fingerprint == fresh(house, "set")


def test_states_of_another_definition_are_not_used(tmp_path: Path) -> None:
    house = seeded(tmp_path)
    materialize(house.context, "set")
    other = define(tmp_path, nulls="keep")
    start_ns = START_NS + 5 * DAY_NS
    found = materialize(other.context, "set", start_ns=start_ns)
    with tempfile.TemporaryDirectory() as folder:
        for source in SOURCES:
            shutil.copytree(tmp_path / source, Path(folder) / source)
        whole = materialize(define(Path(folder), nulls="keep").context, "set", start_ns=start_ns)
    assert found.fingerprint == whole.fingerprint


def test_states_come_back_with_a_version_and_go_with_it(tmp_path: Path) -> None:
    house = seeded(tmp_path)
    materialize(house.context, "set")
    write(tmp_path / "events" / "e.parquet", events(5, 20, first_hour=24 * 2, hours=90))
    materialize_incremental(house.context, "set")
    rollback(house.context, "set", 1)
    verify(house.context, "set", 3)
    assert materialize_incremental(house.context, "set").fingerprint == fresh(house, "set")
    vacuum(house.context, "set", recent_hours=0, dry_run=False)
    home = home_of(house.context, "set")
    kept = open_version(house.context, "set")
    named = {f.file for f in read_index(kept.folder, kept.manifest.states).files}
    assert {p.name for p in Path(str(home.ipc)).rglob("state-*")} == named
    verify(house.context, "set")


def test_states_do_not_depend_on_who_computes(tmp_path: Path) -> None:
    house = seeded(tmp_path)
    materialize(house.context, "set", executor="processes")
    write(tmp_path / "events" / "late.parquet", events(71, 3, first_hour=24 * 6 + 1, hours=3))
    expected = fresh(house, "set")
    with opened_files() as read:
        found = materialize_incremental(house.context, "set", executor="threads")
    assert len(read) == 7
    assert found.fingerprint == expected


def test_states_never_hold_more_rows_than_came_in(tmp_path: Path) -> None:
    house = seeded(tmp_path)
    context = replace(house.context, config=replace(CONFIG, buckets=1))
    materialize(context, "set")
    opened = open_version(context, "set")
    index = read_index(opened.folder, opened.manifest.states)
    for source in ("events", "prices"):
        rows = sum(s.rows for s in index.states if s.source == source)
        assert 0 < rows <= 2 * DAYS * 40
