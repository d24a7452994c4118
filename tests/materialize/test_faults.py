"""Whatever happens to a writer, readers see a whole version, and the next run finishes what was begun."""

import errno
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tests.environment import cases
from tests.materialize.faults import Died, PowerLoss, Steps, copied, dying_at, flipped
from tests.materialize.house import House, seed_store, spine_rows, write

from featurestore.core.config import StoreConfig
from featurestore.errors import FeatureStoreError, NotFoundError, StorageError
from featurestore.materialize.context import home_of
from featurestore.materialize.training_set import materialize, materialize_incremental
from featurestore.materialize.versions import history, open_version, pin, rollback, vacuum, verify
from featurestore.storage.delta_log import read_log
from featurestore.storage.files import observed

CONFIG = StoreConfig(buckets=2, threads=1)
KILLS = cases(3, 1000, "FEATURESTORE_KILLS")
# One step in so many is tried in the gate; all of them with FEATURESTORE_SOAK=1.
STRIDE = cases(4, 1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[House, pa.Table, str]:
    """A store with version 1 and a file to come; the rows of version 1, the fingerprint of version 2."""
    root = tmp_path_factory.mktemp("store")
    house = seed_store(root, days=2, config=CONFIG, crossed=True)
    materialize(house.context, "set")
    before = open_version(house.context, "set").to_arrow()
    write(root / "spine" / "d9.parquet", spine_rows(9, 20, first_hour=30, hours=24))
    twin = _at(house, copied(root, tmp_path_factory.mktemp("twin") / "store"))
    return house, before, materialize(twin.context, "set").fingerprint


def _at(house: House, root: Path) -> House:
    return House(root, replace(house.context, root=str(root)))


def _check_readers(house: House, before: pa.Table, after: str) -> None:
    """Readers see version 1 or version 2, whole."""
    opened = open_version(house.context, "set")
    if opened.version == 1:
        assert opened.to_arrow().equals(before)
    else:
        assert opened.manifest.fingerprint == after
        verify(house.context, "set")


def _check_healed(house: House, after: str) -> None:
    """The next run completes once: one new version, no leftovers."""
    result = materialize(house.context, "set")
    assert result.fingerprint == after
    assert [v.version for v in history(house.context, "set")] == [1, 2]
    verify(house.context, "set")
    home = home_of(house.context, "set")
    assert not [p for p in home.ipc.iterdir() if p.name.startswith(".tmp")]
    named = {p.name for p in home.delta.rglob("*.parquet")}
    assert not [n for n in named if n.startswith(".tmp")]
    assert materialize(house.context, "set").created is False


def _steps(prepared: tuple[House, pa.Table, str], tmp_path: Path) -> list[str]:
    house = _at(prepared[0], copied(prepared[0].root, tmp_path / "count"))
    with dying_at(0) as steps:
        materialize(house.context, "set")
    return steps.seen


def test_death_at_every_step_loses_nothing_and_the_next_run_heals(
    prepared: tuple[House, pa.Table, str], tmp_path: Path
) -> None:
    origin, before, after = prepared
    steps = _steps(prepared, tmp_path)
    # The steps around commit and publication are always tried.
    first = next(i for i, s in enumerate(steps) if "MANIFEST" in s)
    chosen = sorted({*range(1, len(steps) + 1, STRIDE), *range(first, len(steps) + 1)})
    for step in chosen:
        house = _at(origin, copied(origin.root, tmp_path / f"d{step}"))
        with dying_at(step):
            materialize(house.context, "set")
        _check_readers(house, before, after)
        _check_healed(house, after)
        shutil.rmtree(house.root)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["disk full", "input/output error"])
def test_an_error_at_every_step_is_typed_and_the_next_run_heals(
    prepared: tuple[House, pa.Table, str], tmp_path: Path, code: int
) -> None:
    origin, before, after = prepared
    count = len(_steps(prepared, tmp_path))
    for step in range(1, count + 1, STRIDE):
        house = _at(origin, copied(origin.root, tmp_path / f"e{step}"))
        failing = Steps(step, StorageError(os.strerror(code), errno=code))
        with observed(failing), suppress(StorageError):
            materialize(house.context, "set")
        _check_readers(house, before, after)
        _check_healed(house, after)
        shutil.rmtree(house.root)


def test_power_loss_at_every_step_loses_nothing_acknowledged(
    prepared: tuple[House, pa.Table, str], tmp_path: Path
) -> None:
    origin, before, after = prepared
    count = len(_steps(prepared, tmp_path))
    for seed in range(cases(1, 5)):
        for step in range(1 + seed, count + 1, STRIDE):
            house = _at(origin, copied(origin.root, tmp_path / f"p{step}"))
            power = PowerLoss(np.random.default_rng([seed, step]), step)
            with observed(power):
                try:
                    materialize(house.context, "set")
                except Died:
                    power.strike()
            _check_readers(house, before, after)
            _check_healed(house, after)
            shutil.rmtree(house.root)


def test_an_ambiguous_commit_counts_once(prepared: tuple[House, pa.Table, str], tmp_path: Path) -> None:
    """The commit lands, its answer does not arrive: the next run sees the version."""
    origin, _, after = prepared
    house = _at(origin, copied(origin.root, tmp_path / "store"))
    steps = _steps(prepared, tmp_path)
    commit = max(i for i, s in enumerate(steps) if s.startswith("link") and s.endswith(".json")) + 1
    with dying_at(commit + 1):
        materialize(house.context, "set")
    assert open_version(house.context, "set").version == 1
    result = materialize(house.context, "set")
    assert (result.version, result.created, result.fingerprint) == (2, False, after)


