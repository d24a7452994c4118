"""One epoch of a small PyTorch model: it predicts how far the mid price will move, and how sure it is.

The only file of the demo that imports torch. The demo runs it as a process of its own:
`python -m featurestore.demo.torch_training ROOT NAME UNTIL` prints the result as JSON.
"""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import nn

from featurestore.demo.memory import peak_bytes
from featurestore.demo.training import LABEL, Training
from featurestore.loaders import Batch, TimeSplit
from featurestore.store import FeatureStore

if TYPE_CHECKING:
    from featurestore.dataset import Dataset

BATCH_ROWS: Final = 512
SEED: Final = 1
BASIS_POINTS: Final = 1e4


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
    """Train on rows before `until` and evaluate on those from then on.

    Args:
        until: The split, as an instant. The loader drops rows without a label, and the training rows whose
            labels or windows reach over the split.
    """
    torch.manual_seed(SEED)
    common = {
        "batch_size": min(BATCH_ROWS, max(32, dataset.num_rows // 150)),
        "label": LABEL,
        "split": TimeSplit(train=(None, until), valid=(until, None)),
        "nulls": "mask",
        "dtype": "float32",
        "label_dtype": "float32",
    }
    train = dataset.torch(subset="train", shuffle=True, seed=SEED, **common)
    valid = dataset.torch(subset="valid", shuffle=False, drop_last=False, **common)
    model = Forecaster(features=2 * next(iter(valid)).x.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = evaluate(model, valid)
    began = time.perf_counter()
    losses, rows = [], 0
    model.train()
    for batch in train:
        loss = laplace_loss(model(inputs(batch)), batch.y * BASIS_POINTS)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        losses.append(loss.item())
        rows += batch.rows
    seconds = time.perf_counter() - began
    after = evaluate(model, valid)
    return Training(tuple(losses), before, after, rows, seconds, peak_bytes())


def evaluate(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Mean loss over all rows of a loader."""
    model.eval()
    total, rows = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            total += laplace_loss(model(inputs(batch)), batch.y * BASIS_POINTS).item() * batch.rows
            rows += batch.rows
    return total / max(rows, 1)


def inputs(batch: Batch) -> torch.Tensor:
    """Features, 0 where null, beside the mask that says which are null; `(N, 2 F)`."""
    return torch.cat([batch.x, batch.mask.to(torch.float32)], dim=1)


def main(arguments: Sequence[str]) -> None:
    """Train on the newest version of a dataset and print the result as JSON."""
    root, name, until = arguments
    result = train_one_epoch(FeatureStore(root).dataset(name), until=until)
    sys.stdout.write(json.dumps(asdict(result)))


if __name__ == "__main__":
    main(sys.argv[1:])
