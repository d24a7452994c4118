"""What the demo asks of a training run, and how it starts one."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from featurestore.errors import FeatureStoreError

LABEL: Final = "mid_return_60s"
TRAINER: Final = "featurestore.demo.torch_training"


@dataclass(frozen=True, slots=True)
class Training:
    """What one epoch did.

    Attributes:
        losses: Training loss of every step, nats per row.
        valid_before: Loss on later rows, before the first step.
        valid_after: The same after the last step.
        rows: Training rows seen.
        seconds: Wall time of the epoch, loading included.
        peak_bytes: Peak resident memory of the training process.
    """

    losses: tuple[float, ...]
    valid_before: float
    valid_after: float
    rows: int
    seconds: float
    peak_bytes: int


def train_in_process(root: Path, name: str, *, until: str) -> Training:
    """Train on the newest version of a dataset in a process of its own.

    Raises:
        FeatureStoreError: the process failed; the message ends with what it said last.
    """
    command = [sys.executable, "-m", TRAINER, str(root), name, until]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 -- our own module
    if done.returncode:
        raise FeatureStoreError(
            "training failed: " + "".join(done.stderr.strip().splitlines()[-1:]),
            hint=f"run {' '.join(command)} to see all of it",
        )
    raw = json.loads(done.stdout)
    return Training(**{**raw, "losses": tuple(raw["losses"])})
