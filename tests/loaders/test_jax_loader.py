"""JAX: pytrees of arrays, global ones over forced host devices."""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

from featurestore.errors import DefinitionError, SchemaError  # noqa: E402 - jax may be absent
from featurestore.loaders import open_loader  # noqa: E402
from featurestore.loaders.jax_loader import narrowed, open_jax_loader  # noqa: E402

SCRIPT = Path(__file__).parent / "jax_devices.py"
OPTIONS: dict[str, Any] = {
    "batch_size": 100,
    "columns": ["row", "a"],
    "dtype": "float32",
    "label_dtype": "float32",
}


def test_eight_devices_hold_the_global_batch_bit_for_bit(dataset: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(dataset)], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    out = json.loads(done.stdout.strip().splitlines()[-1])
    assert out["devices"] == 8
    assert out["same"]
    assert out["placed"]
    assert out["steps"] == -(-2970 // 128)
    assert "uint32" in out["warned"][0]
    assert "100" in out["refused"]


def test_arrays_on_one_device_are_the_numpy_values_and_stay_while_kept(dataset: Path) -> None:
    """JAX may share the host buffer: it must not be used again while any array refers to it."""
    held = list(zip(open_loader(dataset, **OPTIONS), open_jax_loader(dataset, **OPTIONS), strict=True))
    for one, other in held:
        assert isinstance(other.x, jax.Array)
        assert one.x.tobytes() == np.asarray(other.x).tobytes()
        assert one.y.tobytes() == np.asarray(other.y).tobytes()


def test_nothing_is_warned_of_where_nothing_is_truncated(dataset: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_jax_loader(dataset, **OPTIONS)


def test_integers_that_do_not_fit_are_refused_not_truncated() -> None:
    assert narrowed(np.asarray([1, -1]), "n", is_time=False).dtype == np.int32
    with pytest.raises(SchemaError, match="beyond 32 bits"):
        narrowed(np.asarray([2**31]), "n", is_time=False)
    words = narrowed(np.asarray([-5, 2**40 + 3]), "t", is_time=True).astype(np.uint64)
    assert ((words[:, 0] << np.uint64(32)) | words[:, 1]).astype(np.int64).tolist() == [-5, 2**40 + 3]


@pytest.mark.parametrize("option", [{"sharding": 5}, {"device": "gpu"}], ids=str)
def test_only_a_sharding_says_where_arrays_go(dataset: Path, option: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError, match="sharding"):
        open_jax_loader(dataset, **OPTIONS, **option)


def test_a_batch_is_a_pytree_and_the_state_has_graines_names(dataset: Path) -> None:
    loader = open_jax_loader(dataset, **OPTIONS)
    passing = iter(loader)
    first = next(passing)
    doubled = jax.tree.map(lambda leaf: leaf * 2, first)
    assert np.array_equal(np.asarray(doubled.x), np.asarray(first.x) * 2)
    state = loader.get_state()
    expected = [np.asarray(b.x).tolist() for b in passing]
    other = open_jax_loader(dataset, **OPTIONS)
    other.set_state(state)
    assert [np.asarray(b.x).tolist() for b in other] == expected
