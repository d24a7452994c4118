"""Damaged, truncated and missing shards, and what a thread meets, reach the consumer with their place."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.errors import CorruptDataError, FeatureStoreError, StorageError
from featurestore.loaders import TimeSplit, open_loader
from featurestore.loaders.source import open_rows

OPTIONS: dict[str, Any] = {"batch_size": 100, "columns": ["row", "a"], "dtype": "float32", "labels": []}


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "v00000001"))


def shards(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("part-*.arrow") if "offsets" not in p.name)


def collect_rows(loader: Any, seen: set[int]) -> None:
    """Note the rows of every batch that is delivered."""
    for batch in loader:
        seen |= set(batch.x[:, 0].astype(int).tolist())


def test_a_truncated_shard_is_found_before_anything_is_mapped(copy: Path) -> None:
    victim = shards(copy)[2]
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(CorruptDataError, match=r"part-00002.*version 1") as caught:
        open_loader(copy, **OPTIONS)
    assert caught.value.context["shard"] == 2
    assert caught.value.context["version"] == 1
    assert caught.value.context["file"].endswith("part-00002.arrow")


def test_a_missing_shard_is_found_at_once(copy: Path) -> None:
    shards(copy)[1].unlink()
    with pytest.raises(StorageError, match="part-00001"):
        open_loader(copy, **OPTIONS)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_flipped_bit_is_found_before_a_value_of_its_shard_is_delivered(copy: Path, threads: int) -> None:
    """Every bit position tried ends the pass; no row of the damaged shard is seen before."""
    rng = np.random.default_rng(0)
    number = 3
    victim = shards(copy)[number]
    whole = victim.read_bytes()
    source = open_rows(copy)
    starts = source.index.starts
    view = source.shards.shard(number)
    inside = set(np.asarray(view.column("row")).tolist())
    assert len(inside) == starts[number + 1] - starts[number]
    for place in rng.integers(0, len(whole), 25).tolist():
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        victim.write_bytes(data)
        seen: set[int] = set()
        with pytest.raises(CorruptDataError, match="part-00003") as caught:
            collect_rows(open_loader(copy, threads=threads, **OPTIONS), seen)
        assert not seen & inside
        assert caught.value.context["shard"] == number


def test_time_order_delivers_what_comes_before_the_damage(copy: Path) -> None:
    victim = shards(copy)[-1]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    # The order by time reads all times; a split keeps the damaged day out of it.
    split = TimeSplit(train=(None, "2013-10-03"), test=("2013-10-03", None))
    assert len(list(open_loader(copy, split=split, **OPTIONS))) > 0
    with pytest.raises(CorruptDataError):
        list(open_loader(copy, split=split, subset="test", **OPTIONS))


def test_verification_can_be_had_at_open_or_left_out(copy: Path) -> None:
    victim = shards(copy)[0]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(CorruptDataError):
        open_loader(copy, verify="open", **OPTIONS)
    loader = open_loader(copy, verify="off", **OPTIONS)
    assert loader.io_report()["verify"] == "off"
    assert len(list(loader)) == len(loader)


def test_a_damaged_manifest_is_refused(copy: Path) -> None:
    manifest = copy / "MANIFEST.json"
    manifest.write_text(manifest.read_text().replace('"rows":', '"rows": 1', 1))
    with pytest.raises(FeatureStoreError):
        open_loader(copy, **OPTIONS)


def test_an_error_in_a_thread_ends_the_pass_at_its_step_with_its_traceback(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = open_loader(dataset, threads=1, **OPTIONS)
    gather = loader.tier.gather  # type: ignore[attr-defined] # the CPU tier's
    batch, calls = gather.batch, []

    def failing(rows: Any, real: Any = None) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise OSError(5, "Input/output error")
        return batch(rows, real)

    monkeypatch.setattr(gather, "batch", failing)
    with pytest.raises(StorageError, match="Input/output") as caught:
        list(loader)
    assert isinstance(caught.value.__cause__, OSError)
    assert loader.state_dict()["step"] == 4


def test_a_thread_that_dies_is_an_error_and_no_short_epoch(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = open_loader(dataset, threads=1, **OPTIONS)

    def dying(*_: Any) -> Any:
        raise SystemExit(3)

    monkeypatch.setattr(loader.tier.gather, "batch", dying)  # type: ignore[attr-defined] # the CPU tier's
    with pytest.raises(SystemExit):
        list(loader)
