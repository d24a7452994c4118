"""The long count: sizes, worlds, threads, tiers, stops and restarts give the batches of one plain loader."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.loaders.test_conformance import prepared

from featurestore.loaders import Window, open_loader
from featurestore.loaders.loader import HostTier, Loader, Tier
from featurestore.loaders.resident import ResidentTier
from featurestore.loaders.streamed import StreamedTier
from featurestore.testing.fake_device import FakeDevice
from featurestore.testing.loader_conformance import OPTIONS, flat, write_conformance_dataset

Arrays = dict[str, npt.NDArray[Any]]

WORLDS = (1, 2, 4, 8)
legs = st.tuples(
    st.integers(0, 12),  # steps until the next stop
    st.sampled_from(WORLDS),
    st.sampled_from(["cpu", "streamed", "resident"]),
    st.integers(0, 2),  # threads
    st.integers(1, 5),  # prefetch
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("soak") / "v00000001"
    write_conformance_dataset(made)
    return made


def tier_of(kind: str, parts: Any, seed: int) -> Tier:
    if kind == "cpu":
        return HostTier(parts)
    made = StreamedTier if kind == "streamed" else ResidentTier
    return made(parts, FakeDevice(seed, eager=seed % 10 / 10), reason="soak")


def global_batch(ranks: list[Arrays]) -> Arrays:
    """Position `p` of a step is row `p // world` of rank `p % world`; the last step may be ragged."""
    out = {}
    for name in ranks[0]:
        longest = ranks[0][name].shape[0]
        rows = [r[name][i] for i in range(longest) for r in ranks if i < r[name].shape[0]]
        out[name] = np.stack(rows)
    return out


@pytest.mark.soak
@pytest.mark.timeout(7200)
@given(
    per_rank=st.integers(1, 40),
    shuffle=st.sampled_from([True, "full", False]),
    drop_last=st.sampled_from([True, "pad"]),
    window=st.sampled_from([None, None, Window(3, min_history=2)]),
    seed=st.integers(0, 99),
    plan=st.lists(legs, min_size=1, max_size=4),
)
@settings(
    max_examples=4000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_stops_worlds_threads_and_tiers_change_no_batch(
    folder: Path,
    per_rank: int,
    shuffle: bool | Literal["full"],
    drop_last: bool | Literal["pad"],
    window: Window | None,
    seed: int,
    plan: list[tuple[int, int, str, int, int]],
) -> None:
    options = {
        **OPTIONS,
        "batch_size": None,
        "global_batch_size": per_rank * 8,
        "shuffle": shuffle,
        "drop_last": drop_last,
        "window": window,
        "seed": seed,
        "nulls": "mask",
    }
    plain = open_loader(folder, **options, rank=0, world_size=1, threads=0)
    expected = [flat(batch) for epoch in (0, 1) for batch in reset(plain, epoch)]
    state: dict[str, Any] = plain.state_dict() | {"epoch": 0, "step": 0}
    at = 0
    for steps, world, kind, threads, prefetch in plan:
        loaders = []
        for rank in range(world):
            parts = prepared(
                folder,
                {**options, "rank": rank, "world_size": world, "threads": threads, "prefetch": prefetch},
            )
            loaders.append(Loader(parts, tier_of(kind, parts, seed + rank)))
            loaders[-1].load_state_dict(json.loads(json.dumps(state)))
        passes = [iter(loader) for loader in loaders]
        for _ in range(min(steps, len(plain) - at % len(plain))):
            if at == len(expected):
                break
            found = global_batch([flat(next(passing).numpy()) for passing in passes])
            assert found.keys() == expected[at].keys()
            for name, values in found.items():
                assert values.tobytes() == expected[at][name].tobytes(), (at, name)
            at += 1
        states = [loader.state_dict() for loader in loaders]
        assert all(s == states[0] for s in states)
        state = states[0]
        for loader in loaders:
            loader.close()


def reset(loader: Loader, epoch: int) -> Loader:
    loader.set_epoch(epoch)
    return loader
