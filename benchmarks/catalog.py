"""The catalog at 100, 1,000 and 10,000 views: first apply, load, plan of a one-line change, get.

    python -m benchmarks.catalog [--views 100 1000 10000 --repeats 5]

Every view reads one of a hundred sources by three expressions; a tenth read another view; every ten views
share a service. Each figure is checked before it is reported: what was loaded is what was applied.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from featurestore import Entity, FeatureService, FeatureView, Source
from featurestore.catalog.catalog import Catalog, open_catalog
from featurestore.catalog.definition import Definition
from featurestore.catalog.expressions import evaluate
from featurestore.catalog.feature_view import Feature

COLUMNS = pa.schema(
    [
        ("symbol", pa.string()),
        ("ts", pa.timestamp("ns", "UTC")),
        *((f"c{i}", pa.float64()) for i in range(20)),
    ]
)
SOURCES = 100


def definitions(views: int, changed: str = "c0 + c1") -> list[Definition]:
    """Return the definitions; `changed` is an expression of one view that only a service reads."""
    symbol = Entity("symbol")
    sources = [Source(f"s{i}", path=f"s{i}", timestamp_field="ts", entities=[symbol]) for i in range(SOURCES)]
    made: list[FeatureView] = []
    for n in range(views):
        over = made[n // 2] if n % 10 == 5 else sources[n % SOURCES]
        a, b, c = (n % 20, (n + 7) % 20, (n + 13) % 20)
        expressions = [f"(c{a} - c{b}) / {n + 2}", f"abs(c{c}) * {n}", f"coalesce(c{a}, {n}, c{b})"]
        if isinstance(over, FeatureView):
            expressions = [f"f0 * {n}", "f1 - f2", "f2"]
        elif n == views - 2:
            expressions[0] = changed
        features = [Feature(f"f{i}", expression) for i, expression in enumerate(expressions)]
        made.append(FeatureView(f"view_{n}", source=over, entities=[symbol], features=features, ttl="1h"))
    services = [FeatureService(f"model_{i}", features=made[i : i + 10]) for i in range(0, views, 10)]
    return [symbol, *sources, *made, *services]


def opened(folder: Path) -> Catalog:
    """Open the catalog in a folder; every source has the same columns."""
    return open_catalog(folder, read_schema=lambda _: COLUMNS)


def timed(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Return the median seconds of some runs, and the last result."""
    seconds, result = [], None
    for _ in range(repeats):
        begin = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds), result


def figures(views: int, repeats: int) -> dict[str, float]:
    """Measure one size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        objects, edited = definitions(views), definitions(views, "c0 + c1 * 2")
        first, _ = timed(lambda: opened(folder).apply(objects), 1)
        load, snapshot = timed(lambda: opened(folder).snapshot(), repeats)
        assert len(snapshot.live("feature_view")) == views
        catalog = opened(folder)
        same, plan = timed(lambda: catalog.plan(objects), repeats)
        assert plan.is_empty
        change, plan = timed(lambda: catalog.plan(edited), repeats)
        assert [c.name for c in plan.changes] == [f"view_{views - 2}", f"model_{(views - 2) // 10 * 10}"]
        names = [f"view_{n}" for n in range(0, views, max(1, views // 100))]
        for each in names:
            assert catalog.get(each).name == each
        get, _ = timed(lambda: [catalog.get(each) for each in names], repeats * 10)
        second, _ = timed(lambda: catalog.apply(edited), 1)
        assert catalog.head == 2
        size = sum(p.stat().st_size for p in (folder / "catalog").iterdir())
    return {
        "views": views,
        "first_apply_s": first,
        "load_s": load,
        "plan_same_s": same,
        "plan_one_change_s": change,
        "apply_one_change_s": second,
        "get_us": get / len(names) * 1e6,
        "bytes": size,
    }


def evaluation(repeats: int) -> dict[str, float]:
    """Measure how long one row and many take through three expressions."""
    expressions = {"mid": "(bid + ask) / 2", "wide": "ask - bid > 0.01", "ratio": "bid / nullif(ask, 0)"}
    out = {}
    for rows in (1, 100, 100_000):
        table = pa.table({"bid": pa.array([1.0] * rows), "ask": pa.array([2.0] * rows)})
        assert evaluate(expressions, table)["mid"].to_pylist() == [1.5] * rows
        seconds, _ = timed(lambda table=table: evaluate(expressions, table), repeats * 20)  # type: ignore[misc]
        out[f"evaluate_{rows}_rows_us"] = seconds * 1e6
    return out


def main() -> None:
    """Print the figures, and write them with the machine's description."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--views", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    told = {
        "benchmark": "catalog",
        "machine": {
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "system": platform.platform(),
        },
        "sizes": [figures(views, arguments.repeats) for views in arguments.views],
        "evaluate": evaluation(arguments.repeats),
    }
    print(json.dumps(told, indent=2))
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "catalog.json").write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
