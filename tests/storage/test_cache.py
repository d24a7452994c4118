"""The cache tier: never other bytes than were asked for, never more than its limit, whoever dies."""

import errno
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.environment import cases

from featurestore.errors import CorruptDataError, StorageError
from featurestore.storage.cache import FileCache
from featurestore.storage.files import observed

LIMIT = 1000


def content(number: int, size: int) -> bytes:
    """Draw the bytes of an object, the same for the same arguments."""
    return np.random.default_rng([number, size]).bytes(size)


def _given(data: bytes, _size: int) -> list[bytes]:
    return [data]


def key_of(data: bytes) -> str:
    """Name bytes as the cache does."""
    return str(xxhash.xxh3_128(data).hexdigest())


def read(cache: FileCache, data: bytes, **given: bool) -> bytes:
    """Read an object through the cache."""
    return cache.use(key_of(data), len(data), lambda _: [data], Path.read_bytes, **given)


def fetched(cache: FileCache, data: bytes) -> bool:
    """Read an object and say whether it had to be fetched."""
    before = cache.fills
    assert read(cache, data) == data
    return cache.fills > before


def test_an_object_is_fetched_once_and_found_again(tmp_path: Path) -> None:
    data = content(1, 100)
    cache = FileCache(tmp_path, LIMIT)
    assert fetched(cache, data)
    assert not fetched(cache, data)
    assert not fetched(FileCache(tmp_path, LIMIT), data)
    assert (cache.hits, cache.fills, cache.damaged) == (1, 1, 0)
    assert (cache.report().entries, cache.report().bytes, cache.report().filling_bytes) == (1, 100, 0)


def test_an_object_without_bytes_is_an_object(tmp_path: Path) -> None:
    assert read(FileCache(tmp_path, LIMIT), b"") == b""


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, LIMIT)
    old, used, new = content(1, 400), content(2, 400), content(3, 400)
    for data in (old, used, old, new):
        read(cache, data)
    assert not fetched(cache, old)
    assert fetched(cache, used)


def test_a_fresh_read_fetches_again_and_is_counted_once(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, LIMIT)
    data = content(1, 400)
    read(cache, data)
    read(cache, data, fresh=True)
    assert cache.fills == 2
    assert cache.report().bytes == 400
    assert fetched(cache, content(2, 500))
    assert not fetched(cache, data)


def test_a_file_larger_than_the_cache_is_let_in_alone(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, LIMIT)
    large, small = content(1, 5000), content(2, 10)
    assert read(cache, small) == small
    assert read(cache, large) == large
    assert cache.report().entries == 1
    assert fetched(cache, small)
    assert cache.report().bytes == 10


@pytest.mark.parametrize("damage", [b"", b"x", content(9, 100), content(9, 101)], ids=len)
def test_a_damaged_copy_is_fetched_again_and_reported(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    data = content(1, 100)
    read(FileCache(tmp_path, LIMIT), data)
    (tmp_path / "objects" / key_of(data)[:2] / key_of(data)).write_bytes(damage)
    cache = FileCache(tmp_path, LIMIT)
    with caplog.at_level(logging.WARNING, "featurestore.cache"):
        assert read(cache, data) == data
    assert cache.damaged == 1
    assert "is damaged" in caplog.text
    assert not fetched(FileCache(tmp_path, LIMIT), data)


def test_wrong_bytes_from_the_store_never_become_an_entry(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, LIMIT)
    data, other = content(1, 100), content(2, 100)
    for wrong in (other, data[:-1], data + b"x", b""):
        with pytest.raises(CorruptDataError, match="came with"):
            cache.use(key_of(data), len(data), partial(_given, wrong), Path.read_bytes)
    report = cache.report()
    assert (report.entries, report.filling_bytes) == (0, 0)
    assert read(cache, data) == data


def test_what_a_reader_has_mapped_survives_eviction_and_clearing(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, LIMIT)
    data = content(1, 900)
    mapped = cache.use(key_of(data), len(data), lambda _: [data], lambda p: pa.memory_map(str(p)))
    read(cache, content(2, 900))
    assert cache.report().bytes == 900
    assert mapped.read() == data
    assert cache.clear().bytes == 900
    assert cache.report().entries == 0
    assert fetched(cache, data)


def test_a_full_disk_costs_entries_before_it_costs_a_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FileCache(tmp_path, LIMIT)
    small = [content(n, 100) for n in range(5)]
    for data in small:
        read(cache, data)

    def allocate(descriptor: int, _offset: int, size: int) -> None:
        there = sum(p.stat().st_size for p in (tmp_path / "objects").rglob("*") if p.is_file())
        if there + size > 450:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(descriptor, size)

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    large = content(9, 300)
    assert read(cache, large) == large
    assert [fetched(FileCache(tmp_path, LIMIT), d) for d in (large, small[4], small[3])] == [False] * 2 + [
        True
    ]
    with pytest.raises(StorageError, match="No space left"):
        read(cache, content(10, 500))
    report = cache.report()
    assert report.filling_bytes == 0
    assert report.bytes <= 450


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one megabyte; where mounting is not allowed the test skips."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)],  # noqa: S607
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)  # noqa: S607


