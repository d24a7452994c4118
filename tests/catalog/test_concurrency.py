"""Many processes apply at once: every version has one winner, nothing is lost, readers see whole versions."""

import multiprocessing
import time
from itertools import pairwise
from pathlib import Path

import pytest
from tests.catalog.house import catalog_in
from tests.environment import SOAK

from featurestore import Entity
from featurestore.errors import CommitConflictError


def apply_many(folder: str, me: int, times: int) -> None:
    """Apply `times` entities of two each, retrying whenever someone else was first."""
    catalog = catalog_in(Path(folder))
    for i in range(times):
        mine = [Entity(f"e{me}_{i}_a"), Entity(f"e{me}_{i}_b")]
        while True:
            try:
                catalog.apply(mine, author=str(me))
                break
            except CommitConflictError:
                continue


def read_along(folder: str, versions: int) -> None:
    """Follow the head up to `versions`: it never goes back, and both entities of a commit are there."""
    catalog, seen, deadline = catalog_in(Path(folder)), 0, time.monotonic() + 250
    while seen < versions and time.monotonic() < deadline:
        snapshot = catalog.snapshot()
        assert snapshot.version >= seen
        seen = snapshot.version
        names = {name for _, name in snapshot.heads}
        assert len(names) == 2 * seen
        assert all(name[:-1] + ("b" if name[-1] == "a" else "a") in names for name in names)
    assert seen == versions


def run_race(folder: Path, processes: int, times: int) -> None:
    """Start appliers and readers, and check what is there afterwards."""
    context = multiprocessing.get_context("spawn")
    total = processes * times
    running = [context.Process(target=apply_many, args=(str(folder), me, times)) for me in range(processes)]
    running += [context.Process(target=read_along, args=(str(folder), total)) for _ in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0] * len(running)
    catalog = catalog_in(folder)
    history = catalog.history()
    assert [c.version for c in history] == list(range(total, 0, -1))
    assert all(later.time_ns > earlier.time_ns for later, earlier in pairwise(history))
    assert all(later.parent_digest == earlier.digest for later, earlier in pairwise(history))
    expected = {f"e{me}_{i}_{x}" for me in range(processes) for i in range(times) for x in "ab"}
    assert {name for _, name in catalog.snapshot().heads} == expected
    by_author = {me: sum(c.author == str(me) for c in history) for me in range(processes)}
    assert by_author == dict.fromkeys(range(processes), times)


@pytest.mark.integration
def test_four_processes_apply_ten_times_each_and_lose_nothing(tmp_path: Path) -> None:
    run_race(tmp_path, processes=4, times=10)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.skipif(not SOAK, reason="the long count: FEATURESTORE_SOAK=1")
def test_eight_processes_apply_fifty_times_each_and_lose_nothing(tmp_path: Path) -> None:
    run_race(tmp_path, processes=8, times=50)
