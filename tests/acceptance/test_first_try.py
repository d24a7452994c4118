"""What someone who knows only the design page writes first: it works, or says what to write."""

import pickle
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featurestore as fs

T0 = 1_700_000_000_000_000_000
SECOND = 1_000_000_000


def rows(texts: list[str | None], kind: pa.DataType) -> pa.Table:
    times = pa.array([T0 + i * SECOND for i in range(len(texts))], pa.timestamp("ns", "UTC"))
    users = pa.array(["a", "b"] * len(texts), pa.string())[: len(texts)]
    return pa.table({"user": users, "event_timestamp": times, "x": pa.array(texts, kind)})


def opened(root: Path, table: pa.Table, **view: Any) -> tuple[fs.FeatureStore, fs.FeatureView]:
    (root / "events").mkdir()
    pq.write_table(table, root / "events" / "1.parquet")
    user = fs.Entity("user")
    source = fs.Source("events", path="events", entities=[user])
    made = fs.FeatureView(
        "last", source=source, entities=[user], **(view or {"features": ["x"], "aggregations": []})
    )
    store = fs.FeatureStore(root)
    service = fs.FeatureService("model", features=[made])
    store.apply([service, fs.TrainingSet("pairs", spine=source, features=[made], full_feature_names=True)])
    return store, made


@pytest.mark.parametrize("kind", [pa.string_view(), pa.list_(pa.string_view())], ids=str)
def test_views_of_strings_go_all_the_way(tmp_path: Path, kind: pa.DataType) -> None:
    texts: list[Any] = ["p", None, "q" * 40] if kind == pa.string_view() else [["p"], None, ["q" * 40, None]]
    store, _ = opened(tmp_path, rows(texts, kind))
    with store:
        spine = rows(["", "", ""], pa.string()).drop_columns(["x"])
        store.materialize("last")
        assert store.get_historical_features(spine, ["last"]).to_arrow()["x"].to_pylist() == texts
        dataset = store.dataset("last")
        dataset.verify()
        assert dataset.recreate().fingerprint == dataset.fingerprint
        answer = store.get_online_features(["last:x"], {"user": ["a", "b"]}, now=T0 + 9 * SECOND)
        assert answer.to_dict()["x"] == [texts[2], texts[1]]


def test_aggregations_take_views_of_strings() -> None:
    spine = pa.table({"t": [3]})
    windows = [fs.Aggregation("x", f, "1s", name=f) for f in ("min", "max", "first", "last", "last_n(2)")]
    join = fs.StreamingJoin("t", aggregations=windows, columns=[])
    join.push_right(pa.table({"t": [1, 2, 3], "x": pa.array(["b", "a" * 20, "c"], pa.string_view())}))
    join.push_left(spine)
    out = join.flush()
    assert out.schema.field("min").type == pa.string_view()
    assert out.to_pylist()[0] == {
        "t": 3, "min": "a" * 20, "max": "c", "first": "b", "last": "c", "last_n(2)": ["a" * 20, "c"],
    }  # fmt: skip


def test_a_stream_of_polars_frames_hands_its_late_rows_over() -> None:
    join = fs.StreamingJoin("t", "k", late="side_output")
    join.advance_watermark(3, "right")
    join.push_right(pl.DataFrame({"t": [2, 4, 4], "k": ["a", "a", None], "x": ["late", "used", "keyless"]}))
    join.push_left(pl.DataFrame({"t": [5], "k": ["a"]}))
    late = join.late_rows("right")
    assert late is not None
    assert late.to_pylist() == [{"t": 2, "k": "a", "x": "late"}]
    assert join.flush()["x"].to_pylist() == ["used"]


@pytest.mark.parametrize(
    "as_given", [pl.from_arrow, pa.Table.to_pandas, pa.Table.to_reader, pa.Table.to_pydict]
)
def test_rows_are_pushed_from_any_table(tmp_path: Path, as_given: Any) -> None:
    store, _ = opened(tmp_path, rows(["p"], pa.string()))
    more = rows(["new"], pa.string())
    more = more.set_column(1, "event_timestamp", pa.array([T0 + SECOND], pa.timestamp("ns", "UTC")))
    given = as_given(more)
    if isinstance(given, dict):  # Python's datetimes end at microseconds: this one has none below
        given["event_timestamp"] = pa.array(given["event_timestamp"], pa.timestamp("ns", "UTC"))
    with store:
        store.materialize("last")
        store.push("events", given)
        now = T0 + 2 * SECOND
        assert store.get_online_features(["last:x"], [{"user": "a"}], now=now).to_dict()["x"] == ["new"]
        spine = pd.DataFrame({"user": ["a"], "event_timestamp": pd.to_datetime([now], utc=True)})
        assert store.get_historical_features(spine, ["last"]).to_arrow()["x"].to_pylist() == ["new"]


