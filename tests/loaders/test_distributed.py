"""Ranks in processes of their own, over gloo: exactly once, equal steps, any world size."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.environment import SOAK

pytest.importorskip("torch")

SCRIPT = Path(__file__).parent / "gloo_ranks.py"
WORLDS = [1, 2, 4, *([8] if SOAK else [])]
PLAN: list[list[Any]] = [
    *([f"epoch-{world}", world, "epoch", ""] for world in WORLDS),
    ["resumed", 2, "resume", "epoch-4"],
    ["disagree", 2, "disagree", ""],
]


@pytest.fixture(scope="module")
def runs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What every rank of every scenario saw."""
    scratch = tmp_path_factory.mktemp("ranks")
    environment = {k: v for k, v in os.environ.items() if k not in {"RANK", "WORLD_SIZE"}}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(dataset), json.dumps(PLAN), str(scratch)],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {
        name: [json.loads((scratch / name / f"rank-{r}.json").read_text()) for r in range(world)]
        for name, world, _, _ in PLAN
    }


def steps_of(ranks: list[dict[str, Any]]) -> list[list[int]]:
    assert len({len(rank["steps"]) for rank in ranks}) == 1
    assert all(rank["equal_states"] for rank in ranks)
    return [
        sorted(row for part in step for row in part)
        for step in zip(*(r["steps"] for r in ranks), strict=True)
    ]


def test_every_world_size_delivers_each_row_once_in_the_same_global_batches(
    runs: dict[str, list[dict[str, Any]]],
) -> None:
    alone = steps_of(runs["epoch-1"])
    assert sorted(row for step in alone for row in step) == list(range(3000))
    assert all(steps_of(runs[f"epoch-{world}"]) == alone for world in WORLDS)


def test_a_checkpoint_of_four_ranks_goes_on_with_two(runs: dict[str, list[dict[str, Any]]]) -> None:
    assert steps_of(runs["resumed"]) == steps_of(runs["epoch-1"])[7:]


def test_ranks_that_would_load_different_batches_refuse_to_start(
    runs: dict[str, list[dict[str, Any]]],
) -> None:
    assert all("do not load the same batches" in rank["error"] for rank in runs["disagree"])
