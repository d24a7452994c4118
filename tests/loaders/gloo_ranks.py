"""Ranks of a gloo group, forked from one process that has imported torch. Run as a script.

Arguments: dataset folder; JSON list of [name, world size, `epoch` | `resume` | `disagree`, name whose state
to take]; a scratch folder.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from featurestore.errors import LoaderStateError
from featurestore.loaders.gather import compiled
from featurestore.loaders.torch_loader import open_torch_loader

GLOBAL = 96
STOP = 7


def run_rank(folder: str, rank: int, world: int, scenario: str, scratch: Path) -> dict[str, Any]:
    """One rank's work; every step all ranks meet in an all-reduce, so unequal steps would hang."""
    dist.init_process_group("gloo", init_method=f"file://{scratch}/meet-{world}", rank=rank, world_size=world)
    seed = rank if scenario == "disagree" else 0
    loader = open_torch_loader(
        folder, global_batch_size=GLOBAL, columns=["row"], labels=[], drop_last="pad", seed=seed, threads=1
    )
    if scenario == "resume":
        loader.load_state_dict(json.loads((scratch / "state.json").read_text()))
    steps: list[list[int]] = []
    try:
        for batch in loader:
            real = batch.x[:, 0][batch.valid].long()
            total = real.sum()
            dist.all_reduce(total)
            steps.append([*real.tolist()])
            if scenario == "epoch" and len(steps) == STOP and rank == 0:
                (scratch / "state.json").write_text(json.dumps(loader.state_dict()))
    except LoaderStateError as error:
        return {"error": str(error)}
    states: list[Any] = [None] * world
    dist.all_gather_object(states, loader.state_dict())
    return {"steps": steps, "equal_states": all(s == states[0] for s in states)}


def main() -> None:
    """Run the scenarios one after another: fork the ranks, wait, and fail if one failed."""
    folder, plan, scratch = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    compiled()
    for name, world, scenario, state in plan:
        here = scratch / name
        here.mkdir()
        if state:
            (here / "state.json").write_text((scratch / state / "state.json").read_text())
        children = []
        for rank in range(world):
            child = os.fork()
            if child == 0:
                result = run_rank(folder, rank, world, scenario, here)
                (here / f"rank-{rank}.json").write_text(json.dumps(result))
                os._exit(0)
            children.append(child)
        if max(os.waitpid(child, 0)[1] for child in children):
            sys.exit(1)


if __name__ == "__main__":
    main()
