"""A training image needs numpy and pyarrow, and numba for speed; nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from featurestore.loaders import TimeSplit, open_loader

HEAVY = "xxhash fsspec duckdb polars deltalake torch jax cupy kvikio grpc lmdb typer rich pandas yaml psutil"

BLOCKED = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is not installed here")
sys.meta_path.insert(0, Refuse())
from featurestore.loaders import open_loader, TimeSplit
split = TimeSplit(train=0.5, test=0.5)
loader = open_loader({folder!r}, batch_size=100, dtype="float32", split=split, entity=True)
rows = sum(batch.rows for batch in loader)
print(rows, loader.io_report()["verify"])
"""


@pytest.mark.parametrize("without_numba", [False, True], ids=["with numba", "without numba"])
def test_a_loader_runs_where_nothing_else_is_installed(dataset: Path, without_numba: bool) -> None:
    blocked = {*HEAVY.split(), *(["numba", "llvmlite"] if without_numba else [])}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(blocked=blocked, folder=str(dataset))],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-1500:]
    here = open_loader(dataset, batch_size=100, dtype="float32", split=TimeSplit(train=0.5, test=0.5))
    assert int(done.stdout.split()[0]) == 100 * len(here)
    assert "xxhash is not installed" in done.stdout


def test_importing_loaders_imports_neither_numba_nor_any_framework() -> None:
    code = "import sys, featurestore.loaders; print([m for m in sys.argv[1:] if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code, "numba", *HEAVY.split()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "[]"
