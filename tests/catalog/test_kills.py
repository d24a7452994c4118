"""A process that dies at any write step of an apply leaves the old head or the new one, and no harm."""

import multiprocessing
import os
import sys
from pathlib import Path

import pytest
from tests.catalog.house import catalog_in, in_force, market, quote_view

from featurestore.storage.files import observed

KILLED = 77


def apply_and_die(folder: str, step: int, mid: str) -> None:
    """Apply a change and end without a word right before the write step of that number."""
    catalog = catalog_in(Path(folder))
    count = 0

    def die(operation: str, path: str) -> None:  # noqa: ARG001 -- the observer's signature
        nonlocal count
        if count == step:
            os._exit(KILLED)
        count += 1

    with observed(die):
        catalog.apply([quote_view(mid)], message="while dying")
    sys.exit(0)


def outcome(folder: Path, step: int, mid: str) -> int:
    """Run `apply_and_die` in a process of its own and return how it ended."""
    # Forked from a server without threads: this process may hold DuckDB's, torch's or JAX's.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.catalog.house", "featurestore.catalog.catalog"])
    process = context.Process(target=apply_and_die, args=(str(folder), step, mid))
    process.start()
    process.join()
    assert process.exitcode in {0, KILLED}
    return int(process.exitcode or 0)


@pytest.mark.integration
@pytest.mark.parametrize(
    "before", [0, 1, 31], ids=["the first commit", "the second", "one that saves a snapshot"]
)
def test_a_kill_at_any_write_step_leaves_the_old_head_or_the_new(tmp_path: Path, before: int) -> None:
    steps = 0
    outcomes: set[tuple[int, int]] = set()
    while True:
        folder = tmp_path / str(steps)
        prepare(folder, before)
        ended = outcome(folder, steps, "bid")
        catalog = catalog_in(folder)
        assert catalog.head in {before, before + 1}
        outcomes.add((ended, catalog.head - before))
        if catalog.head > before:
            assert catalog.get("quote") == quote_view("bid")
            assert catalog.history()[0].message == "while dying"
        else:
            assert len(in_force(catalog)) == (0 if before == 0 else 3)
        commit = catalog.apply([quote_view("ask")])
        assert commit.version == catalog_in(folder).head
        assert catalog_in(folder).get("quote") == quote_view("ask")
        steps += 1
        if ended == 0:
            break
    assert steps >= 4
    assert {(KILLED, 0), (KILLED, 1), (0, 1)} == outcomes


def prepare(folder: Path, commits: int) -> None:
    """Make a catalog with a number of commits."""
    catalog = catalog_in(folder)
    for i in range(commits):
        catalog.apply([quote_view(f"bid + {i}")])


@pytest.mark.integration
def test_a_write_that_fails_at_any_step_is_told_and_can_be_repeated(tmp_path: Path) -> None:
    """Disk full at each step: the apply raises, or its commit is there; the same apply then goes through."""
    step = 0
    while True:
        catalog = catalog_in(tmp_path / str(step))
        count = 0

        def fail(operation: str, path: str, at: int = step) -> None:  # noqa: ARG001 -- the observer's signature
            nonlocal count
            count += 1
            if count == at + 1:
                raise OSError(28, "No space left on device")

        failed = False
        with observed(fail):
            try:
                catalog.apply([market()["train"]])
            except OSError:
                failed = True
        reader = catalog_in(tmp_path / str(step))
        assert reader.head in {0, 1}
        assert catalog_in(tmp_path / str(step)).apply([market()["train"]]).version == 1
        if not failed and count <= step:
            break
        step += 1
    assert step >= 4
