"""Retrieval answers like one join over the sources, from stored views where they hold the same rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from tests.environment import cases
from tests.materialize.house import HOUR_NS, START_NS, UTC, House, events, seed_store, spine_rows, write

import featurestore as fs
from featurestore.catalog.catalog import open_catalog
from featurestore.core.config import StoreConfig
from featurestore.errors import NotFoundError, SchemaError
from featurestore.materialize.context import source_spec
from featurestore.materialize.newest import newest_rows
from featurestore.materialize.retrieval import RetrievalJob, historical_features
from featurestore.materialize.training_set import materialize
from featurestore.resolve.events import spine_events
from featurestore.resolve.program import compile_view
from featurestore.resolve.views import resolve_view
from featurestore.storage.sources import open_source

CONFIG = StoreConfig(buckets=3, threads=1)
FEATURES = ["near", "recent", "ever"]


def _job(house: House, spine: Any, features: list[str] = FEATURES, **options: Any) -> RetrievalJob:
    given: dict[str, Any] = {
        "full_feature_names": False,
        "as_of_ns": None,
        "timestamps": False,
        "timestamp_field": None,
        "key_map": {},
    }
    return historical_features(house.context, spine, features, **(given | options))


@pytest.fixture
def house(tmp_path: Path) -> House:
    """A store whose views are not stored yet."""
    return seed_store(tmp_path, config=CONFIG)


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_stored_views_answer_like_the_sources(house: House, rows: int) -> None:
    spine = spine_rows(70, rows, first_hour=2, hours=80)
    expected = _job(house, spine).to_arrow()
    for view in FEATURES:
        materialize(house.context, view)
    job = _job(house, spine)
    assert "stored view near@1 version 1, recent@1 version 1, ever@1 version 1: " in job.explain()
    assert job.to_arrow().equals(expected)
    assert pa.Table.from_batches(job.to_arrow_batches()).equals(expected.combine_chunks())


def test_a_stored_view_that_is_behind_its_source_is_not_used(house: House) -> None:
    spine = spine_rows(71, 50, first_hour=2, hours=80)
    materialize(house.context, "near")
    write(house.root / "events" / "d9.parquet", events(33, 60, first_hour=10, hours=50))
    job = _job(house, spine, ["near"])
    assert "source 'events'" in job.explain()
    fresh = seed_store(house.root / "fresh", config=CONFIG)
    write(fresh.root / "events" / "d9.parquet", events(33, 60, first_hour=10, hours=50))
    assert job.to_arrow().equals(_job(fresh, spine, ["near"]).to_arrow())


def test_only_the_shards_and_rows_within_reach_are_touched(house: House) -> None:
    materialize(house.context, "near")
    spine = pa.table({"key": ["k1"], "ts": pa.array([START_NS + 30 * HOUR_NS]).view(UTC)})
    text = _job(house, spine, ["near"]).explain()
    touched = int(text.split(" shards")[0].rpartition(" of ")[0].rsplit(" ", 1)[-1])
    rows = int(text.split(" rows of")[0].rsplit(" ", 1)[-1])
    assert touched == 1
    assert 0 < rows < 30


def test_the_spine_keeps_order_columns_and_duplicates(house: House) -> None:
    spine = spine_rows(72, 40, first_hour=0, hours=70)
    doubled = pa.concat_tables([spine, spine.slice(3, 4)]).take(
        pa.array(np.random.default_rng(1).permutation(44))
    )
    out = _job(house, doubled).to_arrow()
    assert out.select(doubled.column_names).equals(doubled.combine_chunks())


def test_batches_in_give_batches_out(house: House) -> None:
    spine = spine_rows(73, 60, first_hour=0, hours=70)
    expected = _job(house, spine).to_arrow()
    batches = list(_job(house, iter(spine.to_batches(max_chunksize=7))).to_arrow_batches())
    assert [b.num_rows for b in batches] == [7] * 8 + [4]
    assert pa.Table.from_batches(batches).equals(expected.combine_chunks())


def test_timestamps_and_other_frames(house: House) -> None:
    spine = pl.from_arrow(spine_rows(74, 20, first_hour=10, hours=40))
    job = _job(house, spine, ["near:value"], timestamps=True)
    frame = job.to_polars()
    assert frame.columns == ["key", "ts", "id", "site", "value", "near__event_timestamp"]
    assert job.schema.names == frame.columns
    assert len(job.to_pandas()) == 20
    ages = (frame["ts"] - frame["near__event_timestamp"]).drop_nulls().dt.total_nanoseconds()
    assert ((ages >= 0) & (ages <= 6 * HOUR_NS)).all()


def test_the_event_timestamp_is_found_or_asked_for(house: House) -> None:
    spine = spine_rows(75, 5, first_hour=0, hours=9).rename_columns({"ts": "at"})
    assert _job(house, spine, ["near"]).to_arrow().num_rows == 5
    two = spine.append_column("other", spine.column("at"))
    with pytest.raises(SchemaError, match="not clear"):
        _job(house, two, ["near"])
    assert _job(house, two, ["near"], timestamp_field="at").to_arrow().num_rows == 5
    with pytest.raises(NotFoundError):
        _job(house, spine, ["nearly"])


@pytest.mark.parametrize("view", FEATURES)
def test_the_newest_rows_answer_like_all_rows(house: House, view: str) -> None:
    end_ns = START_NS + 60 * HOUR_NS
    kept = newest_rows(house.context, view, end_ns=end_ns)
    program = compile_view(house.context.snapshot, view_ref(view))
    source = house.context.open(house.context.snapshot.source("events")).read(list(program.source_columns()))
    times = source.column("ts").cast(pa.int64()).to_numpy()
    everything = source.filter(pa.array(times < end_ns))
    newest = int(everything.column("ts").cast(pa.int64()).to_numpy().max())
    readers = pa.table(
        {
            "key": [f"k{i}" for i in range(6)] * 3,
            "ts": pa.array(np.repeat([newest, newest + 1, newest + HOUR_NS], 6)).view(UTC),
        }
    )
    spine = spine_events(readers, "ts")
    answers = [resolve_view(program, spine, ["key"], rows, threads=1).columns for rows in (kept, everything)]
    assert answers[0] == answers[1]
    assert kept.num_rows < everything.num_rows


def view_ref(name: str) -> Any:
    from featurestore.catalog.refs import parse_ref  # noqa: PLC0415 -- one test helper

    return parse_ref(name)


@pytest.fixture
def plain(house: House) -> House:
    """The store with two views of single rows over one source, one of them with a short ttl."""
    root = str(house.root)
    key = fs.Entity("key")
    source = fs.Source(
        "events", path="events", timestamp_field="ts", created_timestamp_column="created", entities=[key]
    )
    soon = fs.FeatureView(
        "soon", source=source, entities=[key], features={"half": "value / 2", "size": "size"}, ttl="2h"
    )
    catalog = open_catalog(root, read_schema=lambda s: open_source(source_spec(s), root).schema)
    catalog.apply([soon])
    return House(house.root, replace(house.context, snapshot=catalog.at(catalog.head)))


@pytest.mark.parametrize(
    "options", [{}, {"timestamps": True}, {"as_of_ns": START_NS + 20 * HOUR_NS}], ids=str
)
@pytest.mark.parametrize("rows", [0, 1, 400])
def test_rows_that_readers_take_are_found_by_entity_as_a_join_finds_them(
    plain: House, rows: int, options: dict[str, Any]
) -> None:
    spine = spine_rows(80, 400, first_hour=0, hours=100, keys=8)
    spine = spine.take(pa.array(np.random.default_rng(3).permutation(400)[:rows]))
    expected = _job(plain, spine, ["ever", "soon"], **options).to_arrow()
    for view in ("ever", "soon"):
        materialize(plain.context, view)
    job = _job(plain, spine, ["ever", "soon"], **options)
    assert "stored view ever@1 version 1, soon@1 version 1" in job.explain()
    assert job.to_arrow().equals(expected)
    assert pa.Table.from_batches(job.to_arrow_batches(), job.schema).equals(expected)
    coded = spine.set_column(0, "key", spine.column("key").dictionary_encode())
    assert _job(plain, coded, ["soon"], **options).to_arrow().column("half").equals(expected.column("half"))


def test_readers_take_no_more_rows_than_they_are(plain: House) -> None:
    materialize(plain.context, "ever")
    spine = spine_rows(81, 40, first_hour=60, hours=10)
    text = _job(plain, spine, ["ever"]).explain()
    assert 0 < int(text.split(" rows of")[0].rsplit(" ", 1)[-1]) <= 40


def test_shards_beyond_the_ttl_are_not_opened(plain: House) -> None:
    materialize(plain.context, "soon")
    spine = spine_rows(82, 40, first_hour=50, hours=20)
    text = _job(plain, spine, ["soon"]).explain()
    assert " rows of 3 of 9 shards" in text


def _column(rng: np.random.Generator, kind: pa.DataType, count: int) -> pa.Array:
    """Draw values of a type; every fifth is null, or none is."""
    mask = rng.random(count) < 0.2 if rng.random() < 0.6 else np.zeros(count, np.bool_)
    numbers = rng.integers(0, 100, count)
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.array([None if m else [n, n + 1] for n, m in zip(numbers, mask, strict=True)], kind)
    texts = pa.array([f"{n} {'x' * (n % 20)}" for n in numbers], mask=mask)
    if pa.types.is_dictionary(kind):
        return texts.dictionary_encode()
    if pa.types.is_string(kind):
        return texts
    if pa.types.is_boolean(kind):
        return pa.array(numbers % 2 == 0, mask=mask)
    # A decimal of twelve digits takes no integer of 64 bits.
    return pa.array(numbers.astype(np.int32 if pa.types.is_decimal(kind) else np.int64), mask=mask).cast(kind)


KINDS = [
    *(
        pa.int8(),
        pa.int64(),
        pa.float16(),
        pa.float64(),
        pa.bool_(),
        pa.decimal128(12, 2),
        pa.timestamp("us"),
    ),
    *(pa.string(), pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.float32()), pa.list_(pa.float32(), 2)),
]


@pytest.mark.parametrize("seed", range(cases(12, 400)))
def test_values_of_any_type_are_the_same_from_a_stored_view_and_from_its_source(
    seed: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(seed)
    rows, readers, keys = (int(rng.integers(1, most)) for most in (1500, 900, 30))
    day = 24 * HOUR_NS
    then = (START_NS + rng.integers(0, 6 * day, rows)) // 1000 * 1000
    drawn = rng.choice(len(KINDS), int(rng.integers(1, 6)), replace=False)
    names = [f"v{number}" for number in drawn]
    table = {
        "key": pa.array(rng.integers(0, keys, rows), mask=rng.random(rows) < 0.03),
        "ts": pa.array(then).view(UTC).cast(pa.timestamp(("ns", "us")[seed % 2], "UTC")),
        "created": pa.array(then + rng.integers(0, day, rows), mask=rng.random(rows) < 0.05).view(UTC),
        **{name: _column(rng, KINDS[number], rows) for name, number in zip(names, drawn, strict=True)},
    }
    write(tmp_path / "events" / "all.parquet", pa.table(table))
    key = fs.Entity("key")
    created = "created" if seed % 3 else None
    source = fs.Source(
        "events", path="events", timestamp_field="ts", created_timestamp_column=created, entities=[key]
    )
    features = {name: name for name in names} | {"missing": f"{names[0]} is null"} if seed % 4 else names
    ttl = (None, "1d", "6h", f"{rng.integers(1, 200)}m")[int(rng.integers(0, 4))]
    store = fs.FeatureStore(tmp_path)
    view = fs.FeatureView("view", source=source, entities=[key], features=features, ttl=ttl)
    store.apply([key, source, view])
    when = START_NS + rng.integers(-day, 8 * day, readers)
    spine = pa.table(
        {
            "key": pa.array(rng.integers(-2, keys + 3, readers), mask=rng.random(readers) < 0.05),
            "ts": pa.array(when if seed % 2 else np.sort(when), mask=rng.random(readers) < 0.03).view(UTC),
        }
    )
    as_of = START_NS + int(rng.integers(0, 6 * day)) if seed % 5 == 0 else None
    before = store.get_historical_features(spine, ["view"], as_of=as_of).to_arrow()
    store.materialize("view")
    job = store.get_historical_features(spine, ["view"], as_of=as_of)
    assert "stored view" in job.explain()
    after = job.to_arrow()
    after.validate(full=True)
    assert after.schema == before.schema
    assert after.to_pylist() == before.to_pylist()
