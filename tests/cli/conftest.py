"""A store as `featurestore init` makes it, and a way to run commands in it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from featurestore.cli import main


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The output, read as JSON."""
        return json.loads(self.out)


Run = Callable[..., Answer]


@pytest.fixture(scope="session")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh store, made once."""
    folder = tmp_path_factory.mktemp("starter") / "shop"
    assert main(["init", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def stored(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store after apply and materialize; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("stored") / "shop"
    shutil.copytree(starter, folder)
    assert main(["apply", "--root", str(folder), "-m", "first"]) == 0
    assert main(["materialize", "payment_risk", "profile", "spending", "--root", str(folder)]) == 0
    return folder


@pytest.fixture
def shop(starter: Path, tmp_path: Path) -> Path:
    """A copy of the fresh store for one test."""
    return Path(shutil.copytree(starter, tmp_path / "shop"))


@pytest.fixture
def shop_stored(stored: Path, tmp_path: Path) -> Path:
    """A copy of the materialized store for one test."""
    return Path(shutil.copytree(stored, tmp_path / "shop"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command and return its status and its words."""

    def command(*arguments: str | Path) -> Answer:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return Answer(status, shown.out, shown.err)

    return command
