"""Other people's loops over our batches: torchdata, Lightning, Accelerate, Grain, each with a checkpoint."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.loaders.datasets import leaves

torch = pytest.importorskip("torch")

from featurestore.errors import LoaderStateError, MissingDependencyError  # noqa: E402 - torch may be absent
from featurestore.loaders import open_loader  # noqa: E402
from featurestore.loaders.torch_loader import TorchLoader, open_torch_loader  # noqa: E402

pytestmark = [
    # Another test may have imported JAX, which warns of every fork; workers here never touch it.
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
    # torchdata counts itself by a function that torch has deprecated.
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]

ROWS: dict[str, Any] = {"batch_size": 100, "columns": ["row", "a"], "dtype": "float32", "labels": []}
LEARN: dict[str, Any] = {
    "batch_size": 100,
    "columns": ["row", "a"],
    "label": "y",
    "dtype": "float32",
    "label_dtype": "float32",
}


def rows_of(batches: Any) -> list[list[int]]:
    return [batch["x"][:, 0].long().tolist() for batch in batches]


def epoch_of(dataset: Path, epoch: int = 0, **options: Any) -> list[list[int]]:
    loader = open_torch_loader(dataset, **(options or ROWS))
    loader.set_epoch(epoch)
    return rows_of(loader)


def needs(module: str) -> Any:
    return pytest.importorskip(module, reason=f"{module} is not installed")


def test_torchdata_nodes_stop_and_continue_inside_a_loader_of_nodes(dataset: Path) -> None:
    if importlib.util.find_spec("torchdata") is None:
        with pytest.raises(MissingDependencyError, match="torchdata"):
            open_torch_loader(dataset, **ROWS).as_node()
        return
    nodes = needs("torchdata.nodes")
    first = nodes.Loader(open_torch_loader(dataset, **ROWS).as_node())
    taken = [batch for _, batch in zip(range(5), first, strict=False)]
    state = json.loads(json.dumps(first.state_dict()))
    second = nodes.Loader(open_torch_loader(dataset, **ROWS).as_node())
    second.load_state_dict(state)
    assert [*rows_of(taken), *rows_of(second)] == epoch_of(dataset)
    assert rows_of(second) == epoch_of(dataset, 1)


def test_a_node_prefetches_and_its_state_counts_what_was_delivered(dataset: Path) -> None:
    nodes = needs("torchdata.nodes")
    node = nodes.Prefetcher(open_torch_loader(dataset, **ROWS).as_node(), prefetch_factor=4)
    node.reset()
    taken = [next(node) for _ in range(6)]
    state = node.state_dict()
    again = nodes.Prefetcher(open_torch_loader(dataset, **ROWS).as_node(), prefetch_factor=4)
    again.reset(state)
    assert [*rows_of(taken), *rows_of(again)] == epoch_of(dataset)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("stops", "itself"), [([7], True), ([1, 12], False)], ids=["the loader, once", "its batches, twice"]
)
def test_a_stateful_dataloader_resumes_mid_epoch(
    dataset: Path, workers: int, stops: list[int], itself: bool
) -> None:
    stateful = needs("torchdata.stateful_dataloader")

    def under() -> Any:
        loader = open_torch_loader(dataset, **ROWS)
        batches: Any = loader if itself else loader.as_torch_dataset()
        return stateful.StatefulDataLoader(batches, batch_size=None, num_workers=workers)

    found: list[list[int]] = []
    state: Any = None
    for stop in [*stops, None]:
        loader = under()
        if state is not None:
            loader.load_state_dict(state)
        count = 10**6 if stop is None else stop
        passing = iter(loader)
        found += rows_of(batch for _, batch in zip(range(count), passing, strict=False))
        state = loader.state_dict()
        del passing
    assert found == epoch_of(dataset)


def test_a_workers_state_is_refused_beside_another_number_of_workers(dataset: Path) -> None:
    batches = open_torch_loader(dataset, **ROWS).as_torch_dataset()
    state = {**batches.state_dict(), "share": [1, 2]}
    with pytest.raises(LoaderStateError, match="worker 1 of 2"):
        batches.load_state_dict(state)


@pytest.mark.filterwarnings("ignore::UserWarning:lightning.*")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_lightning_trainer_resumes_from_a_checkpoint_inside_an_epoch(dataset: Path, tmp_path: Path) -> None:
    lightning: Any = needs("lightning")
    seen: list[list[int]] = []

    class Module(lightning.LightningModule):  # type: ignore[misc] # found at run time
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch: Any, _: int) -> Any:
            seen.append(batch.x[:, 0].long().tolist())
            return ((self.layer(batch.x[:, 1:]).squeeze(1) - batch.y) ** 2).mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    def fit(*, steps: int, checkpoint: Path | None) -> TorchLoader:
        loader = open_torch_loader(dataset, **LEARN)
        trainer = lightning.Trainer(
            max_steps=steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
        )
        trainer.fit(Module(), loader, ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "at.ckpt")
        return loader

    per_epoch = len(open_torch_loader(dataset, **LEARN))
    fit(steps=11, checkpoint=None)
    again = fit(steps=per_epoch + 4, checkpoint=tmp_path / "at.ckpt")
    assert again.state_dict()["step"] == 4
    assert seen == [*epoch_of(dataset, 0, **LEARN), *epoch_of(dataset, 1, **LEARN)[:4]]


def test_accelerate_leaves_the_loader_alone_and_checkpoints_it(dataset: Path, tmp_path: Path) -> None:
    accelerate = needs("accelerate")

    def begin() -> tuple[Any, Any, TorchLoader]:
        accelerator = accelerate.Accelerator(cpu=True)
        loader = open_torch_loader(dataset, **LEARN)
        model = torch.nn.Linear(1, 1)
        model, optimizer, prepared = accelerator.prepare(
            model, torch.optim.SGD(model.parameters(), lr=0.01), loader
        )
        assert prepared is loader  # neither wrapped nor read ahead
        accelerator.register_for_checkpointing(loader)

        def train(batch: Any) -> list[int]:
            loss = ((model(batch.x[:, 1:]).squeeze(1) - batch.y) ** 2).mean()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            rows: list[int] = batch.x[:, 0].long().tolist()
            return rows

        return accelerator, train, loader

    accelerator, train, loader = begin()
    seen = [train(batch) for _, batch in zip(range(9), loader, strict=False)]
    accelerator.save_state(str(tmp_path / "state"))
    accelerator, train, loader = begin()
    accelerator.load_state(str(tmp_path / "state"))
    seen += [train(batch) for batch in loader]
    assert seen == epoch_of(dataset, 0, **LEARN)


class Flat:
    """A loader as Grain's harness takes it: values that NumPy can compare, and the iterator's own state."""

    def __init__(self, dataset: Path, **options: Any) -> None:
        self._dataset, self._options = dataset, options

    def __iter__(self) -> "FlatIterator":
        return FlatIterator(iter(open_loader(self._dataset, **self._options)))


class FlatIterator(Iterator[dict[str, Any]]):
    def __init__(self, passing: Any) -> None:
        self._passing = passing

    def __next__(self) -> dict[str, Any]:
        return dict(leaves(next(self._passing).clone()))

    def get_state(self) -> dict[str, Any]:
        state: dict[str, Any] = self._passing.get_state()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        self._passing.set_state(json.loads(json.dumps(state)))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"batch_size": 256, "drop_last": False}, id="blocks"),
        pytest.param({"batch_size": 300, "shuffle": False, "drop_last": "pad"}, id="time order"),
    ],
)
def test_grains_own_harness_finds_every_checkpoint_equal(dataset: Path, options: dict[str, Any]) -> None:
    testing = needs("grain.experimental")
    testing.assert_equal_output_after_checkpoint(Flat(dataset, nulls="mask", **options))


def test_grains_harness_over_a_grain_pipeline_on_our_source(dataset: Path) -> None:
    grain, testing = needs("grain.python"), needs("grain.experimental")
    source = open_loader(dataset, batch_size=8, columns=["row"], labels=[]).grain_source()
    pipeline = grain.MapDataset.source(source).shuffle(seed=1)[:400].batch(40).to_iter_dataset()
    testing.assert_equal_output_after_checkpoint(pipeline)


def test_a_pass_that_another_one_ended_takes_no_state(dataset: Path) -> None:
    loader = open_loader(dataset, batch_size=100, columns=["row"], labels=[])
    first = iter(loader)
    state = first.get_state()
    next(iter(loader))
    with pytest.raises(LoaderStateError, match="another began"):
        first.set_state(state)