def test_one_view_may_be_asked_for_without_a_list(tmp_path: Path) -> None:
    store, view = opened(tmp_path, rows(["p"], pa.string()))
    spine = rows([""], pa.string()).drop_columns(["x"])
    assert store.get_historical_features(spine, view).to_arrow()["x"].to_pylist() == ["p"]


def test_datasets_and_stores_cross_processes_and_compare(tmp_path: Path) -> None:
    store, _ = opened(tmp_path, rows(["p", "q"], pa.string()))
    with store:
        store.materialize("last")
        store.materialize("pairs")
        view, dataset = store.dataset("last"), store.dataset("pairs")
        assert view != dataset
        for one, column in ((view, "x"), (dataset, "last__x")):
            again = pickle.loads(pickle.dumps(one))
            assert again == one
            assert hash(again) == hash(one)
            assert again.to_arrow(column).num_rows == 2
        other = pickle.loads(pickle.dumps(store))
        assert other.dataset("pairs") == dataset
        assert store.dataset("pairs", datetime.now(UTC)) == dataset
        with pytest.raises(fs.NotFoundError, match="no version as old as"):
            store.dataset("pairs", datetime(2001, 1, 1, tzinfo=UTC))


def test_what_cannot_be_materialized_is_called_by_its_kind(tmp_path: Path) -> None:
    store, _ = opened(tmp_path, rows(["p"], pa.string()))
    with pytest.raises(
        fs.NotFoundError, match="'model' in version 1 of the catalog: it is a feature service"
    ):
        store.materialize("model")
    assert repr(store.catalog.at(1)) == "CatalogSnapshot(1, 5 definitions)"


@pytest.mark.parametrize("entities", ["user", fs.Entity("user")])
def test_one_entity_where_a_list_is_meant_is_refused(entities: Any) -> None:
    with pytest.raises(fs.DefinitionError, match="has entities="):
        fs.Source("events", path="x", entities=entities)
    source = fs.Source("events", path="x")
    with pytest.raises(fs.DefinitionError, match="has entities="):
        fs.TrainingSet("pairs", spine=source, features=["last"], entities=entities)


@pytest.mark.parametrize("kind", ["float64", float, pa.float64()])
def test_request_fields_are_typed_by_name_or_by_type(kind: Any) -> None:
    view = fs.OnDemandFeatureView("ratio", request={"amount": kind}, features={"r": "amount / 2"})
    assert view.request == {"amount": "float64"}
    with pytest.raises(fs.DefinitionError, match="has type"):
        fs.OnDemandFeatureView("ratio", request={"amount": list}, features={"r": "amount / 2"})


def test_a_store_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path, rows(["p"], pa.string()))[0].close()
    monkeypatch.chdir(tmp_path.parent)
    with fs.FeatureStore(tmp_path.name) as store:
        store.materialize("last")
        monkeypatch.chdir("/")
        assert store.dataset("last").num_rows == 1
        assert store.materialize("last").created is False


