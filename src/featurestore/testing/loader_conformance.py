"""What every loader promises, as tests to inherit: for another tier, another device, another adapter.

class TestMyLoader(LoaderConformance):
    @pytest.fixture
    def opener(self):
        return open_my_loader       # (folder, **options) -> a loader

The options are those of `featurestore.loaders.open_loader`; what comes back must be a loader as that one is.
Batches are compared as NumPy arrays, bit for bit: with rows read by a loop from the table that was written,
and with the plain CPU loader. Give `to_host` where a batch's arrays do not turn into NumPy by themselves.
"""

# ruff: noqa: D102 -- a test's name is a sentence

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from featurestore.core.time import DAY_NS
from featurestore.errors import CorruptDataError, LoaderStateError
from featurestore.loaders import TimeSplit, Window, open_loader
from featurestore.testing.packed_dataset import write_dataset

Opener = Callable[..., Any]
Arrays = dict[str, npt.NDArray[Any]]

ROWS = 600
BATCH = 64
OPTIONS: Mapping[str, Any] = {
    "batch_size": BATCH,
    "columns": ["row", "number", "whole", "word"],
    "label": "target",
    "weight": "share",
    "dtype": "float32",
    "label_dtype": "float32",
    "entity": True,
    "block_rows": 16,
    "blocks": 2,
    "streams": 8,
}


def conformance_table(rows: int = ROWS) -> pa.Table:
    """Rows in time order: nulls in numbers and words, a label, a weight, and each row's own number."""
    rng = np.random.default_rng(7)
    times = np.sort(rng.integers(0, 4 * DAY_NS, rows)) + 19_000 * DAY_NS
    return pa.table(
        {
            "user": rng.integers(0, 7, rows),
            "ts": pa.array(times, pa.timestamp("ns", "UTC")),
            "row": np.arange(rows).astype(np.float32),
            "number": pa.array(rng.normal(size=rows), mask=rng.random(rows) < 0.2),
            "whole": pa.array(rng.integers(-9, 9, rows), mask=rng.random(rows) < 0.2),
            "word": pa.array(rng.choice(["x", "y", "é"], rows), mask=rng.random(rows) < 0.2),
            "share": rng.random(rows).astype(np.float32),
            "target": rng.normal(size=rows),
        }
    )


def write_conformance_dataset(folder: Path) -> pa.Table:
    """Write the version that the suite reads; returns its rows."""
    table = conformance_table()
    write_dataset(
        folder,
        table,
        entity_keys=["user"],
        timestamp="ts",
        features=["row", "number", "whole", "word", "share"],
        labels=["target"],
        buckets=2,
    )
    return table


def flat(batch: Mapping[str, Any]) -> Arrays:
    """All arrays of a batch by dotted name."""
    out: Arrays = {}
    for name, value in batch.items():
        if isinstance(value, Mapping):
            out |= {f"{name}.{key}": np.asarray(item) for key, item in value.items()}
        else:
            out[name] = np.asarray(value)
    return out


def assert_same(found: Iterable[Arrays], expected: Iterable[Arrays]) -> None:
    """Compare batch by batch: the same arrays, types, shapes and bits."""
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.keys() == other.keys(), f"batch {step}"
        for name, values in one.items():
            where = f"batch {step}, {name}"
            assert (values.dtype, values.shape) == (other[name].dtype, other[name].shape), where
            assert values.tobytes() == other[name].tobytes(), where


