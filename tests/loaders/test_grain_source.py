"""The random-access source, as Grain and map-style code use it."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from featurestore.errors import DefinitionError
from featurestore.loaders import open_loader


def test_sample_i_is_row_i_of_the_time_order(dataset: Path) -> None:
    loader = open_loader(dataset, batch_size=8, columns=["row", "s"], labels=[], shuffle=False)
    source = loader.grain_source()
    assert len(source) == 3000
    assert [int(source[i]["x"][0]) for i in (0, 17, 2999, -1)] == [0, 17, 2999, 2999]
    assert [int(s["x"][0]) for s in source.__getitems__([5, 3])] == [5, 3]
    with pytest.raises(IndexError):
        source[3000]
    with pytest.raises(DefinitionError):
        source.__getitems__([3000])


def test_it_pickles_is_safe_for_threads_and_its_text_holds_the_fingerprint(dataset: Path) -> None:
    loader = open_loader(dataset, batch_size=8, columns=["row"], labels=[])
    source = pickle.loads(pickle.dumps(loader.grain_source()))
    assert loader.fingerprint in repr(source)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: int(source[i]["x"][0]), range(400)))
    assert found == [int(s["x"][0]) for s in source.__getitems__(range(400))]


def test_grain_restores_a_checkpoint_over_it(dataset: Path) -> None:
    grain = pytest.importorskip("grain.python", reason="grain is not installed")
    source = open_loader(dataset, batch_size=8, columns=["row"], labels=[]).grain_source()
    data = grain.MapDataset.source(source).shuffle(seed=1).to_iter_dataset()
    passing = iter(data)
    for _ in range(10):
        next(passing)
    state = passing.get_state()
    expected = [int(next(passing)["x"][0]) for _ in range(20)]
    again = iter(data)
    again.set_state(state)
    assert [int(next(again)["x"][0]) for _ in range(20)] == expected
    assert np.unique(expected).size == 20
