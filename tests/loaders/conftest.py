"""Fixtures of the loaders' tests."""

from pathlib import Path

import pyarrow as pa
import pytest
from tests.loaders.datasets import make_dataset


@pytest.fixture(scope="session")
def dataset_and_table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table]:
    """A version of 3,000 rows over five days and two buckets, with the table it was written from."""
    return make_dataset(tmp_path_factory.mktemp("loaders") / "v00000001")


@pytest.fixture(scope="session")
def dataset(dataset_and_table: tuple[Path, pa.Table]) -> Path:
    """The version's folder."""
    return dataset_and_table[0]


@pytest.fixture(scope="session")
def table(dataset_and_table: tuple[Path, pa.Table]) -> pa.Table:
    """The rows it was written from, in time order."""
    return dataset_and_table[1]