def test_kernels_compile_where_nothing_can_be_kept() -> None:
    code = (
        "import numba.core.caching as caching; caching.CacheImpl._locator_classes = [];"
        "from featurestore.temporal.jit import kernel;"
        "assert kernel(lambda number: number + 1)(1) == 2"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", ["list", "struct", "null", "last_n"])
def test_nulls_and_dictionaries_inside_other_types_are_kept(tmp_path: Path, kind: str) -> None:
    coded = pa.dictionary(pa.int8(), pa.string())
    columns: dict[str, tuple[list[Any], pa.DataType]] = {
        "list": ([["p"], None, ["q", "p"]], pa.list_(coded)),
        "struct": ([{"a": "p"}, None, {"a": None}], pa.struct([("a", coded)])),
        "null": ([None, None, None], pa.null()),
        "last_n": (["p", None, "q"], coded),
    }
    view: dict[str, Any] = {}
    values, expected = columns[kind][0], columns[kind][0]
    if kind == "last_n":
        view = {"aggregations": [fs.Aggregation("x", "last_n(2)", "1h", name="x")]}
        expected = [[None, "p"], None, ["p", "q"]]
    store, _ = opened(tmp_path, rows(values, columns[kind][1]), **view)
    with store:
        store.materialize("last")
        store.materialize("pairs")
        dataset = store.dataset("pairs")
        dataset.verify()
        assert dataset.recreate().fingerprint == dataset.fingerprint
        found = {(r["user"], r["event_timestamp"]): r["last__x"] for r in dataset.to_arrow().to_pylist()}
        assert [found[key] for key in sorted(found, key=lambda key: key[1])] == expected
        answer = store.get_online_features(["last:x"], {"user": ["a", "b"]}, now=T0 + 9 * SECOND)
        assert answer.to_dict()["x"] == [expected[2], expected[1]]


@pytest.mark.parametrize("found", [["1", "2"], [1, 2]], ids=["text", "integers"])
def test_a_source_that_drifted_is_refused_and_never_cast(tmp_path: Path, found: list[Any]) -> None:
    table = rows(["", ""], pa.string())
    numbers = table.set_column(2, "x", pa.array([1.0, 2.0]))
    store, _ = opened(tmp_path, numbers)
    with store:
        store.materialize("last")
        pq.write_table(table.set_column(2, "x", pa.array(found)), tmp_path / "events" / "1.parquet")
        became = f"x: double became {pa.array(found).type}"
        spine = table.drop_columns(["x"])
        for read in (
            lambda: store.materialize("last"),
            lambda: store.materialize_incremental("last"),
            lambda: store.materialize("pairs"),
            lambda: store.get_historical_features(spine, ["last"]).to_arrow(),
        ):
            with pytest.raises(fs.SchemaError, match=became):
                read()
        assert [version.version for version in store.history("last")] == [1]
        with pytest.raises(fs.SchemaError, match=became):
            store.plan(fs.Source("events", path="events", entities=["user"]))


@pytest.mark.parametrize(
    "settings", [{"buckets": "x"}, {"threads": -1}, {"buckets": True}, "feature_store.yaml"]
)
def test_settings_that_cannot_be_right_are_refused(tmp_path: Path, settings: Any) -> None:
    with pytest.raises(fs.DefinitionError):
        fs.FeatureStore(tmp_path, config=settings)


@pytest.mark.parametrize("entity", ["user", fs.Entity("user")], ids=["by name", "as an object"])
def test_an_entity_is_erased_by_name_or_as_an_object(tmp_path: Path, entity: Any) -> None:
    store, _ = opened(tmp_path, rows(["p", "q"], pa.string()))
    with store:
        store.materialize("last")
        assert store.export(entity, ["a"])["dataset/last@1"].num_rows == 1
        store.erase(entity, ["a"])
        assert store.dataset("last").to_arrow("x")["x"].to_pylist() == ["q"]
        assert store.unsuppress(entity, ["a"]) is True


def test_rows_at_both_ends_of_time_are_materialized(tmp_path: Path) -> None:
    ends = pa.array([-(2**63), 2**63 - 1], pa.timestamp("ns", "UTC"))
    table = rows(["first", "last"], pa.string()).set_column(1, "event_timestamp", ends)
    store, _ = opened(tmp_path, table)
    with store:
        store.materialize("pairs")
        dataset = store.dataset("pairs")
        assert dataset.to_arrow("last__x")["last__x"].to_pylist() == ["first", "last"]
        assert dataset.recreate().fingerprint == dataset.fingerprint


@pytest.mark.parametrize(
    ("start", "end", "kept"),
    [
        pytest.param(T0, T0 + 2 * SECOND, ["p", "q"], id="the start is inside, the end is not"),
        pytest.param(T0 + 1, T0 + 2 * SECOND, ["q"], id="a nanosecond after a row leaves it out"),
        pytest.param(None, T0 + SECOND, ["p"], id="a row at the end is out"),
        pytest.param(None, T0 + SECOND + 1, ["p", "q"], id="a nanosecond later it is in"),
    ],
)
@pytest.mark.parametrize(("name", "column"), [("pairs", "last__x"), ("last", "x")])
def test_a_range_has_its_start_and_not_its_end(
    tmp_path: Path, name: str, column: str, start: int | None, end: int, kept: list[str]
) -> None:
    store, _ = opened(tmp_path, rows(["p", "q", "r"], pa.string()))
    with store:
        store.materialize(name, start, end)
        assert sorted(store.dataset(name).to_arrow(column)[column].to_pylist()) == kept


@pytest.mark.parametrize("materialized", [False, True], ids=["from the source", "from its table"])
def test_a_spine_whose_keys_are_all_null_has_nulls(tmp_path: Path, materialized: bool) -> None:
    store, _ = opened(tmp_path, rows(["p"], pa.string()))
    with store:
        if materialized:
            store.materialize("last")
        when = pd.to_datetime([T0 + SECOND, T0], utc=True)
        for keys in (pa.nulls(2), pd.Series([None, None])):
            spine = pa.table({"user": keys, "event_timestamp": when})
            joined = store.get_historical_features(spine, "last").to_arrow()
            assert joined["x"].to_pylist() == [None, None]
            assert joined["user"].type == spine["user"].type


def test_a_spine_in_integer_nanoseconds_is_enough_for_computed_features(tmp_path: Path) -> None:
    store, made = opened(tmp_path, rows(["p"], pa.string()))
    with store:
        store.apply([fs.OnDemandFeatureView("shout", inputs=[made], features={"loud": "upper(x)"})])
        spine = pa.table({"user": ["a"], "event_timestamp": pa.array([T0])})
        assert store.get_historical_features(spine, "shout").to_arrow()["loud"].to_pylist() == ["P"]
        with pytest.raises(fs.DefinitionError, match="no features were asked for"):
            store.get_historical_features(spine, [])
