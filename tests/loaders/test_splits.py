"""Splits by time and by entity, against loops too simple to be wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.loaders.datasets import HOUR, SECOND, START, make_dataset

from featurestore.core.time import INT64_MAX, INT64_MIN
from featurestore.errors import DefinitionError, LeakageError, NotFoundError
from featurestore.loaders import EntitySplit, TimeSplit, Window, open_loader, walk_forward
from featurestore.loaders.splits import TimePlan, kept_rows, kept_spans, plan_time_split


def kept_by_sets(
    time: int, span: tuple[int, int], others: list[tuple[int, int]], horizon: int, window: int
) -> bool:
    """An independent reading of the rule, by instants: no shared instant between labels and feature windows.

    A sample at t knows the instants (t - window, t] (at least t itself) and its label tells of t to t +
    horizon. It may stay if neither its label meets what any sample of the other period knows, nor the label
    of any of those what it knows. The instants are small integers here, so sets of them can be written out.
    """

    def known(t: int) -> set[int]:
        return set(range(t - max(window, 1) + 1, t + 1))

    def label(t: int) -> set[int]:
        # Its own instant included: without a horizon the label is what the sample itself says.
        return set(range(t, t + horizon + 1))

    if not span[0] <= time < span[1]:
        return False
    for low, high in others:
        theirs_known = set().union(*(known(t) for t in range(low, high)))
        theirs_label = set().union(*(label(t) for t in range(low, high)))
        if label(time) & theirs_known and time < low:
            return False
        if theirs_label & known(time) and time >= high:
            return False
    return True


@given(
    edges=st.lists(st.integers(0, 40), min_size=4, max_size=4, unique=True).map(sorted),
    swap=st.booleans(),
    horizon=st.integers(0, 8),
    window=st.integers(0, 8),
)
@settings(max_examples=300, deadline=None)
def test_purge_and_embargo_keep_what_sets_of_instants_say(
    edges: list[int], swap: bool, horizon: int, window: int
) -> None:
    first, second = (edges[0], edges[1]), (edges[2], edges[3])
    train, test = (second, first) if swap else (first, second)
    plan = TimePlan(
        subset="train", periods={"train": train, "test": test}, horizon_ns=horizon, window_ns=window
    )
    times = np.arange(-5, 50)
    kept, purged, embargoed = kept_rows(plan, times)
    assert kept.tolist() == [kept_by_sets(int(t), train, [test], horizon, window) for t in times]
    inside = (times >= train[0]) & (times < train[1])
    assert np.array_equal(inside, kept | purged | embargoed)
    assert not (kept & purged).any()
    assert not (purged & embargoed).any()
    spans, start, end = kept_spans(plan)
    assert kept.tolist() == [any(a <= t < b for a, b in spans) for t in times.tolist()]
    assert (start, end) == train


@pytest.mark.parametrize(
    ("time", "kept"),
    [
        pytest.param(89, True, id="label ends one instant before the window of the first test sample begins"),
        pytest.param(90, True, id="label (90, 95] ends where the window (95, 100] does not yet begin"),
        pytest.param(91, False, id="label reaches the first instant that the test can know"),
        pytest.param(99, False, id="the last training instant"),
    ],
)
def test_the_edge_of_purge_plus_embargo(time: int, kept: bool) -> None:
    plan = TimePlan(
        subset="train", periods={"train": (0, 100), "test": (100, 200)}, horizon_ns=5, window_ns=5
    )
    assert kept_rows(plan, np.asarray([time]))[0].tolist() == [kept]


def test_purge_and_embargo_come_from_the_labels_and_features_that_are_used(dataset: Path) -> None:
    split = TimeSplit(train=(None, "2013-10-04"), test=("2013-10-04", None))
    plan = open_loader(dataset, batch_size=8, split=split).prepared.selection.plan
    assert plan is not None
    assert (plan.horizon_ns, plan.window_ns, plan.unbounded) == (300 * SECOND, HOUR, ("b",))
    without = open_loader(
        dataset, batch_size=8, split=split, columns=["row"], labels=[]
    ).prepared.selection.plan
    assert without is not None
    assert (without.horizon_ns, without.window_ns) == (0, 0)


def test_the_subsets_hold_exactly_the_rows_of_their_periods(dataset: Path, table: pa.Table) -> None:
    times = np.asarray(table.column("ts").cast(pa.int64()))
    edge = START + 3 * 24 * HOUR
    split = TimeSplit(train=(None, edge), test=(edge, None))
    found = {
        name: sorted(
            int(row)
            for batch in open_loader(
                dataset,
                batch_size=64,
                drop_last=False,
                split=split,
                subset=name,
                columns=["row", "a"],
                dtype="float64",
            )
            for row in batch.x[:, 0]
        )
        for name in ("train", "test")
    }
    labelled = ~np.asarray(table.column("y").is_null())
    limit = edge - HOUR + 1 - 300 * SECOND
    assert found["train"] == np.flatnonzero((times < limit) & labelled).tolist()
    assert found["test"] == np.flatnonzero((times >= edge) & labelled).tolist()


def test_fractions_take_the_oldest_rows_and_rows_of_one_time_stay_together(
    dataset: Path, table: pa.Table
) -> None:
    times = np.asarray(table.column("ts").cast(pa.int64()))
    split = TimeSplit(train=0.6, valid=0.2, test=0.2, purge=None, embargo=None)
    plan = open_loader(dataset, batch_size=8, split=split).prepared.selection.plan
    assert plan is not None
    assert plan.periods == {
        "train": (INT64_MIN, int(times[1800])),
        "valid": (int(times[1800]), int(times[2400])),
        "test": (int(times[2400]), INT64_MAX),
    }


def test_the_leakage_report_counts_and_proves(dataset: Path) -> None:
    split = TimeSplit(train=0.6, valid=0.2, test=0.2)
    report = open_loader(dataset, batch_size=8, split=split).leakage_report()
    train = report["subsets"]["train"]
    assert train["in_period"] == 1800
    assert train["in_period"] == train["kept"] + train["purged"] + train["embargoed"]
    assert train["embargoed"] > 0
    assert report["leaks"] is False
    assert all(pair["margin_ns"] > 0 for pair in report["pairs"].values())


def test_the_leakage_report_says_when_purging_was_switched_off(dataset: Path) -> None:
    split = TimeSplit(train=0.6, test=0.4, purge=None, embargo=None)
    report = open_loader(dataset, batch_size=8, split=split).leakage_report()
    assert report["leaks"] is True
    assert report["pairs"]["train/test"]["overlap"] is True


def test_windows_of_rows_do_not_reach_over_the_split_unless_asked(dataset: Path) -> None:
    split = TimeSplit(train=0.6, test=0.4)
    apart = open_loader(dataset, batch_size=8, split=split, window=Window(20))
    across = open_loader(dataset, batch_size=8, split=split, window=Window(20, across_split=True))
    assert apart.leakage_report()["leaks"] is False
    assert across.leakage_report()["leaks"] is True


def test_every_entity_is_in_one_subset_and_salt_draws_again(tmp_path: Path) -> None:
    rows = 4000
    table = pa.table(
        {
            "user": pa.array(np.arange(rows) % 500),
            "ts": pa.array(np.arange(rows) * SECOND + START, pa.timestamp("ns", "UTC")),
            "x": np.arange(rows, dtype=np.float64),
        }
    )
    from featurestore.testing.packed_dataset import write_dataset  # noqa: PLC0415

    folder = write_dataset(
        tmp_path / "v1", table, entity_keys=["user"], timestamp="ts", features=["x"], buckets=3
    )

    def users(subset: str, salt: int) -> set[int]:
        split = EntitySplit(frac=0.7, valid=0.1, salt=salt)
        loader = open_loader(folder, batch_size=10, drop_last=False, split=split, subset=subset)
        return {int(x) % 500 for batch in loader for x in batch.x[:, 0]}

    parts = [users(name, 1) for name in ("train", "valid", "test")]
    assert set().union(*parts) == set(range(500))
    assert sum(map(len, parts)) == 500
    assert 310 < len(parts[0]) < 390  # 350 expected, 4 standard deviations
    assert users("train", 2) != parts[0]


def test_a_time_split_and_an_entity_split_compose(dataset: Path) -> None:
    time, entity = TimeSplit(train=0.5, test=0.5), EntitySplit(frac=0.5, salt=3)
    both = open_loader(
        dataset, batch_size=4, drop_last=False, split=(time, entity), subset="test", entity=True
    )
    only = open_loader(dataset, batch_size=4, drop_last=False, split=entity, subset="test", entity=True)
    seen = {int(e) for batch in both for e in batch.entity}
    assert seen == {int(e) for batch in only for e in batch.entity}
    assert both.prepared.selection.count < only.prepared.selection.count
    assert both.leakage_report()["subsets"]["test"]["other_entities"] > 0


def test_walk_forward_folds_test_what_comes_after_their_training() -> None:
    folds = walk_forward("2024-01-01", "2024-02-01", folds=3, test="7d", train="10d")
    periods = [fold.periods() for fold in folds]
    assert len(folds) == 3
    assert [p["test"][0] for p in periods[1:]] == [p["test"][1] for p in periods[:-1]]
    assert all(p["train"][1] == p["test"][0] for p in periods)
    assert all(p["train"][1] - p["train"][0] == 10 * 24 * HOUR for p in periods)
    expanding = walk_forward("2024-01-01", "2024-02-01", folds=3, test="7d")
    assert len({fold.periods()["train"][0] for fold in expanding}) == 1


@pytest.mark.parametrize(
    ("build", "error"),
    [
        pytest.param(TimeSplit, DefinitionError, id="nothing given"),
        pytest.param(lambda: TimeSplit(train=0.5, test=("2024-01-01", None)), DefinitionError, id="mixed"),
        pytest.param(lambda: TimeSplit(train=0.9, test=0.2), DefinitionError, id="more than everything"),
        pytest.param(lambda: TimeSplit(train=("2024-02-01", "2024-01-01")), DefinitionError, id="backwards"),
        pytest.param(
            lambda: TimeSplit(train=(None, "2024-02-01"), test=("2024-01-01", None)),
            LeakageError,
            id="overlap",
        ),
        pytest.param(lambda: EntitySplit(frac=1.0), DefinitionError, id="no test entities"),
        pytest.param(lambda: walk_forward(0, 10, folds=5, test=2), DefinitionError, id="no training left"),
    ],
)
def test_splits_that_cannot_be_are_refused(build: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        build()


def test_planning_is_pure_and_takes_durations() -> None:
    split = TimeSplit(train=(0, 10), test=(10, 20), purge="5s", embargo=None)
    plan = plan_time_split(
        split, "train", periods=split.periods(), horizons_ns={"y": 1}, windows_ns={"a": 3, "b": None}
    )
    assert plan == TimePlan(
        subset="train",
        periods={"train": (0, 10), "test": (10, 20)},
        horizon_ns=5 * SECOND,
        window_ns=0,
        unbounded=("b",),
    )


def test_a_subset_that_the_split_does_not_have_is_refused(dataset: Path) -> None:
    with pytest.raises(DefinitionError, match="valid"):
        open_loader(dataset, batch_size=8, split=TimeSplit(train=0.5, test=0.5), subset="valid")


def test_preprocessing_is_fitted_on_train_only_and_travels(tmp_path: Path) -> None:
    from featurestore.resolve.preprocessing import load_preprocessing  # noqa: PLC0415

    folder, table = make_dataset(tmp_path / "v1", rows=1500)
    split = TimeSplit(train=0.5, test=0.5, purge=None, embargo=None)
    loader = open_loader(folder, batch_size=8, split=split, columns=["a", "b", "s"])
    fitted = loader.fit_preprocessing({"a": "standardize", "b": "quantile", "s": "codes"})
    values = np.asarray(
        [
            v
            for v, y in zip(
                table.column("a").to_pylist()[:750], table.column("y").to_pylist()[:750], strict=True
            )
            if v is not None and y is not None
        ]
    )
    assert fitted.transforms["a"].mean == pytest.approx(values.mean(), rel=1e-12)
    assert fitted.transforms["a"].std == pytest.approx(values.std(), rel=1e-12)
    fitted.save(folder)
    again = load_preprocessing(folder, "default")
    assert again == fitted
    out = again.apply(
        {"a": [0.0, None, 1.0], "b": [-9.0, 9.0, 0.0], "s": ["x", None, "??"], "other": [1, 2, 3]}
    )
    assert out["a"][1] == 0
    assert out["b"].tolist()[:2] == [0.0, 1.0]
    assert out["s"].tolist() == [1, 0, 0]
    test = open_loader(folder, batch_size=8, split=split, subset="test")
    with pytest.raises(LeakageError):
        test.fit_preprocessing("standardize")


def test_stored_preprocessing_is_found_by_name_and_a_reference_names_a_version(tmp_path: Path) -> None:
    from featurestore.resolve.preprocessing import (  # noqa: PLC0415
        PreprocessingRef,
        load_preprocessing,
        preprocessing_names,
        preprocessing_ref,
    )

    folder, _ = make_dataset(tmp_path / "v1", rows=300)
    assert preprocessing_names(folder) == ()
    loader = open_loader(folder, batch_size=8, columns=["a", "b"])
    for name in ("second", "first"):
        loader.fit_preprocessing("standardize", name=name).save(folder)
    assert preprocessing_names(folder) == ("first", "second")
    with pytest.raises(NotFoundError, match="'thirst'") as caught:
        load_preprocessing(folder, "thirst")
    assert "first" in str(caught.value.hint)
    assert preprocessing_ref("risk@3:v1") == PreprocessingRef("risk", 3, "v1")
    assert preprocessing_ref("risk@12") == PreprocessingRef("risk", 12, "default")
    for wrong in ("risk", "risk:v1", "risk@", "risk@x:v1", "@3", 3):
        with pytest.raises(DefinitionError, match="names no preprocessing"):
            preprocessing_ref(wrong)


@pytest.mark.parametrize("kind", ["standardize", "quantile"])
def test_one_row_is_transformed_to_the_bits_it_has_in_a_batch(tmp_path: Path, kind: str) -> None:
    folder, _ = make_dataset(tmp_path / "v1", rows=700)
    loader = open_loader(
        folder, batch_size=700, columns=["a", "b"], labels=[], dtype="float32", nulls="nan", drop_last=False
    )
    fitted = loader.fit_preprocessing(kind)
    x = next(iter(loader)).x
    together = fitted.apply_matrix(x, ["a", "b"])
    assert np.isnan(x).any()
    alone = np.concatenate([fitted.apply_matrix(x[i : i + 1], ["a", "b"]) for i in range(x.shape[0])])
    assert together.tobytes() == alone.tobytes()
