"""What the tests take from the environment: where the real ticks are, and whether the long counts are run."""

import os
from pathlib import Path

TICKS = Path(os.environ.get("FEATURESTORE_TICKS") or Path(__file__).parents[2] / "shared" / "data" / "ticks")
SOAK = os.environ.get("FEATURESTORE_SOAK") == "1"


def cases(gate: int, soak: int, variable: str = "") -> int:
    """How many cases to run: few in the gate, all of them in the soak, or what `variable` says.

    The tests of a module that calls it are marked `counted` (conftest.py), so that `make soak` finds them.
    """
    return int(os.environ.get(variable) or (soak if SOAK else gate))
