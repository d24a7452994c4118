"""On an NVIDIA GPU: all device tiers make the CPU tier's batches. Skips without one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.loaders.datasets import assert_same

from featurestore.loaders import Window, open_loader

pytestmark = pytest.mark.gpu

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no NVIDIA GPU can be reached", allow_module_level=True)

OPTIONS: dict[str, Any] = {
    "batch_size": 100,
    "dtype": "float32",
    "time": True,
    "entity": True,
    "weight": "wt",
}


@pytest.mark.parametrize("io", ["pinned", "resident", "gds"])
@pytest.mark.parametrize("window", [None, Window(5)], ids=["rows", "windows"])
def test_torch_on_cuda_makes_the_batches_of_the_cpu_tier(
    dataset: Path, io: str, window: Window | None
) -> None:
    from featurestore.loaders.torch_loader import open_torch_loader  # noqa: PLC0415 - needs torch

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


def test_values_stay_right_while_kernels_run_late(dataset: Path) -> None:
    """A busy consumer's stream: copies must not overtake it."""
    from featurestore.loaders.torch_loader import open_torch_loader  # noqa: PLC0415 - needs torch

    loader = open_torch_loader(dataset, io="pinned", device="cuda", memory_bytes=1 << 20, **OPTIONS)
    heavy = torch.randn(2048, 2048, device="cuda")
    kept = []
    for batch in loader:
        for _ in range(4):
            heavy = heavy @ heavy / 50
        kept.append(batch.x.sum(dim=1, dtype=torch.float64))
    expected = [batch.x.astype(np.float64).sum(axis=1) for batch in open_loader(dataset, **OPTIONS)]
    for one, other in zip(expected, kept, strict=True):
        assert np.allclose(one, other.cpu().numpy(), rtol=1e-12)


@pytest.mark.parametrize("io", ["pinned", "resident"])
def test_cupy_makes_the_batches_of_the_cpu_tier(dataset: Path, io: str) -> None:
    pytest.importorskip("cupy")
    from featurestore.loaders.cupy_loader import open_cupy_loader  # noqa: PLC0415 - needs cupy

    held = list(
        zip(open_loader(dataset, **OPTIONS), open_cupy_loader(dataset, io=io, **OPTIONS), strict=True)
    )
    for one, other in held:
        assert_same(one, other.map(lambda value: value.get()))
