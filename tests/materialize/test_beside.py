"""What runs beside the computation: reading ahead of it, and forcing files to the disk behind it."""

import threading
import time
from collections.abc import Iterator

import pytest

from featurestore.errors import StorageError
from featurestore.materialize.durability import Durability
from featurestore.materialize.read_ahead import read_ahead


def test_items_come_in_order_and_all() -> None:
    assert list(read_ahead(range(1000))) == list(range(1000))
    assert list(read_ahead([])) == []


def test_the_source_is_ahead_of_the_reader_but_not_far() -> None:
    taken = 0

    def source() -> Iterator[int]:
        nonlocal taken
        for item in range(100):
            taken = item + 1
            yield item

    items = read_ahead(source())
    assert next(items) == 0
    deadline = time.monotonic() + 30
    while taken < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    # One in hand, three that wait, one that is offered.
    assert taken == 5


def test_what_the_source_raises_is_raised_behind_the_items_before_it() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise StorageError("the disk is gone")

    items = read_ahead(source())
    assert next(items) == 1
    with pytest.raises(StorageError, match="the disk is gone"):
        next(items)


def test_leaving_early_ends_the_thread() -> None:
    before = threading.active_count()
    items = read_ahead(iter(range(10**9)))
    assert next(items) == 0
    items.close()
    assert threading.active_count() == before


def test_every_step_has_run_when_the_block_is_left() -> None:
    done: list[int] = []

    def step(number: int) -> None:
        time.sleep(0.005)
        done.append(number)

    with Durability() as durability:
        for number in range(20):
            durability.finish(lambda number=number: step(number))  # type: ignore[misc]  # bound early
    assert sorted(done) == list(range(20))


def test_a_step_that_fails_fails_the_block() -> None:
    def fail() -> None:
        raise StorageError("the disk is full")

    with pytest.raises(StorageError, match="the disk is full"), Durability() as durability:
        durability.finish(fail)

    def go_on() -> None:
        with Durability() as durability:
            durability.finish(fail)
            while True:  # the next steps hear of it, too
                time.sleep(0.001)
                durability.finish(lambda: None)

    with pytest.raises(StorageError, match="the disk is full"):
        go_on()


def test_a_block_that_fails_says_so_itself_and_leaves_no_thread() -> None:
    before = threading.active_count()

    def fail() -> None:
        raise StorageError("second")

    def fail_first() -> None:
        with Durability() as durability:
            durability.finish(fail)
            raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        fail_first()
    assert threading.active_count() == before
