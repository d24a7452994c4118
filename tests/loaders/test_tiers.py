"""The three tiers make the same batches bit for bit, and the fake device would show it if they could not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.loaders.datasets import assert_same, leaves

from featurestore.errors import StorageError
from featurestore.loaders import TimeSplit, Window
from featurestore.loaders.batch import Batch
from featurestore.loaders.direct import DirectRead
from featurestore.loaders.gather import UInt8Array
from featurestore.loaders.loader import HostTier, Loader
from featurestore.loaders.options import options_of
from featurestore.loaders.prepare import Prepared, prepare
from featurestore.loaders.resident import ResidentTier
from featurestore.loaders.streamed import DEVICE_BUFFERS, SLOTS, StreamedTier
from featurestore.testing.fake_device import FakeDevice

EVERYTHING: dict[str, Any] = {"time": True, "entity": True, "weight": "wt", "batch_size": 100}
SMALL_RING = SLOTS * 40_000
CASES = [
    pytest.param({}, id="stored types"),
    pytest.param({"dtype": "float32"}, id="one matrix"),
    pytest.param(
        {"nulls": "mask", "drop_last": "pad", "fill": {"*": 1.0, "a": 7.0}}, id="masks, padding, fills"
    ),
    pytest.param({"dtype": "float64", "nulls": "nan", "shuffle": "full"}, id="nan, full permutation"),
    pytest.param(
        {"dtype": "float16", "shuffle": False, "drop_last": False}, id="half precision in time order"
    ),
    pytest.param({"window": Window(5, min_history=2), "nulls": "mask", "drop_last": "pad"}, id="windows"),
    pytest.param(
        {"dtype": "float32", "split": TimeSplit(train=0.7, test=0.3), "subset": "train", "window": Window(3)},
        id="windows in a split",
    ),
    pytest.param({"columns": ["u", "a", "row", "i"], "dtype": "float32", "layout": "columns"}, id="columns"),
]


def prepared(dataset: Path, **options: Any) -> Prepared:
    chosen = options_of({"memory_bytes": SMALL_RING, "block_rows": 32, "blocks": 2, **EVERYTHING, **options})
    return prepare(dataset, None, chosen, rank=0, world=1)


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("tier", [StreamedTier, ResidentTier])
def test_a_device_tier_makes_the_batches_of_the_cpu_tier(
    dataset: Path, tier: type[StreamedTier] | type[ResidentTier], options: dict[str, Any]
) -> None:
    parts = prepared(dataset, **options)
    host = Loader(parts, HostTier(parts))
    device = Loader(parts, tier(parts, FakeDevice(3, eager=0.2), reason="test"))
    held = list(zip(host, device, strict=True))
    assert len(held) == len(host)
    for one, other in held:
        assert_same(one, other)


@given(
    seed=st.integers(0, 10_000),
    eager=st.floats(0, 0.95),
    favour=st.sampled_from([None, "side", "consumer"]),
    start=st.integers(0, 28),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_order_that_the_events_allow_changes_a_value(
    dataset: Path, seed: int, eager: float, favour: str | None, start: int
) -> None:
    parts = prepared(dataset, dtype="float32", columns=["row", "a", "b"])
    host = Loader(parts, HostTier(parts))
    device = Loader(parts, StreamedTier(parts, FakeDevice(seed, eager=eager, favour=favour), reason="test"))
    for loader in (host, device):
        loader.load_state_dict({**host.state_dict(), "step": start})
    held = list(zip(host, device, strict=True))
    for one, other in held:
        assert_same(one, other)


@pytest.mark.parametrize(
    ("call", "favour"), [("side_wait", "side"), ("consumer_wait", "consumer"), ("host_wait", "consumer")]
)
def test_forgetting_one_wait_gives_wrong_values_on_the_fake_device(
    dataset: Path, call: str, favour: str
) -> None:
    """The fake device is worth something only if it punishes each of the three rules when it is broken."""
    parts = prepared(dataset, dtype="float32", columns=["row", "a", "b"], memory_bytes=SLOTS * 4000)
    wrong = 0
    for seed in range(4):
        host = Loader(parts, HostTier(parts))
        fake = FakeDevice(seed, eager=0.45, favour=favour, forget=[call])
        device = Loader(parts, StreamedTier(parts, fake, reason="test"))
        held = list(zip(host, device, strict=True))
        wrong += sum(np.asarray(one.x).tobytes() != np.asarray(other.x).tobytes() for one, other in held)
    assert wrong > 0


def test_an_abandoned_pass_does_not_disturb_the_next(dataset: Path) -> None:
    parts = prepared(dataset, dtype="float32")
    host = Loader(parts, HostTier(parts))
    device = Loader(parts, StreamedTier(parts, FakeDevice(5, eager=0.3), reason="test"))
    kept = [batch for batch, _ in zip(device, range(5), strict=False)]
    first = [batch for batch, _ in zip(host, range(5), strict=False)]
    held = list(zip(host, device, strict=True))
    for one, other in [*zip(first, kept, strict=True), *held]:
        assert_same(one, other)


def test_the_ring_is_bounded_and_reported(dataset: Path) -> None:
    parts = prepared(dataset, dtype="float32")
    fake = FakeDevice()
    tier = StreamedTier(parts, fake, reason="because")
    loader = Loader(parts, tier)
    for _ in range(2):
        for _ in loader:
            pass
    report = loader.io_report()
    assert report["tier"] == "streamed"
    assert report["reason"] == "because"
    assert fake.pinned_bytes == report["pinned_bytes"] == SLOTS * tier.slot_bytes
    assert fake.device_bytes == report["device_bytes"] == DEVICE_BUFFERS * tier.slot_bytes
    assert fake.pinned_bytes <= SMALL_RING * 2
    assert fake.copies == 2 * -(-len(loader) // tier.unit_steps)  # one packed copy per unit


def test_an_error_while_a_slot_is_filled_surfaces_at_its_batch(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = prepared(dataset, dtype="float32", threads=1)
    tier = StreamedTier(parts, FakeDevice(), reason="test")
    fill, calls = tier.shipment.fill, []

    def failing(rows: Any, out: UInt8Array, *, skip: int) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(5, "the disk is gone")
        fill(rows, out, skip=skip)

    monkeypatch.setattr(tier.shipment, "fill", failing)
    loader = Loader(parts, tier)
    with pytest.raises(StorageError, match="the disk is gone"):
        list(loader)
    assert loader.state_dict()["step"] == 2 * tier.unit_steps


def test_the_resident_tier_loads_once_and_only_the_samples(dataset: Path) -> None:
    parts = prepared(dataset, dtype="float32", split=TimeSplit(train=0.5, test=0.5), subset="test")
    fake = FakeDevice()
    tier = ResidentTier(parts, fake, reason="test")
    loader = Loader(parts, tier)
    for _ in loader:
        pass
    copies = fake.copies
    for _ in loader:
        pass
    assert fake.copies == copies
    assert tier.rows.size == parts.selection.count < 1600


class PosixReader:
    """What GPUDirect would do, done by pread at once, whatever the streams are at."""

    def __init__(self) -> None:
        self.bytes = 0

    def read(self, reads: Sequence[DirectRead], target: Any) -> None:
        for read in reads:
            with read.path.open("rb") as file:
                file.seek(read.file_offset)
                found = np.frombuffer(file.read(read.size), np.uint8)
            target[read.offset : read.offset + read.size] = found
            self.bytes += read.size


def test_a_direct_reader_loads_whole_packs_from_their_files(dataset: Path) -> None:
    parts = prepared(dataset, labels=[], columns=["a", "b", "i", "row"])
    reader = PosixReader()
    tier = ResidentTier(parts, FakeDevice(), reason="test", direct=reader)
    for one, other in zip(Loader(parts, HostTier(parts)), Loader(parts, tier), strict=True):
        assert_same(one, other)
    # a and wt are one pack of float64, of which only a is delivered; b is a pack of its own.
    assert reader.bytes == 3000 * (4 + 2 * 8)


@pytest.fixture
def short_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let reads of any length go the direct way: blocks are small here."""
    monkeypatch.setattr("featurestore.loaders.direct.SHORTEST_BYTES", 1)


