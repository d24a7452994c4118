"""Run benchmarks: `python -m benchmarks [name …]`.

Each module of this folder with a `run() -> list[Workload]` is a benchmark. It asserts its answers before it
reports a time. Results go to benchmarks/results/<name>.json with the machine's description.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.measure import Workload
from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).parent
HELPERS = {"__main__", "__init__", "machine", "measure"}


def main(names: list[str]) -> int:
    """Run the named benchmarks, or all of them."""
    there = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in HELPERS)
    unknown = sorted(set(names) - set(there))
    if unknown:
        print(f"no benchmark named {', '.join(unknown)}; there is: {', '.join(there)}", file=sys.stderr)
        return 2
    console = Console()
    for name in names or there:
        module = importlib.import_module(f"benchmarks.{name}")
        if hasattr(module, "run"):
            workloads: list[Workload] = module.run()
            console.print(_table(name, workloads))
            report: Any = {"workloads": [workload.to_dict() for workload in workloads]}
        else:
            report = module.main([])
        _write(name, report)
    return 0


def _table(name: str, workloads: list[Workload]) -> Table:
    table = Table(title=name)
    for heading in ("workload", "engine", "median", "rows/s", "ratio", "goal"):
        table.add_column(heading, justify="left" if heading in {"workload", "engine"} else "right")
    for workload in workloads:
        for engine, seconds in workload.medians.items():
            ratio, goal = workload.ratios.get(engine), workload.goals.get(engine)
            table.add_row(
                workload.name,
                engine,
                f"{seconds * 1e3:,.1f} ms",
                f"{workload.rows / seconds:,.0f}",
                "" if ratio is None else f"{ratio:.1f}x",
                "" if goal is None else f"{'✓' if ratio and ratio >= goal else '✗'} {goal:g}x",
            )
    return table


def _write(name: str, report: Any) -> None:
    folder = FOLDER / "results"
    folder.mkdir(exist_ok=True)
    text = json.dumps({"benchmark": name, "machine": describe(), **report}, indent=1, sort_keys=True)
    (folder / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
