"""A small store in a folder: seeded events over a few days, and everything a training set can hold."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import featurestore as fs
from featurestore.catalog.catalog import open_catalog
from featurestore.core.clock import ManualClock
from featurestore.core.config import StoreConfig
from featurestore.core.time import DAY_NS
from featurestore.materialize.context import Context, source_spec
from featurestore.materialize.job import compile_job
from featurestore.materialize.partition import canonical_order
from featurestore.materialize.run import shape_of
from featurestore.resolve.training import resolve_features
from featurestore.storage.sources import open_source

HOUR_NS = DAY_NS // 24
START_NS = 16_000 * DAY_NS
UTC = pa.timestamp("ns", "UTC")


@dataclass(frozen=True)
class House:
    """A store and its definitions."""

    root: Path
    context: Context

    def with_config(self, config: StoreConfig) -> "House":
        """Return the same store under other settings."""
        return replace(self, context=replace(self.context, config=config))


def events(seed: int, rows: int, *, first_hour: int, hours: int, keys: int = 5) -> pa.Table:
    """Draw events with ties, null keys, null values and created timestamps that lag behind."""
    rng = np.random.default_rng(seed)
    # A coarse grid makes equal timestamps common.
    event = START_NS + (first_hour * 60 + rng.integers(0, hours * 60, rows)) * (HOUR_NS // 60)
    created = event + rng.integers(0, 90, rows) * (HOUR_NS // 60)
    key = [None if rng.random() < 0.03 else f"k{k}" for k in rng.integers(0, keys, rows)]
    return pa.table(
        {
            "key": key,
            "ts": pa.array(event).view(UTC),
            "created": pa.array(created).view(UTC),
            "value": pa.array(rng.normal(size=rows).round(3), mask=rng.random(rows) < 0.2),
            "size": pa.array(rng.integers(0, 50, rows), mask=rng.random(rows) < 0.1),
            "site": [None if rng.random() < 0.03 else f"s{s}" for s in rng.integers(0, 3, rows)],
        }
    )


def spine_rows(seed: int, rows: int, *, first_hour: int, hours: int, keys: int = 5) -> pa.Table:
    """Draw spine rows with ties and null keys."""
    table = events(seed + 1000, rows, first_hour=first_hour, hours=hours, keys=keys)
    given = table.select(["key", "ts"]).append_column("id", pa.array(np.arange(rows) + seed * 10_000))
    return given.append_column("site", table.column("site"))


def write(path: Path, table: pa.Table) -> None:
    """Write one source file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=50)


def build(
    root: Path, *, config: StoreConfig | None = None, unbounded: bool = True, crossed: bool = False
) -> House:
    """Define a training set over `root/spine` and `root/events`.

    It holds last known values, an unbounded view, windows and a label.

    Args:
        unbounded: Also a view that looks back for ever.
        crossed: Also views and a label that find the same rows by other keys than the set's.
    """
    key = fs.Entity("key")
    spine = fs.Source("spine", path="spine", timestamp_field="ts", entities=[key])
    source = fs.Source(
        "events", path="events", timestamp_field="ts", created_timestamp_column="created", entities=[key]
    )
    near = fs.FeatureView(
        "near",
        source=source,
        entities=[key],
        features={"value": "value", "double": "value * 2"},
        ttl="6h",
        nulls="last_known",
    )
    recent = fs.FeatureView(
        "recent",
        source=source,
        entities=[key],
        aggregations=[
            fs.Aggregation("*", "count", "3h", name="n"),
            fs.Aggregation("value", "sum", "30h", name="total"),
        ],
    )
    ever = fs.FeatureView("ever", source=source, entities=[key], features={"last_size": "size"})
    label = fs.Label("later", source=source, expression="sum(size)", horizon="5h")
    views = [near, recent, *([ever] if unbounded else [])]
    labels = [label]
    if crossed:
        more, there = _crossed(source, key, "9d" if unbounded else "20h")
        views += more
        labels.append(fs.Label("here_later", source=there, expression="sum(here)", horizon="7h"))
    wanted = fs.TrainingSet("set", spine=spine, features=views, labels=labels, entities=[key])
    catalog = open_catalog(
        root, read_schema=lambda s: open_source(source_spec(s), str(root)).schema, clock=ManualClock(1)
    )
    catalog.apply([wanted])
    clock = ManualClock(START_NS)
    context = Context(str(root), catalog.at(catalog.head), clock, config or StoreConfig(buckets=3, threads=2))
    return House(root, context)


def _crossed(source: fs.Source, key: fs.Entity, ttl: str) -> tuple[list[fs.FeatureView], fs.FeatureView]:
    """Define views by site, by both keys, by key above what was computed by site, and the view of a label."""
    site, both = fs.Entity("site"), fs.Entity("both", join_keys=["site", "key"])
    there = fs.FeatureView("there", source=source, entities=[site], features={"here": "size"}, ttl=ttl)
    crowd = fs.FeatureView(
        "crowd",
        source=source,
        entities=[site],
        features=["key"],
        aggregations=[fs.Aggregation("value", "sum", "9h", name="noise")],
        ttl="5h",
    )
    taste = fs.FeatureView(
        "taste",
        source=crowd,
        entities=[key],
        aggregations=[fs.Aggregation("noise", "max", "20h", name="loudest")],
    )
    visits = fs.FeatureView(
        "visits",
        source=source,
        entities=[both],
        aggregations=[fs.Aggregation("*", "count", "70h", name="visits")],
    )
    return [there, taste, visits], there


def seed_store(
    root: Path,
    *,
    days: int = 3,
    config: StoreConfig | None = None,
    unbounded: bool = True,
    crossed: bool = False,
) -> House:
    """Write a few days of files and define the training set."""
    for day in range(days):
        write(root / "spine" / f"d{day}.parquet", spine_rows(day, 60, first_hour=24 * day, hours=24))
        write(root / "events" / f"d{day}.parquet", events(day, 150, first_hour=24 * day, hours=24))
    return build(root, config=config, unbounded=unbounded, crossed=crossed)


def whole_join(house: House, name: str = "set") -> pa.Table:
    """Return the training set as one join over all rows at once, in canonical order: the oracle."""
    job = compile_job(house.context, name, buckets=1, range_ns=(None, None))
    assert job.join is not None
    tables = {n: open_source(s, str(house.root)) for n, s in job.sources().items()}
    rows = {n: tables[n].read(list(need.columns)) for n, need in job.join.needs().items()}
    spine = tables[job.spine.source.name].read()
    table = resolve_features(job.join, spine, rows).table
    return canonical_order(table, shape_of(job, house.root, house.root)).table


def as_bag(table: pa.Table, names: Sequence[str] | None = None) -> list[str]:
    """Return the rows as sorted text: equal bags have equal lists."""
    rows = table.select(list(names) if names else table.column_names).to_pylist()
    return sorted(repr(sorted(r.items(), key=lambda i: i[0])) for r in rows)