def test_a_disk_smaller_than_the_limit_is_used_as_far_as_it_goes(small_disk: Path) -> None:
    cache = FileCache(small_disk / "cache", 10**9)
    objects = [content(n, 200_000) for n in range(20)]
    for _ in range(2):
        for data in objects:
            assert read(cache, data) == data
    assert 3 <= cache.report().entries <= 5
    cache.clear()
    (small_disk / "ballast").write_bytes(bytes(500_000))  # others need the disk as well
    for data in objects:
        assert read(cache, data) == data
    assert 1 <= cache.report().entries <= 2
    with pytest.raises(StorageError, match="No space left"):
        read(cache, content(99, 2_000_000))
    assert cache.report().filling_bytes == 0
    assert read(cache, objects[1]) == objects[1]


def test_an_error_while_fetching_gives_the_room_back(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, LIMIT)
    data = content(1, 900)

    def broken(_: int) -> Iterator[bytes]:
        yield data[:100]
        raise StorageError("the store went away")

    for _ in range(3):
        with pytest.raises(StorageError, match="went away"):
            cache.use(key_of(data), len(data), broken, Path.read_bytes)
        assert cache.report().filling_bytes == 0
    assert read(cache, data) == data


def test_threads_that_want_one_object_fetch_it_once(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, LIMIT)
    data = content(1, 500)
    calls: list[int] = []

    def slow(_: int) -> Iterator[bytes]:
        calls.append(1)
        time.sleep(0.05)
        yield data

    def work() -> None:
        assert cache.use(key_of(data), len(data), slow, Path.read_bytes) == data

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


class CacheStates(RuleBasedStateMachine):
    """Compares the cache with a list of names in order of use."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.caches = [FileCache(self.folder.name, LIMIT) for _ in range(2)]
        self.order: list[tuple[int, int]] = []  # (number, size), least recently used first

    @rule(which=st.integers(0, 1), number=st.integers(0, 5), size=st.sampled_from([1, 60, 250, 400, 1500]))
    def read(self, which: int, number: int, size: int) -> None:
        """Read an object: found if the model holds it, else fetched after evicting the oldest."""
        item = (number, size)
        data = content(number, size)
        known = item in self.order
        assert fetched(self.caches[which], data) is not known
        if known:
            self.order.remove(item)
        else:
            total = sum(s for _, s in self.order)
            if total + size > LIMIT:
                while self.order and total > LIMIT - size - LIMIT // 16:
                    total -= self.order.pop(0)[1]
        self.order.append(item)

    @precondition(lambda self: self.order)
    @rule(place=st.integers(0, 100), which=st.integers(0, 1))
    def damage(self, place: int, which: int) -> None:
        """Flip a byte; a process that has not touched the entry yet must notice."""
        item = self.order[place % len(self.order)]
        data = content(*item)
        path = Path(self.folder.name) / "objects" / key_of(data)[:2] / key_of(data)
        before = path.stat()
        raw = bytearray(data)
        raw[place % len(raw)] ^= 1
        path.write_bytes(raw)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        self.caches[which] = FileCache(self.folder.name, LIMIT)
        assert fetched(self.caches[which], data)
        self.caches[1 - which] = FileCache(self.folder.name, LIMIT)
        self.order.remove(item)
        self.order.append(item)

    @rule()
    def forget_the_count(self) -> None:
        """Tear the counter, as a power loss might."""
        (Path(self.folder.name) / "INDEX").write_bytes(b"torn")

    @rule(which=st.integers(0, 1))
    def clear(self, which: int) -> None:
        """Remove everything."""
        self.caches[which].clear()
        self.order.clear()

    @invariant()
    def bytes_are_bounded_and_as_modelled(self) -> None:
        """The folder holds just what the model holds."""
        report = self.caches[0].report()
        assert report.filling_bytes == 0
        assert report.bytes == sum(s for _, s in self.order)
        assert report.bytes <= LIMIT or len(self.order) == 1

    def teardown(self) -> None:
        """Remove the folder."""
        self.folder.cleanup()


CacheStates.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestCacheStates = CacheStates.TestCase


HAMMER = """
import sys, time
from pathlib import Path
import numpy as np
from tests.storage.test_cache import content, key_of, read
from featurestore.storage.cache import FileCache
cache = FileCache(sys.argv[1], int(sys.argv[2]))
rng = np.random.default_rng(int(sys.argv[3]))
end = time.monotonic() + float(sys.argv[4])
count = 0
print("ready", flush=True)
while time.monotonic() < end:
    number = int(rng.zipf(1.3)) % 40
    data = content(number, 1000 + 37 * number)
    assert read(cache, data) == data, number
    count += 1
