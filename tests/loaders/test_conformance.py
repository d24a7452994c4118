"""Our own tiers and adapters keep the promises of the shipped suite."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.loaders import open_loader
from featurestore.loaders.loader import Loader, Tier
from featurestore.loaders.options import options_of, rank_of
from featurestore.loaders.prepare import Prepared, prepare
from featurestore.loaders.resident import ResidentTier
from featurestore.loaders.streamed import StreamedTier
from featurestore.testing.fake_device import FakeDevice
from featurestore.testing.loader_conformance import LoaderConformance, Opener


def prepared(folder: Path, options: dict[str, Any]) -> Prepared:
    chosen = options_of({"memory_bytes": 60_000, **options})
    rank, world = rank_of(chosen)
    return prepare(folder, None, chosen, rank=rank, world=world)


class Unwritable(LoaderConformance):
    """Arrays that nobody can write to."""

    def overwrite(self, batch: Any) -> None:
        del batch


class TestCpuTier(LoaderConformance):
    @pytest.fixture(params=[0, 2], ids=["no threads", "two threads"])
    def opener(self, request: pytest.FixtureRequest) -> Opener:
        return lambda folder, **options: open_loader(folder, **{"threads": request.param, **options})


class TestStreamedTier(Unwritable):
    @pytest.fixture
    def opener(self) -> Opener:
        def opened(folder: Path, **options: Any) -> Loader:
            parts = prepared(folder, options)
            tier: Tier = StreamedTier(parts, FakeDevice(5, eager=0.3), reason="conformance")
            return Loader(parts, tier)

        return opened


class TestResidentTier(Unwritable):
    @pytest.fixture
    def opener(self) -> Opener:
        def opened(folder: Path, **options: Any) -> Loader:
            parts = prepared(folder, options)
            return Loader(parts, ResidentTier(parts, FakeDevice(6, eager=0.3), reason="conformance"))

        return opened


class TestTorch(LoaderConformance):
    @pytest.fixture(params=["cpu", "pinned", "resident"])
    def opener(self, request: pytest.FixtureRequest) -> Opener:
        pytest.importorskip("torch")
        from featurestore.loaders.torch_loader import open_torch_loader  # noqa: PLC0415 - needs torch

        return lambda folder, **options: open_torch_loader(folder, io=request.param, device="cpu", **options)


@pytest.mark.filterwarnings("ignore:JAX runs without 64-bit types:UserWarning")
class TestJax(Unwritable):
    @pytest.fixture
    def opener(self) -> Opener:
        pytest.importorskip("jax")
        from featurestore.loaders.jax_loader import open_jax_loader  # noqa: PLC0415 - needs jax

        return open_jax_loader

    def to_host(self, batch: Any) -> Mapping[str, Any]:
        """JAX without 64-bit types gives ages as two words."""
        found = dict(batch.numpy())
        if "delta_ns" in found:
            words = found["delta_ns"].astype(np.int64)
            found["delta_ns"] = (words[..., 0] << 32) | words[..., 1]
        return found
