"""What the kill test kills: a writer in a process of its own, forked from a server that is warm."""

from multiprocessing.connection import Connection
from pathlib import Path

from tests.materialize.house import build, spine_rows, write

from featurestore.core.config import StoreConfig
from featurestore.materialize.training_set import materialize, materialize_incremental
from featurestore.temporal.warm import warm_kernels

CONFIG = StoreConfig(buckets=2, threads=1)

# Kernels are loaded once, in the server.
warm_kernels()


def materialize_until_killed(root: Path, number: int, heard: Connection) -> None:
    """Write version after version; each is told to the parent once it is acknowledged."""
    house = build(root, config=CONFIG, crossed=True)
    run = materialize if number % 2 else materialize_incremental
    run(house.context, "set")
    heard.send("ready")
    for n in range(1000):
        # The source's own writer is not what is killed here: it renames.
        write(root / "arriving.parquet", spine_rows(1000 * number + n, 5, first_hour=n % 40, hours=5))
        (root / "arriving.parquet").replace(root / "spine" / f"n{n}.parquet")
        result = run(house.context, "set")
        heard.send((result.version, result.fingerprint))