print(count, cache.fills)
"""


def hammer(folder: Path, limit: int, seed: int, seconds: float) -> "subprocess.Popen[str]":
    """Start a process that reads objects through a cache that is too small for them."""
    arguments = [sys.executable, "-c", HAMMER, str(folder), str(limit), str(seed), str(seconds)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def line_of(process: "subprocess.Popen[str]") -> str:
    """Return the next line that a process writes."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def sizes(folder: Path) -> int:
    """Return the bytes in a cache's folder."""
    total = 0
    for part in ("objects", "filling"):
        for path in (folder / part).rglob("*"):
            try:
                total += path.stat().st_size if path.is_file() else 0
            except FileNotFoundError:
                continue
    return total


@pytest.mark.slow
def test_processes_that_hammer_a_small_cache_read_right_and_never_outgrow_it(tmp_path: Path) -> None:
    limit = 20_000
    running = [hammer(tmp_path, limit, seed, 1.5) for seed in range(4)]
    assert [line_of(p) for p in running] == ["ready"] * 4
    largest = 0
    while any(p.poll() is None for p in running):
        with FileCache(tmp_path, limit)._index():  # nothing comes, moves or goes while it is held
            largest = max(largest, sizes(tmp_path))
        time.sleep(0.005)
    counts = [[int(n) for n in (p.communicate()[0] or "0 0").split()] for p in running]
    assert [p.returncode for p in running] == [0] * 4
    assert sum(count for count, _ in counts) > sum(fills for _, fills in counts) > 40
    assert limit // 2 < largest <= limit


@pytest.mark.slow
def test_killed_fills_leave_no_partial_entry_and_their_room_comes_back(tmp_path: Path) -> None:
    limit = 20_000
    rng = np.random.default_rng(1)
    for seed in range(cases(4, 200)):
        running = [hammer(tmp_path, limit, 10 * seed + k, 30) for k in range(2)]
        assert [line_of(p) for p in running] == ["ready"] * 2
        time.sleep(rng.random() * 0.1)
        for process in running:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        for path in (tmp_path / "objects").rglob("*"):
            if path.is_file():
                assert key_of(path.read_bytes()) == path.name
    cache = FileCache(tmp_path, limit)
    for number in range(40):
        data = content(number, 1000 + 37 * number)
        assert read(cache, data) == data
    assert cache.report().filling_bytes == 0
    assert cache.report().bytes <= limit


@pytest.mark.parametrize("step", range(2))
def test_a_fill_that_fails_at_any_step_leaves_the_cache_whole(tmp_path: Path, step: int) -> None:
    cache = FileCache(tmp_path, LIMIT)
    read(cache, content(1, 900))
    seen: list[str] = []

    def fail(operation: str, _path: str) -> None:
        seen.append(operation)
        if len(seen) == step + 1:
            raise StorageError("injected")

    data = content(2, 900)
    with observed(fail), pytest.raises(StorageError, match="injected"):
        read(cache, data)
    assert seen == ["evict", "fill"][: step + 1]
    assert cache.report().filling_bytes == 0
    assert read(cache, data) == data
    assert cache.report().bytes == 900
