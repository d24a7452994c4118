"""On an NVIDIA GPU: all device tiers make the CPU tier's batches, late kernels and all. Skips without one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.loaders.datasets import assert_same
from tests.loaders.test_conformance import Unwritable

from featurestore.loaders import Window, open_loader
from featurestore.loaders.kvikio_reader import KvikioReader, open_direct_reader
from featurestore.loaders.loader import Loader
from featurestore.loaders.options import options_of
from featurestore.loaders.prepare import prepare
from featurestore.loaders.resident import ResidentTier
from featurestore.loaders.streamed import SLOTS, StreamedTier
from featurestore.testing.loader_conformance import LoaderConformance, Opener

pytestmark = pytest.mark.gpu

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no NVIDIA GPU can be reached", allow_module_level=True)

from featurestore.loaders.torch_loader import TorchDevice, open_torch_loader  # noqa: E402 - needs torch

OPTIONS: dict[str, Any] = {
    "batch_size": 100,
    "dtype": "float32",
    "time": True,
    "entity": True,
    "weight": "wt",
}
PACKS: dict[str, Any] = {"batch_size": 100, "columns": ["i", "row", "b"]}


class TestTorchOnCuda(LoaderConformance):
    @pytest.fixture(params=["pinned", "resident", "gds"])
    def opener(self, request: pytest.FixtureRequest) -> Opener:
        return lambda folder, **options: open_torch_loader(
            folder, io=request.param, device="cuda", **{"memory_bytes": 1 << 18, **options}
        )


class TestCupy(Unwritable):
    @pytest.fixture(params=["pinned", "resident"])
    def opener(self, request: pytest.FixtureRequest) -> Opener:
        pytest.importorskip("cupy")
        from featurestore.loaders.cupy_loader import open_cupy_loader  # noqa: PLC0415 - needs cupy

        return lambda folder, **options: open_cupy_loader(
            folder, io=request.param, **{"memory_bytes": 1 << 18, **options}
        )

    def to_host(self, batch: Any) -> Any:
        return batch.map(lambda value: value.get())


@pytest.mark.parametrize("io", ["pinned", "resident", "gds"])
@pytest.mark.parametrize("window", [None, Window(5)], ids=["rows", "windows"])
def test_torch_on_cuda_makes_the_batches_of_the_cpu_tier(
    dataset: Path, io: str, window: Window | None
) -> None:
    loader = open_torch_loader(dataset, io=io, device="cuda", window=window, memory_bytes=3 << 20, **OPTIONS)
    for _ in range(3):
        held = list(zip(open_at(dataset, loader.epoch, window), loader, strict=True))
        for one, other in held:
            assert other.x.device.type == "cuda"
            assert_same(one, other.to("cpu"))


def open_at(dataset: Path, epoch: int, window: Window | None) -> Any:
    loader = open_loader(dataset, window=window, **OPTIONS)
    loader.set_epoch(epoch)
    return loader


@pytest.mark.parametrize("io", ["pinned", "resident"])
def test_values_stay_right_while_kernels_run_late(dataset: Path, io: str) -> None:
    """A busy consumer's stream: copies must not overtake it."""
    loader = open_torch_loader(dataset, io=io, device="cuda", memory_bytes=1 << 20, **OPTIONS)
    heavy = torch.randn(2048, 2048, device="cuda")
    kept = []
    for batch in loader:
        for _ in range(4):
            heavy = heavy @ heavy / 50
        kept.append(batch.x.sum(dim=1, dtype=torch.float64))
    expected = [batch.x.astype(np.float64).sum(axis=1) for batch in open_loader(dataset, **OPTIONS)]
    for one, other in zip(expected, kept, strict=True):
        assert np.allclose(one, other.cpu().numpy(), rtol=1e-12)


def test_a_trainer_that_takes_each_batch_on_another_stream_gets_the_right_values(dataset: Path) -> None:
    loader = open_torch_loader(dataset, io="pinned", device="cuda", memory_bytes=1 << 20, **OPTIONS)
    streams = [torch.cuda.Stream() for _ in range(3)]
    heavy = [torch.randn(1024, 1024, device="cuda") for _ in streams]
    torch.cuda.synchronize()
    passing, kept = iter(loader), []
    for step in range(len(loader)):
        place = step % len(streams)
        with torch.cuda.stream(streams[place]):
            batch = next(passing)
            for _ in range(4):
                heavy[place] = heavy[place] @ heavy[place] / 50
            kept.append(batch.x.clone())
    torch.cuda.synchronize()
    for one, other in zip(open_loader(dataset, **OPTIONS), kept, strict=True):
        assert one.x.tobytes() == other.cpu().numpy().tobytes()


def test_the_next_batch_of_a_resident_loader_does_not_wait_for_the_trainer(dataset: Path) -> None:
    """Launching must run ahead of the device: no upload may synchronize the consumer's stream."""
    loader = open_torch_loader(dataset, io="resident", device="cuda", drop_last="pad", **OPTIONS)
    passing = iter(loader)
    for _ in range(3):
        next(passing)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # about a second of device time
    next(passing)
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()


@pytest.mark.parametrize("tier", [StreamedTier, ResidentTier])
def test_files_read_by_kvikio_give_the_batches_of_the_cpu_tier(
    dataset: Path, tier: type[StreamedTier] | type[ResidentTier], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With or without a GPUDirect driver: kvikio's POSIX path fills the same buffers at the same moments."""
    kvikio = pytest.importorskip("kvikio")
    monkeypatch.setattr("featurestore.loaders.direct.SHORTEST_BYTES", 1)
    parts = prepare(dataset, None, options_of({"memory_bytes": SLOTS * 40_000, **PACKS}), rank=0, world=1)
    device = Loader(parts, tier(parts, TorchDevice("cuda"), reason="test", direct=KvikioReader(kvikio)))
    for epoch in range(2):
        host = open_loader(dataset, **PACKS)
        host.set_epoch(epoch)
        for one, other in zip(host, device, strict=True):
            assert_same(one, other.to("cpu"))


def test_gds_says_which_path_it_took_and_why(dataset: Path) -> None:
    reader, why = open_direct_reader()
    report = open_torch_loader(dataset, io="gds", device="cuda", **OPTIONS).io_report()
    assert why in report["reason"]
    assert (report["tier"] == "resident") == (reader is not None)
