"""Tensors: the same values, under every way torch takes an iterable."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from tests.loaders.datasets import assert_same, leaves  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402 - torch may be absent

from featurestore.errors import DefinitionError, SchemaError  # noqa: E402
from featurestore.loaders import Window, open_loader, torch_loader  # noqa: E402
from featurestore.loaders.torch_loader import TorchLoader, open_torch_loader  # noqa: E402

# Another test may have imported JAX, which warns of every fork; workers here never touch it.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")

ROWS: dict[str, Any] = {"batch_size": 100, "columns": ["row", "a"], "dtype": "float32", "labels": []}


@pytest.mark.parametrize("io", ["auto", "pinned", "resident", "gds", "cpu"])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"dtype": "float32"}, id="one matrix"),
        pytest.param({"columns": ["a", "b", "i", "f", "s", "e", "tt"], "nulls": "mask"}, id="types"),
        pytest.param({"dtype": "float64", "drop_last": "pad", "window": Window(4)}, id="windows"),
    ],
)
def test_tensors_hold_the_bits_of_the_numpy_batches(dataset: Path, io: str, options: dict[str, Any]) -> None:
    shared = {"batch_size": 128, "time": True, "entity": True, "weight": "wt", **options}
    tensors = open_torch_loader(dataset, io=io, device="cpu", **shared)
    for one, other in zip(open_loader(dataset, **shared), tensors, strict=True):
        assert all(isinstance(value, torch.Tensor) for value in _tensors(other))
        assert_same(one, other)


def _tensors(batch: Any) -> list[Any]:
    return [v for value in batch.values() for v in (value.values() if isinstance(value, dict) else [value])]


def test_wide_unsigned_integers_come_as_the_next_signed_type(dataset: Path) -> None:
    batch = next(iter(open_torch_loader(dataset, batch_size=50, columns=["u"], labels=[])))
    expected = next(iter(open_loader(dataset, batch_size=50, columns=["u"], labels=[])))
    assert batch.x.dtype == torch.int32
    assert np.array_equal(batch.x.numpy(), expected.x)


def test_the_report_says_which_tier_and_why(dataset: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is there")
    assert "no CUDA" in open_torch_loader(dataset, **ROWS).io_report()["reason"]
    gds = open_torch_loader(dataset, io="gds", device="cpu", **ROWS).io_report()
    assert gds["tier"] == "streamed"
    assert "gds" in gds["reason"]
    with pytest.raises(DefinitionError, match="CUDA"):
        open_torch_loader(dataset, device="cuda", **ROWS)
    with pytest.raises(DefinitionError, match="io="):
        open_torch_loader(dataset, io="fast", **ROWS)


@pytest.mark.parametrize("device", [None, [], {}, True, "gpu"], ids=str)
def test_a_device_that_torch_does_not_know_is_refused(dataset: Path, device: Any) -> None:
    with pytest.raises(DefinitionError, match="which torch does not know"):
        open_torch_loader(dataset, device=device, **ROWS)


def test_a_batch_moves_pins_and_clones_like_a_tensor(dataset: Path) -> None:
    batch = next(iter(open_torch_loader(dataset, batch_size=16, columns=["a", "s"])))
    moved = batch.to("cpu", non_blocking=True)
    copy = batch.clone()
    copy.x.zero_()
    assert torch.equal(moved.x, batch.x)
    assert not torch.equal(copy.x, batch.x)
    assert batch["x"] is batch.x
    assert set(batch) == {"x", "y", "codes"}
    assert batch.xy[1] is batch.y
    with pytest.raises(KeyError):
        batch["w"]
    assert "float64[16, 1]" in repr(batch)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_under_a_dataloader_the_batches_and_their_order_are_the_same(dataset: Path, workers: int) -> None:
    loader = open_torch_loader(dataset, **ROWS)
    alone = [batch.x.clone() for batch in loader]
    batches = loader.as_torch_dataset()
    batches.set_epoch(0)
    under = DataLoader(batches, batch_size=None, num_workers=workers)
    found = [batch["x"] for batch in under]
    assert len(found) == len(alone) == len(under)
    assert all(torch.equal(a, b) for a, b in zip(alone, found, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_itself_goes_under_a_dataloader(dataset: Path, workers: int) -> None:
    loader = open_torch_loader(dataset, time=True, **ROWS)
    alone = [dict(batch.clone()) for batch in loader]
    loader.set_epoch(0)
    found = list(DataLoader(loader, batch_size=None, num_workers=workers))
    assert len(found) == len(alone)
    for one, other in zip(alone, found, strict=True):
        assert type(other) is dict
        assert {name: v.tolist() for name, v in one.items()} == {n: v.tolist() for n, v in other.items()}


def test_a_loader_travels_to_another_process_with_its_position(dataset: Path) -> None:
    loader = open_torch_loader(dataset, **ROWS)
    alone = [batch.x.clone() for batch in loader]
    loader.load_state_dict({**loader.state_dict(), "epoch": 0, "step": 4})
    again = pickle.loads(pickle.dumps(loader))
    assert all(torch.equal(a, b.x) for a, b in zip(alone[4:], again, strict=True))
    assert again.io_report()["tier"] == "cpu"


def test_a_dataloader_resumes_in_the_middle_of_an_epoch(dataset: Path) -> None:
    alone = [batch.x.clone() for batch in open_torch_loader(dataset, **ROWS)]
    loader = open_torch_loader(dataset, **ROWS)
    for _ in zip(loader, range(9), strict=False):
        pass
    state = json.loads(json.dumps({**loader.state_dict(), "step": 9}))
    batches = open_torch_loader(dataset, **ROWS).as_torch_dataset()
    batches.load_state_dict(state)
    found = [batch["x"] for batch in DataLoader(batches, batch_size=None, num_workers=2)]
    assert all(torch.equal(a, b) for a, b in zip(alone[9:], found, strict=True))


def test_a_killed_worker_is_an_error_and_no_short_epoch(dataset: Path) -> None:
    batches = open_torch_loader(dataset, **ROWS).as_torch_dataset()
    under = iter(DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=1))
    next(under)
    with pytest.raises(RuntimeError, match="worker"):
        _kill_and_drain(under)


def _kill_and_drain(under: Any) -> None:
    """Torch raises wherever the main thread is when it learns of the death."""
    under._workers[0].kill()
    under._workers[0].join()
    list(under)


def test_a_dataset_travels_to_a_spawned_worker_by_pickle(dataset: Path) -> None:
    loader = open_torch_loader(dataset, window=Window(3), entity=True, **ROWS)
    again = pickle.loads(pickle.dumps(loader.as_torch_dataset()))
    expected = [batch.x for batch in open_torch_loader(dataset, window=Window(3), entity=True, **ROWS)]
    assert all(torch.equal(a, b["x"]) for a, b in zip(expected, again, strict=True))


def test_torch_saves_the_state_with_weights_only(dataset: Path, tmp_path: Path) -> None:
    loader = open_torch_loader(dataset, **ROWS)
    torch.save(loader.state_dict(), tmp_path / "state.pt")
    loader.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


def test_a_training_loop_runs_and_learns(dataset: Path) -> None:
    """The plainest use: weights move and the loss falls."""
    loader = open_torch_loader(
        dataset, batch_size=64, columns=["a", "b", "i"], label="y", dtype="float32", label_dtype="float32"
    )
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        total = 0.0
        for x, y in (batch.xy for batch in loader):
            loss = torch.nn.functional.mse_loss(model(x).squeeze(1), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        losses.append(total)
    assert losses[-1] < losses[0]


def test_unsigned_64_bit_integers_are_refused_by_name() -> None:
    from featurestore.loaders.torch_loader import to_tensor  # noqa: PLC0415

    with pytest.raises(SchemaError, match="uint64"):
        to_tensor(np.zeros(1, np.uint64))


def test_the_protocols_that_trainers_look_for_are_there(dataset: Path) -> None:
    """What Lightning, Accelerate and torch.distributed.checkpoint ask of a loader, by name."""
    loader = open_torch_loader(dataset, **ROWS)
    assert isinstance(loader, TorchLoader)
    for name in ("__len__", "__iter__", "state_dict", "load_state_dict", "set_epoch"):
        assert callable(getattr(loader, name))
    assert DataLoader not in type(loader).__mro__  # Accelerate would rebuild it
    assert not hasattr(loader, "dataset")  # Lightning would look into it
    assert leaves(next(iter(loader)))


@given(
    batch=st.integers(20, 900),
    workers=st.integers(1, 5),
    drop_last=st.sampled_from([True, False, "pad"]),
    shuffle=st.sampled_from([True, "full", False]),
    start=st.integers(0, 6),
    stop=st.integers(0, 9),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_workers_share_an_epoch_in_turns_and_each_goes_on_from_its_own_state(
    dataset: Path,
    batch: int,
    workers: int,
    drop_last: bool | str,
    shuffle: bool | str,
    start: int,
    stop: int,
) -> None:
    """What DataLoader's processes do, one worker after another in this one: stop after rounds, resume."""
    options = {**ROWS, "batch_size": batch, "drop_last": drop_last, "shuffle": shuffle}
    loader = open_torch_loader(dataset, **options, threads=0)
    alone = [b.x[:, 0].tolist() for b in loader]
    start = min(start, len(alone) - 1)
    loader.load_state_dict({**loader.state_dict(), "epoch": 0, "step": start})
    made: list[list[list[float]]] = []
    with pytest.MonkeyPatch.context() as patch:
        for worker in range(workers):
            patch.setattr(torch_loader, "_worker", lambda worker=worker: (worker, workers))
            batches = loader.as_torch_dataset()
            first = [b["x"][:, 0].tolist() for _, b in zip(range(stop), batches, strict=False)]
            # Of a worker that came to its end the next pass is the next epoch.
            ended = len(first) < stop
            again = loader.as_torch_dataset()
            again.load_state_dict(json.loads(json.dumps(batches.state_dict())))
            rest = [] if ended else [b["x"][:, 0].tolist() for b in again]
            made.append(first + rest)
    rounds = max(len(mine) for mine in made)
    found = [mine[r] for r in range(rounds) for mine in made if r < len(mine)]
    assert found == alone[start:]