@pytest.mark.usefixtures("short_reads")
@given(
    seed=st.integers(0, 10_000),
    eager=st.floats(0, 0.95),
    favour=st.sampled_from([None, "side", "consumer"]),
    start=st.integers(0, 28),
    shuffle=st.booleans(),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_packs_read_directly_into_a_ring_of_device_buffers_are_never_early_or_late(
    dataset: Path, seed: int, eager: float, favour: str | None, start: int, shuffle: bool
) -> None:
    parts = prepared(dataset, columns=["i", "row", "b"], shuffle=shuffle, memory_bytes=SLOTS * 9000)
    reader = PosixReader()
    fake = FakeDevice(seed, eager=eager, favour=favour)
    tier = StreamedTier(parts, fake, reason="test", direct=reader)
    host, device = Loader(parts, HostTier(parts)), Loader(parts, tier)
    for loader in (host, device):
        loader.load_state_dict({**host.state_dict(), "step": start})
    for one, other in zip(host, device, strict=True):
        assert_same(one, other)
    assert {region.column.name for region in tier.direct_regions} == {"x_int64", "x_float"}
    assert "GPUDirect" in device.io_report()["path"]
    assert reader.bytes > 0


@pytest.mark.usefixtures("short_reads")
def test_forgetting_to_wait_before_a_direct_read_gives_wrong_values_on_the_fake_device(dataset: Path) -> None:
    parts = prepared(dataset, columns=["i", "row", "b"], labels=[], memory_bytes=SLOTS * 4000)
    wrong = 0
    for seed in range(4):
        fake = FakeDevice(seed, eager=0.2, favour="side", forget=["host_wait"])
        tier = StreamedTier(parts, fake, reason="test", direct=PosixReader())
        held = list(zip(Loader(parts, HostTier(parts)), Loader(parts, tier), strict=True))
        wrong += sum(
            any(left.tobytes() != right.tobytes() for left, right in zip(*map(arrays, pair), strict=True))
            for pair in held
        )
    assert wrong > 0


def arrays(batch: Batch) -> list[npt.NDArray[Any]]:
    return list(leaves(batch).values())


@pytest.mark.usefixtures("short_reads")
def test_a_direct_read_that_fails_surfaces_at_its_batch(dataset: Path) -> None:
    class Failing(PosixReader):
        def read(self, reads: Sequence[DirectRead], target: Any) -> None:
            if self.bytes:
                raise StorageError("the drive is gone")
            super().read(reads, target)

    parts = prepared(dataset, columns=["i", "row", "b"], labels=[])
    tier = StreamedTier(parts, FakeDevice(), reason="test", direct=Failing())
    loader = Loader(parts, tier)
    with pytest.raises(StorageError, match="the drive is gone"):
        list(loader)
    assert loader.state_dict()["step"] == tier.unit_steps


def test_short_runs_and_windows_take_the_ring_although_files_could_be_read_directly(dataset: Path) -> None:
    for options in ({}, {"window": Window(3)}, {"shuffle": "full"}):
        parts = prepared(dataset, columns=["row", "i"], **options)
        assert StreamedTier(parts, FakeDevice(), reason="test", direct=PosixReader()).direct_regions == []
