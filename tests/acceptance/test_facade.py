"""One random store per seed: history, stored view, dataset, increment and online answer, against one loop."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.acceptance.plain import NEVER, Row, aggregate, choose

import featurestore as fs

HOUR = 3_600_000_000_000
BASE = 1_700_000_000_000_000_000
UTC = pa.timestamp("ns", "UTC")
SCHEMA = pa.schema(
    [("a", pa.string()), ("b", pa.int32()), ("event_timestamp", UTC), ("created", UTC), ("x", pa.int64())]
)
SPINE = pa.schema([("id", pa.int64()), ("a", pa.string()), ("b", pa.int32()), ("event_timestamp", UTC)])
FUNCTIONS = ["count", "sum", "mean", "min", "max", "var", "first", "last", "n_distinct", "last_n(2)"]


@dataclass
class World:
    """Random rows and a random view over them, and what its features must be."""

    rng: random.Random
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = self.rng
        self.created, self.delay = rng.random() < 0.6, rng.choice([0, 0, 7 * HOUR])
        self.ttl, self.nulls = rng.choice([None, HOUR, 9 * HOUR]), rng.choice(["keep", "last_known"])
        self.windows = [
            (f, rng.choice([HOUR, 26 * HOUR]), rng.choice([0, HOUR])) for f in rng.sample(FUNCTIONS, 3)
        ]

    def more(self, count: int) -> pa.Table:
        rng, new = self.rng, []
        for _ in range(count):
            event = BASE + rng.randrange(200) * HOUR // 2
            late = rng.choice([0, 0, HOUR, 30 * HOUR])
            key = {"a": rng.choice(["A", "B", "é", "", None]), "b": rng.choice([1, 12, 12, None])}
            known = None if rng.random() < 0.05 else event + late
            new.append({**key, "event_timestamp": event, "created": known, "x": rng.choice([None, 1, 2, -7])})
        self.rows += new
        return pa.Table.from_pylist(new, schema=SCHEMA)

    def view(self, source: fs.Source, entity: fs.Entity) -> fs.FeatureView:
        aggregations = [
            fs.Aggregation("x", f, w, name=f"w{i}", tile=tile or None)
            for i, (f, w, tile) in enumerate(self.windows)
        ]
        return fs.FeatureView(
            "v",
            source=source,
            entities=[entity],
            features={"x": "x", "twice": "x * 2"},
            aggregations=aggregations,
            ttl=self.ttl,
            nulls=self.nulls,
        )

    def expected(self, spine: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows = [Row((r["a"], r["b"]), r["event_timestamp"], self._known(r), r["x"]) for r in self.rows]
        usable = [r for r in rows if r.value is not None] if self.nulls == "last_known" else rows
        out = []
        for reader in spine:
            key, at = (reader["a"], reader["b"]), reader["event_timestamp"]
            place = choose(key, at, usable, tolerance=self.ttl)
            x = None if place is None else usable[place].value
            cells = {"x": x, "twice": None if x is None else 2 * x}
            for i, (f, window, tile) in enumerate(self.windows):
                name = f.partition("(")[0]
                cells[f"w{i}"] = aggregate(key, at, rows, name, window=window, tile=tile, k=2)
            out.append(cells)
        return out

    def _known(self, row: dict[str, Any]) -> int | None:
        if not self.created:
            return row["event_timestamp"] + self.delay if self.delay else None
        return NEVER if row["created"] is None else row["created"] + self.delay


def check(table: pa.Table, expected: list[dict[str, Any]], what: str) -> None:
    columns = list(expected[0])
    assert table.select(columns).to_pylist() == expected, what


@pytest.mark.parametrize("seed", range(8))
def test_every_path_gives_the_value_of_the_rules(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 -- a test's dice
    world = World(rng)
    entity = fs.Entity("ent", join_keys=["a", "b"])
    (tmp_path / "events").mkdir()
    pq.write_table(world.more(90), tmp_path / "events" / "a.parquet", row_group_size=13)
    spine = [
        {
            "id": i,
            "a": rng.choice(["A", "B", "é", "Z", None]),
            "b": rng.choice([1, 12]),
            "event_timestamp": BASE + rng.randrange(-5, 260) * HOUR // 2 + rng.choice([0, 0, 1, -1]),
        }
        for i in range(40)
    ]
    spine += [{**reader, "id": 40 + i} for i, reader in enumerate(spine[:3])]
    readers = pa.Table.from_pylist(spine, schema=SPINE)
    pq.write_table(readers, tmp_path / "spine.parquet")
    created = "created" if world.created else None
    delay = world.delay or None
    source = fs.Source(
        "events", path="events", created_timestamp_column=created, availability_delay=delay, entities=[entity]
    )
    view = world.view(source, entity)
    examples = fs.Source("spine", path="spine.parquet", entities=[entity])
    with fs.FeatureStore(tmp_path) as store:
        store.apply([view, fs.TrainingSet("examples", spine=examples, features=[view])])
        before = world.expected(spine)
        history = store.get_historical_features(readers, ["v"]).to_arrow()
        assert history.select(SPINE.names).equals(readers)
        check(history, before, "from the source")
        store.materialize("v")
        store.materialize("examples")
        check(store.get_historical_features(readers, ["v"]).to_arrow(), before, "from the stored view")
        first = store.dataset("examples")
        check(first.to_arrow().sort_by("id"), before, "dataset")
        first.verify()
        assert first.recreate().fingerprint == first.fingerprint

        pq.write_table(world.more(30), tmp_path / "events" / "b.parquet")
        after = world.expected(spine)
        store.materialize_incremental("v")
        store.materialize_incremental("examples")
        check(store.get_historical_features(readers, ["v"]).to_arrow(), after, "after an increment")
        for name in ("examples", "v"):
            assert store.dataset(name).recreate().fingerprint == store.dataset(name).fingerprint
        check(store.dataset("examples").to_arrow().sort_by("id"), after, "incremental dataset")
        check(store.dataset("examples", first.version).to_arrow().sort_by("id"), before, "the old version")

        now = BASE + 100 * HOUR + rng.choice([0, 1, HOUR, 30 * HOUR])
        keys = [{"a": a, "b": b} for a in ("A", "B", "Z") for b in (1, 12)]
        answer = store.get_online_features(["v"], keys, now=now).to_arrow()
        check(answer, world.expected([{**key, "event_timestamp": now} for key in keys]), "online")