def test_a_full_disk_is_a_typed_error(prepared: tuple[House, pa.Table, str], tmp_path: Path) -> None:
    origin, before, after = prepared
    house = _at(origin, copied(origin.root, tmp_path / "store"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StorageError):
            materialize(house.context, "set")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    _check_readers(house, before, after)
    _check_healed(house, after)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real, small file system; where mounting is not allowed the test skips."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)],  # noqa: S607
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("mounting a small file system needs privileges that this process does not have")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=False)  # noqa: S607


def test_a_disk_that_fills_up_at_any_moment_changes_nothing(
    prepared: tuple[House, pa.Table, str], small_disk: Path
) -> None:
    """With every amount of free space up to what the run needs, in steps of a page."""
    origin, before, after = prepared
    page = 4096
    free, codes = 0, []
    while True:
        house = _at(origin, copied(origin.root, small_disk / "store"))
        ballast = small_disk / "ballast"
        fill = shutil.disk_usage(small_disk).free - free
        ballast.write_bytes(bytes(max(fill, 0)))
        try:
            materialize(house.context, "set")
        except StorageError as error:
            codes.append(error.context["errno"])
        else:
            break
        finally:
            _check_readers(house, before, after)
            ballast.unlink()
        _check_healed(house, after)
        shutil.rmtree(house.root)
        free += page * cases(6, 1)
    assert len(codes) >= 3
    assert set(codes) == {errno.ENOSPC}
    _check_healed(house, after)


@pytest.mark.parametrize("flips", [cases(150, 3000)])
def test_no_flipped_bit_goes_unnoticed(
    prepared: tuple[House, pa.Table, str], tmp_path: Path, flips: int
) -> None:
    origin, _, _ = prepared
    house = _at(origin, copied(origin.root, tmp_path / "store"))
    materialize(house.context, "set")
    pin(house.context, "set", 2, "gold")
    expected = open_version(house.context, "set").to_arrow()
    home = home_of(house.context, "set")
    files = [
        p
        for base in (home.delta, home.ipc, home.pins)
        for p in sorted(Path(str(base)).rglob("*"))
        if p.is_file()
    ]
    needed = _needed(house, files)
    rng = np.random.default_rng(5)
    for _ in range(flips):
        path = needed[int(rng.integers(len(needed)))]
        data = flipped(path, rng)
        with pytest.raises(FeatureStoreError):
            _read_all(house, expected)
        path.write_bytes(data)
    _read_all(house, expected)


def _needed(house: House, files: list[Path]) -> list[Path]:
    """Leave out data files of other versions: nobody reads them for this one."""
    home = home_of(house.context, "set")
    opened = open_version(house.context, "set", 2)
    log = read_log(home.delta)
    assert log is not None
    active = {home.delta / p for p in log.files_at(opened.version)}
    return [p for p in files if (p.suffix != ".parquet" or p in active) and "v00000001" not in str(p)]


def _read_all(house: House, expected: pa.Table) -> None:
    """Read as users do, then verify; a flip must stop one of them."""
    assert open_version(house.context, "set", "gold").to_arrow().equals(expected)
    assert open_version(house.context, "set").to_arrow().equals(expected)
    verify(house.context, "set")


def test_a_reader_keeps_its_version_while_writers_go_on(tmp_path: Path) -> None:
    house = seed_store(tmp_path, days=2, config=CONFIG, crossed=True)
    materialize(house.context, "set")
    opened = open_version(house.context, "set")
    before = open_version(house.context, "set", 1).to_arrow()
    for step in range(3):
        write(tmp_path / "spine" / f"e{step}.parquet", spine_rows(step + 20, 9, first_hour=3, hours=40))
        materialize_incremental(house.context, "set")
    assert opened.to_arrow().equals(before)
    vacuum(house.context, "set", recent_hours=0, dry_run=False)
    with pytest.raises(NotFoundError):
        open_version(house.context, "set", 1)
    with pytest.raises(NotFoundError):
        rollback(house.context, "set", 1)
    verify(house.context, "set")


@pytest.mark.integration
def test_kill_9_at_random_moments_loses_no_acknowledged_version(tmp_path: Path) -> None:
    house = seed_store(tmp_path, days=2, config=CONFIG, crossed=True)
    rng = np.random.default_rng(int(time.monotonic_ns()) % 2**32)
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.materialize.killed"])
    from tests.materialize.killed import materialize_until_killed  # noqa: PLC0415 -- warms on import

    newest = 0
    for number in range(KILLS):
        heard, says = server.Pipe(duplex=False)
        process = server.Process(target=materialize_until_killed, args=(tmp_path, number, says))
        process.start()
        says.close()
        assert heard.recv() == "ready"
        time.sleep(float(rng.random()) * 0.5)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        acknowledged = []
        with suppress(EOFError):
            while True:
                acknowledged.append(heard.recv())
        heard.close()
        found = {v.version: v.fingerprint for v in history(house.context, "set")}
        for version, fingerprint in acknowledged:
            assert found[version] == fingerprint
            newest = version
        opened = open_version(house.context, "set")
        assert opened.version >= newest
        assert opened.manifest.fingerprint == found[opened.version]
        opened.to_arrow()
        if number % 25 == 24:
            verify(house.context, "set")
            vacuum(house.context, "set", keep=2, recent_hours=0, dry_run=False)
    final = materialize(house.context, "set")
    verify(house.context, "set")
    twin = _at(house, copied(tmp_path, tmp_path.with_name("twin")))
    shutil.rmtree(twin.root / "datasets")
    assert materialize(twin.context, "set").fingerprint == final.fingerprint
