"""One epoch of a small PyTorch model: it predicts how far the mid price will move, and how sure it is.

The only file of the demo that imports torch.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from featurestore.dataset import Dataset

LABEL: Final = "mid_return_60s"
BATCH_ROWS: Final = 512
SEED: Final = 1
BASIS_POINTS: Final = 1e4


@dataclass(frozen=True, slots=True)
class Training:
    """What one epoch did.

    Attributes:
        losses: Training loss of every step, nats per row.
        valid_before: Loss on later rows, before the first step.
        valid_after: The same after the last step.
        rows: Training rows seen.
        seconds: Wall time of the epoch, loading included.
    """

    losses: tuple[float, ...]
    valid_before: float
    valid_after: float
    rows: int
    seconds: float


class Forecaster(nn.Module):
    """A location and a scale for the next minute's return, in basis points."""

    def __init__(self, features: int, hidden: int = 64) -> None:
        super().__init__()
        self.scale = nn.BatchNorm1d(features, affine=False)
        self.body = nn.Sequential(
            nn.Linear(features, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `(N, 2)`: location and logarithm of the scale."""
        # Sizes and turnovers span six orders of magnitude: compress them before scaling.
        compressed = torch.sign(x) * torch.log1p(torch.abs(x))
        out: torch.Tensor = self.body(self.scale(compressed))
        return out


def laplace_loss(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of `y` under a Laplace distribution, nats."""
    log_scale = out[:, 1].clamp(-4, 6)
    loss: torch.Tensor = ((y - out[:, 0]).abs() * torch.exp(-log_scale) + log_scale + float(np.log(2))).mean()
    return loss


def train_one_epoch(dataset: "Dataset", *, until: str) -> Training:
    """Train on rows before `until` and evaluate on those after it.

    Args:
        until: The split, as an instant. The loader drops the training rows whose labels reach past it.
    """
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    split = {"train": (None, until), "valid": (until, None)}
    common = {"batch_size": BATCH_ROWS, "label": LABEL, "split": split, "nulls": "fill", "dtype": "float32"}
    train = dataset.torch(subset="train", shuffle=True, seed=SEED, drop_last=True, **common)
    valid = dataset.torch(subset="valid", shuffle=False, drop_last=False, **common)
    model = Forecaster(features=next(iter(valid)).x.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = evaluate(model, valid)
    began = time.perf_counter()
    losses, rows = [], 0
    model.train()
    for batch in train:
        x, y = usable(batch)
        if len(y) < 2:
            continue
        loss = laplace_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        rows += len(y)
    seconds = time.perf_counter() - began
    return Training(tuple(losses), before, evaluate(model, valid), rows, seconds)


def evaluate(model: nn.Module, loader: object) -> float:
    """Mean loss over all rows of a loader that have a label."""
    model.eval()
    total, rows = 0.0, 0
    with torch.no_grad():
        for batch in loader:
            x, y = usable(batch)
            if len(y):
                total += laplace_loss(model(x), y).item() * len(y)
                rows += len(y)
    return total / max(rows, 1)


def usable(batch: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and basis points of the rows that have a label: none has at the end of a day."""
    y = batch.y.reshape(-1).to(torch.float32) * BASIS_POINTS
    has = torch.isfinite(y)
    return batch.x[has], y[has]
