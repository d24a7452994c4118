"""Faults as observers of the storage room: die, fail or lose power at a numbered step."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featurestore.storage.files import observed


class Died(BaseException):
    """The process is gone: every effect after it raises this again, so no clean-up can do anything."""


@dataclass
class Steps:
    """Counts effects, and at one of them does what it is told.

    Attributes:
        at: The step at which to act, from 1; 0 only counts.
        error: Raised at the step; `Died` keeps being raised from then on.
    """

    at: int = 0
    error: BaseException | None = None
    count: int = 0
    seen: list[str] = field(default_factory=list)

    def __call__(self, operation: str, path: str) -> None:
        """Count one effect."""
        self.count += 1
        self.seen.append(f"{operation} {Path(path).name}")
        if self.error is None or not self.at:
            return
        if self.count == self.at or (self.count > self.at and isinstance(self.error, Died)):
            raise self.error


@dataclass
class PowerLoss:
    """Knows which bytes and names would survive a power loss at any moment.

    Attributes:
        loose: Files whose bytes were not forced to the disk.
        names: Names whose folder was not forced to the disk, and what undoes them: the path that a rename
            came from, the bytes that a replacement overwrote, or nothing.
    """

    rng: np.random.Generator
    at: int
    count: int = 0
    dead: bool = False
    loose: set[Path] = field(default_factory=set)
    names: dict[Path, bytes | None] = field(default_factory=dict)

    def __call__(self, operation: str, path: str) -> None:
        """Hear of one effect before it happens.

        Raises:
            Died: from the moment of the power loss on.
        """
        self.count += 1
        if self.dead or self.count == self.at:
            self.dead = True
            raise Died
        target = Path(path)
        if operation in {"write", "spill"}:
            self.loose.add(target)
            self.names[target] = None
        elif operation == "fsync":
            self.loose.discard(target)
        elif operation == "fsync_folder":
            self.names = {p: old for p, old in self.names.items() if p.parent != target}
        elif operation == "replace":
            self.names[target] = target.read_bytes() if target.exists() else None
        elif operation == "link":
            self.names[target] = None

    def strike(self) -> None:
        """Do to the disk what the power loss does: loose files are dropped, zeroed or torn, names undone."""
        for path in self.loose:
            if path.is_file():
                self._spoil(path)
        for path, old in self.names.items():
            if self.rng.random() < 0.5:
                continue
            if old is not None:
                path.write_bytes(old)
            elif path.is_file():
                path.unlink()

    def _spoil(self, path: Path) -> None:
        data = path.read_bytes()
        choice = self.rng.integers(3)
        if choice == 0:
            path.unlink()
        elif choice == 1:
            path.write_bytes(bytes(len(data)))
        else:
            path.write_bytes(data[: int(self.rng.integers(len(data) + 1))])


@contextmanager
def dying_at(step: int) -> Iterator[Steps]:
    """Let the process die at a numbered effect of the block; says which effects there were."""
    steps = Steps(step, Died() if step else None)
    with observed(steps):
        try:
            yield steps
        except Died:
            return


def flipped(path: Path, rng: np.random.Generator) -> bytes:
    """Flip one random bit of a file; returns the bytes to put back."""
    data = path.read_bytes()
    spoiled = bytearray(data)
    spoiled[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    path.unlink()
    path.write_bytes(spoiled)
    return data


def copied(root: Path, target: Path) -> Path:
    """Copy a store, hard links included, so that each fault starts from the same state."""
    shutil.copytree(root, target)
    return target