class LoaderConformance:
    """Inherit, and give a fixture `opener`."""

    @pytest.fixture
    def opener(self) -> Opener:
        """Return the function that opens the loader under test: `(folder, **options)`."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def written(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table]:
        """The version's folder, and its rows in time order."""
        folder = tmp_path_factory.mktemp("conformance") / "v00000001"
        return folder, write_conformance_dataset(folder)

    def to_host(self, batch: Any) -> Mapping[str, Any]:
        """Turn a batch into NumPy arrays."""
        found: Mapping[str, Any] = batch.numpy()
        return found

    def overwrite(self, batch: Any) -> None:
        """Write over a delivered batch, as a trainer may; do nothing where batches cannot be changed."""
        batch.x[:] = -1

    def read(self, loader: Any, *, epoch: int | None = None, steps: int | None = None) -> list[Arrays]:
        """Read (the rest of) an epoch, or some steps of it, as arrays of their own."""
        if epoch is not None:
            loader.set_epoch(epoch)
        passing = iter(loader)
        count = len(loader) if steps is None else steps
        taken = [batch for _, batch in zip(range(count), passing, strict=False)]
        return [{n: np.array(v) for n, v in flat(self.to_host(batch)).items()} for batch in taken]

    @pytest.mark.parametrize("shuffle", [True, "full", False])
    @pytest.mark.parametrize("drop_last", [False, "pad"])
    def test_an_epoch_holds_every_row_once_with_its_values(
        self,
        opener: Opener,
        written: tuple[Path, pa.Table],
        shuffle: bool | Literal["full"],
        drop_last: bool | Literal["pad"],
    ) -> None:
        folder, table = written
        loader = opener(folder, **OPTIONS, shuffle=shuffle, drop_last=drop_last)
        batches = self.read(loader, epoch=0)
        assert len(batches) == len(loader) == -(-ROWS // BATCH)
        columns = {name: table.column(name).to_pylist() for name in table.column_names}
        seen = []
        for batch in batches:
            real = batch.get("valid", np.ones(batch["y"].size, np.bool_))
            for i in np.flatnonzero(real).tolist():
                row = int(batch["x"][i, 0])
                seen.append(row)
                number, whole = columns["number"][row], columns["whole"][row]
                assert batch["x"][i, 1] == np.float32(0.0 if number is None else number)
                assert batch["x"][i, 2] == (0 if whole is None else whole)
                assert batch["y"][i] == np.float32(columns["target"][row])
                assert batch["w"][i] == np.float32(columns["share"][row])
                word = columns["word"][row]
                assert batch["codes.word"][i] == (0 if word is None else ["x", "y", "é"].index(word) + 1)
            assert (batch["w"][~real] == 0).all()
        assert sorted(seen) == list(range(ROWS))
        assert (seen == list(range(ROWS))) == (shuffle is False)

    @pytest.mark.parametrize(
        "more",
        [
            pytest.param({}, id="plain"),
            pytest.param({"nulls": "mask", "drop_last": "pad"}, id="masks"),
            pytest.param({"nulls": "nan", "shuffle": "full", "drop_last": False}, id="nan"),
            pytest.param({"window": Window(4, min_history=2)}, id="windows"),
            pytest.param({"split": TimeSplit(train=0.6, test=0.4), "subset": "train"}, id="split"),
            pytest.param({"layout": "columns", "shuffle": False}, id="columns"),
        ],
    )
    def test_every_batch_is_the_plain_loaders_bit_for_bit(
        self, opener: Opener, written: tuple[Path, pa.Table], more: dict[str, Any]
    ) -> None:
        host = open_loader(written[0], **OPTIONS, **more, threads=0)
        loader = opener(written[0], **OPTIONS, **more)
        assert loader.fingerprint == host.fingerprint
        for epoch in (0, 1):
            host.set_epoch(epoch)
            assert_same(self.read(loader, epoch=epoch), [flat(batch.numpy()) for batch in host])

    def test_iterating_again_is_the_next_epoch(self, opener: Opener, written: tuple[Path, pa.Table]) -> None:
        loader = opener(written[0], **OPTIONS)
        first, second = self.read(loader, epoch=0), self.read(loader)
        assert loader.epoch in {1, 2}  # counted on at the end of a pass, or at the next one's begin
        assert any((a["x"] != b["x"]).any() for a, b in zip(first, second, strict=True))
        assert_same(self.read(loader, epoch=0), first)
        assert_same(self.read(loader, epoch=1), second)

    @pytest.mark.parametrize("more", [{}, {"shuffle": False, "drop_last": "pad"}, {"window": Window(3)}])
    def test_a_state_taken_after_any_step_leads_on_from_there(
        self, opener: Opener, written: tuple[Path, pa.Table], more: dict[str, Any]
    ) -> None:
        whole = self.read(opener(written[0], **OPTIONS, **more), epoch=0)
        for step in range(1, len(whole)):
            loader = opener(written[0], **OPTIONS, **more)
            self.read(loader, steps=step)
            text = json.dumps(loader.state_dict())
            assert json.loads(text)["step"] == step  # delivered, not prefetched
            assert len(text) < 1000
            loader.close()
            again = opener(written[0], **OPTIONS, **more)
            again.load_state_dict(json.loads(text))
            assert_same(self.read(again, steps=len(whole) - step), whole[step:])
            again.close()

    def test_two_resumes_in_one_epoch_lose_and_repeat_nothing(
        self, opener: Opener, written: tuple[Path, pa.Table]
    ) -> None:
        whole = self.read(opener(written[0], **OPTIONS), epoch=0)
        found: list[Arrays] = []
        state = None
        for steps in (2, 3, len(whole) - 5):
            loader = opener(written[0], **OPTIONS)
            if state is not None:
                loader.load_state_dict(state)
            found += self.read(loader, steps=steps)
            state = loader.state_dict()
        assert_same(found, whole)

    @pytest.mark.parametrize("world", [2, 4])
    def test_ranks_together_make_the_batches_of_one(
        self, opener: Opener, written: tuple[Path, pa.Table], world: int
    ) -> None:
        options = {**OPTIONS, "batch_size": None, "global_batch_size": BATCH, "drop_last": "pad"}
        alone = self.read(opener(written[0], **options, rank=0, world_size=1), epoch=0)
        ranks = [
            self.read(opener(written[0], **options, rank=rank, world_size=world), epoch=0)
            for rank in range(world)
        ]
        for step, whole in enumerate(alone):
            for name, values in whole.items():
                parts = np.stack([rank[step][name] for rank in ranks], axis=1)
                assert parts.reshape(values.shape).tobytes() == values.tobytes(), (step, name)

    def test_a_state_of_another_order_is_refused(
        self, opener: Opener, written: tuple[Path, pa.Table]
    ) -> None:
        state = opener(written[0], **OPTIONS, seed=1).state_dict()
        with pytest.raises(LoaderStateError, match="seed"):
            opener(written[0], **OPTIONS).load_state_dict(state)

    def test_batches_that_are_kept_stay_as_they_were_after_all_others_and_after_the_end(
        self, opener: Opener, written: tuple[Path, pa.Table]
    ) -> None:
        loader = opener(written[0], **OPTIONS, prefetch=2)
        loader.set_epoch(0)
        expected = self.read(opener(written[0], **OPTIONS), epoch=0)
        kept = list(loader)
        for _ in range(2):
            for _ in loader:
                pass
        loader.close()
        assert_same([flat(self.to_host(batch)) for batch in kept], expected)

    def test_what_a_trainer_writes_into_a_batch_reaches_no_other(
        self, opener: Opener, written: tuple[Path, pa.Table]
    ) -> None:
        expected = self.read(opener(written[0], **OPTIONS), epoch=0)
        loader = opener(written[0], **OPTIONS)
        for batch in loader:
            self.overwrite(batch)
        assert_same(self.read(loader, epoch=0), expected)

    def test_a_new_pass_ends_the_one_before_and_a_closed_loader_says_so(
        self, opener: Opener, written: tuple[Path, pa.Table]
    ) -> None:
        before = set(threading.enumerate())
        loader = opener(written[0], **OPTIONS)
        first = iter(loader)
        next(first)
        second = iter(loader)
        next(second)
        with pytest.raises(LoaderStateError):
            next(first)
        loader.close()
        with pytest.raises(LoaderStateError):
            iter(loader)
        assert not set(threading.enumerate()) - before

    def test_a_flipped_bit_is_found_before_a_value_of_its_shard_is_used(
        self, opener: Opener, tmp_path: Path
    ) -> None:
        folder = tmp_path / "v00000001"
        write_conformance_dataset(folder)
        shard = sorted(folder.glob("part-0000?.arrow"))[1]
        damaged = bytearray(shard.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        shard.write_bytes(bytes(damaged))
        with pytest.raises(CorruptDataError, match=shard.name):
            self.read(opener(folder, **OPTIONS, verify="first_use"), epoch=0)

    def test_it_says_what_feeds_it_and_counts_what_it_gave(
        self, opener: Opener, written: tuple[Path, pa.Table]
    ) -> None:
        loader = opener(written[0], **OPTIONS, drop_last=False)
        self.read(loader, epoch=0)
        report, stats = loader.io_report(), loader.stats()
        assert report["tier"]
        assert report["reason"]
        assert (stats["rows"], stats["batches"]) == (ROWS, len(loader))
        assert 0 <= stats["wait_share"] <= 1
