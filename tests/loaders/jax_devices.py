"""JAX with eight forced host devices: run as a script; prints one JSON line."""

import json
import os
import sys
import warnings
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np

from featurestore.errors import DefinitionError
from featurestore.loaders import open_loader
from featurestore.loaders.jax_loader import open_jax_loader


def main() -> None:
    """Compare sharded batches with NumPy ones, and step through jit."""
    folder = sys.argv[1]
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))  # type: ignore[no-untyped-call] # jax's own
    options: dict[str, Any] = {
        "batch_size": 128,
        "columns": ["row", "a", "s", "e"],
        "dtype": "float32",
        "drop_last": "pad",
    }
    out: dict[str, object] = {"devices": len(jax.devices())}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loader = open_jax_loader(folder, sharding=sharding, time=True, **options)
    out["warned"] = [str(w.message) for w in caught]
    held = list(zip(open_loader(folder, time=True, **options), loader, strict=True))
    same, placed = True, True
    for one, other in held:
        same &= one.x.tobytes() == np.asarray(other.x).tobytes()
        same &= np.array_equal(one.y.astype(np.float32), np.asarray(other.y), equal_nan=True)
        same &= np.array_equal(one.codes["s"], np.asarray(other.codes["s"]))
        same &= one.extras["e"].tobytes() == np.asarray(other.extras["e"]).tobytes()
        words = np.asarray(other.time).astype(np.uint64)
        same &= np.array_equal(one.time, (words[:, 0] << np.uint64(32) | words[:, 1]).astype(np.int64))
        placed &= len(other.x.devices()) == 8 and other.x.sharding == sharding
    step = jax.jit(lambda batch: (batch.x.sum(axis=1) * batch.valid).sum())
    out |= {"same": bool(same), "placed": placed, "steps": len(held), "sum": float(step(held[0][1]))}
    try:
        open_jax_loader(folder, sharding=sharding, **{**options, "batch_size": 100})
    except DefinitionError as error:
        out["refused"] = str(error)
    print(json.dumps(out))  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
