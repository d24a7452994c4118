"""A loader's promises: coverage, resume, values, and the errors before any work."""

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.loaders.datasets import leaves, make_dataset

from featurestore.errors import (
    DefinitionError,
    FeatureStoreError,
    LoaderStateError,
    NotFoundError,
    SchemaError,
)
from featurestore.loaders import EntitySplit, LoaderOptions, Window, open_loader, walk_forward

SMALL: dict[str, Any] = {"columns": ["row"], "labels": [], "block_rows": 8, "blocks": 2}


def rows_of(loader: Any) -> list[list[int]]:
    return [batch.x[:, 0].tolist() for batch in loader]


drop_lasts = st.sampled_from([True, False, "pad"])
shuffles = st.sampled_from([True, False, "full"])


@given(
    batch=st.integers(1, 300),
    world=st.sampled_from([1, 2, 4, 8]),
    threads=st.integers(0, 3),
    drop_last=drop_lasts,
    shuffle=shuffles,
    resume_at=st.floats(0, 1),
    other_world=st.sampled_from([1, 2, 4, 8]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_world_size_thread_count_and_resume_gives_the_same_global_batches(
    dataset: Path,
    batch: int,
    world: int,
    threads: int,
    drop_last: bool | Literal["pad"],
    shuffle: bool | Literal["full"],
    resume_at: float,
    other_world: int,
) -> None:
    """Rank batches interleave to that of one rank; an epoch holds every row once; a resume goes on."""
    global_batch = batch * 8

    def open_all(count: int) -> list[Any]:
        return [
            open_loader(
                dataset,
                global_batch_size=global_batch,
                drop_last=drop_last,
                shuffle=shuffle,
                rank=rank,
                world_size=count,
                threads=threads,
                **SMALL,
            )
            for rank in range(count)
        ]

    rows = 3000
    last = rows % global_batch
    if drop_last is False and 0 < last < max(world, other_world):
        with pytest.raises(DefinitionError, match="ranks"):
            open_all(max(world, other_world))
        return
    if drop_last is True and global_batch > rows:
        with pytest.raises(DefinitionError, match="no global batch"):
            open_all(world)
        return
    alone = rows_of(open_all(1)[0])
    ranks = open_all(world)
    steps = list(zip(*(rows_of(loader) for loader in ranks), strict=True))
    assert len(steps) == len(alone) == len(ranks[0])
    for step, expected in zip(steps, alone, strict=True):
        mixed = [row for group in zip(*step, strict=False) for row in group]
        longest = [
            row
            for place in range(len(step[0]))
            for part in step
            if place < len(part)
            for row in [part[place]]
        ]
        assert (mixed if drop_last is not False else longest) == expected
    seen = [row for step in alone for row in step]
    if drop_last == "pad":
        assert set(seen) == set(range(rows))
        assert len(seen) == len(alone) * global_batch
    else:
        assert len(seen) == len(set(seen)) == (rows if drop_last is False else len(alone) * global_batch)

    cut = int(resume_at * len(alone))
    before = ranks[0]
    before.set_epoch(0)
    passing = iter(before)
    for _ in range(cut):
        next(passing)
    state = json.loads(json.dumps(before.state_dict()))
    after = open_all(other_world)
    for loader in after:
        loader.load_state_dict(state)
    rest = [rows_of(loader) for loader in after]
    expected_rest = alone[cut:] if cut < len(alone) else rows_of_epoch(open_all(1)[0], 1)
    assert [sorted(r for part in step for r in part) for step in zip(*rest, strict=True)] == [
        sorted(step) for step in expected_rest
    ]


def rows_of_epoch(loader: Any, epoch: int) -> list[list[int]]:
    loader.set_epoch(epoch)
    return rows_of(loader)


@pytest.fixture
def by_row(table: pa.Table) -> dict[str, npt.NDArray[Any]]:
    """Expected values by the row's own number, nulls as None."""
    return {name: np.asarray(table.column(name).to_pylist(), dtype=object) for name in table.column_names}


def test_values_are_those_that_were_written(
    dataset: Path, by_row: dict[str, npt.NDArray[Any]], table: pa.Table
) -> None:
    loader = open_loader(
        dataset, batch_size=128, nulls="mask", time=True, entity=True, weight="wt", fill={"a": -7.0}
    )
    words = loader.vocabulary("s")
    assert words == ("x", "y", "é")
    symbols = sorted(set(by_row["symbol"]), key=str.encode)
    for batch in loader:
        rows = batch.x["int64"][:, loader.prepared.fields.matrices[2].features.index("row")]
        flat = leaves(batch)
        for matrix in loader.prepared.fields.matrices:
            for place, name in enumerate(matrix.features):
                expected = by_row[name][rows]
                null = np.asarray([v is None for v in expected])
                assert np.array_equal(flat[f"mask.{matrix.name}"][:, place], ~null)
                values = flat[f"x.{matrix.name}"][:, place]
                assert values[~null].tolist() == expected[~null].tolist()
                assert (values[null] == (-7.0 if name == "a" else 0)).all()
        assert [None if c == 0 else words[c - 1] for c in batch.codes["s"]] == by_row["s"][rows].tolist()
        assert batch.extras["e"].tolist() == by_row["e"][rows].tolist()
        times = np.asarray(table.column("ts").cast(pa.int64()))
        assert np.array_equal(batch.time, times[rows])
        assert np.array_equal(batch.extras["tt"], times[rows] // 1000 * 1000)
        assert [symbols[c] for c in batch.entity] == by_row["symbol"][rows].tolist()
        assert batch.y.tolist() == by_row["y"][rows].tolist()
        assert batch.w.tolist() == by_row["wt"][rows].tolist()


def test_rows_without_a_label_are_no_samples_and_are_counted(dataset: Path) -> None:
    loader = open_loader(dataset, batch_size=10, columns=["row"])
    assert loader.io_report()["samples"] == 2970
    assert loader.leakage_report()["subsets"]["all"]["null_labels"] == 30
    kept = open_loader(dataset, batch_size=10, columns=["row"], null_labels="keep", drop_last=False)
    assert sum(np.isnan(batch.y).sum() for batch in kept) == 30


def test_without_shuffling_batches_come_in_time_order_ties_in_stored_order(dataset: Path) -> None:
    loader = open_loader(dataset, batch_size=100, shuffle=False, drop_last=False, columns=["row"], labels=[])
    assert [row for rows in rows_of(loader) for row in rows] == list(range(3000))


def test_one_dtype_makes_one_matrix_in_the_order_of_the_columns(dataset: Path) -> None:
    loader = open_loader(
        dataset, batch_size=50, dtype="float32", columns=["row", "b", "a", "f", "i"], fill={"*": 2.5}
    )
    batch = next(iter(loader))
    assert batch.x.dtype == np.float32
    assert loader.feature_names == ("row", "b", "a", "f", "i")
    assert batch.x.shape == (50, 5)
    assert (batch.x == 2.5).any()


def test_types_are_kept_where_none_is_asked_for(dataset: Path) -> None:
    loader = open_loader(dataset, batch_size=8)
    batch = next(iter(loader))
    assert isinstance(loader.feature_names, dict)
    assert {name: len(of) for name, of in loader.feature_names.items()} == {
        name: x.shape[1] for name, x in batch.x.items()
    }
    assert {name: str(x.dtype) for name, x in batch.x.items()} == {
        "float64": "float64",
        "float32": "float32",
        "int64": "int64",
        "bool": "bool",
        "uint16": "uint16",
    }


def test_nan_mode_marks_nulls_of_every_number(dataset: Path, by_row: dict[str, npt.NDArray[Any]]) -> None:
    batch = next(
        iter(open_loader(dataset, batch_size=2000, dtype="float64", nulls="nan", columns=["row", "i", "a"]))
    )
    rows = batch.x[:, 0].astype(int)
    for place, name in ((1, "i"), (2, "a")):
        assert np.array_equal(
            np.isnan(batch.x[:, place]), np.asarray([v is None for v in by_row[name][rows]])
        )


def test_columns_layout_gives_the_same_values_by_name(dataset: Path) -> None:
    matrix = next(iter(open_loader(dataset, batch_size=64, dtype="float32", columns=["a", "b", "row"])))
    columns = next(
        iter(
            open_loader(dataset, batch_size=64, dtype="float32", columns=["a", "b", "row"], layout="columns")
        )
    )
    assert list(columns.x) == ["a", "b", "row"]
    assert all(np.array_equal(columns.x[n], matrix.x[:, i]) for i, n in enumerate(columns.x))


def test_padding_is_masked_and_weighs_nothing(dataset: Path) -> None:
    loader = open_loader(dataset, batch_size=256, drop_last="pad", weight="wt", columns=["row"], labels=[])
    batches = list(loader)
    assert {b.rows for b in batches} == {256}
    assert sum(b.valid.sum() for b in batches) == 3000
    last = batches[-1]
    assert (last.w[~last.valid] == 0).all()
    assert (last.w[last.valid] > 0).all()


def test_iterating_again_gives_the_next_epoch_and_set_epoch_goes_back(dataset: Path) -> None:
    loader = open_loader(dataset, batch_size=100, **SMALL)
    first, second = rows_of(loader), rows_of(loader)
    assert first != second
    loader.set_epoch(0)
    assert rows_of(loader) == first


def test_a_pass_of_which_nothing_was_taken_does_not_count(dataset: Path) -> None:
    loader = open_loader(dataset, batch_size=100, **SMALL)
    first = rows_of_epoch(loader, 0)
    loader.set_epoch(0)
    iter(loader)
    iter(loader)
    assert rows_of(loader) == first
    state = {**loader.state_dict(), "epoch": 0, "step": 7}
    loader.load_state_dict(state)
    iter(loader)
    assert rows_of(loader) == first[7:]


def test_two_resumes_in_one_epoch_lose_and_repeat_nothing(dataset: Path) -> None:
    whole = rows_of(open_loader(dataset, batch_size=100, **SMALL))
    state: dict[str, Any] | None = None
    parts: list[list[int]] = []
    for take in (7, 11, 100):
        loader = open_loader(dataset, batch_size=100, **SMALL)
        if state is not None:
            loader.load_state_dict(state)
        for batch, _ in zip(loader, range(take), strict=False):
            parts.append(batch.x[:, 0].tolist())
            state = loader.state_dict()
    assert parts == whole


def test_a_prefetched_batch_is_not_a_delivered_one(dataset: Path) -> None:
    loader = open_loader(dataset, batch_size=10, prefetch=16, **SMALL)
    passing = iter(loader)
    next(passing)
    assert loader.state_dict()["step"] == 1
    loader.close()


def test_the_state_after_the_last_batch_leads_to_the_next_epoch(dataset: Path) -> None:
    loader = open_loader(dataset, batch_size=1000, **SMALL)
    second = rows_of_epoch(open_loader(dataset, batch_size=1000, **SMALL), 1)
    passing = iter(loader)
    for _ in range(len(loader)):
        next(passing)
    state = loader.state_dict()
    other = open_loader(dataset, batch_size=1000, **SMALL)
    other.load_state_dict(state)
    assert rows_of(other) == second


@pytest.mark.parametrize(
    ("change", "part"),
    [
        pytest.param({"seed": 1}, "seed", id="seed"),
        pytest.param({"columns": ["row", "a"], "dtype": "float64"}, "columns", id="columns"),
        pytest.param({"shuffle": "full"}, "shuffle", id="shuffle"),
        pytest.param({"drop_last": False}, "nulls", id="drop_last"),
    ],
)
def test_a_state_of_another_loader_is_refused_and_the_part_is_named(
    dataset: Path, change: dict[str, Any], part: str
) -> None:
    state = open_loader(dataset, batch_size=100, **SMALL).state_dict()
    other = open_loader(dataset, batch_size=100, **{**SMALL, **change})
    with pytest.raises(LoaderStateError, match=part):
        other.load_state_dict(state)
    other.load_state_dict(state, strict=False)


def test_another_dataset_version_is_named_in_the_refusal(dataset: Path, tmp_path: Path) -> None:
    other, _ = make_dataset(tmp_path / "v2", seed=5)
    state = open_loader(dataset, batch_size=100, **SMALL).state_dict()
    with pytest.raises(LoaderStateError, match="dataset"):
        open_loader(other, batch_size=100, **SMALL).load_state_dict(state)


def test_another_batch_size_continues_where_the_steps_meet_and_is_refused_between(dataset: Path) -> None:
    whole = [r for rows in rows_of(open_loader(dataset, batch_size=100, **SMALL)) for r in rows]
    loader = open_loader(dataset, batch_size=100, **SMALL)
    passing = iter(loader)
    for _ in range(6):
        next(passing)
    state = loader.state_dict()
    other = open_loader(dataset, batch_size=200, **SMALL)
    other.load_state_dict(state)
    assert [r for rows in rows_of(other) for r in rows] == whole[600:]
    with pytest.raises(LoaderStateError, match="600"):
        open_loader(dataset, batch_size=700, **SMALL).load_state_dict(state)


def test_the_state_is_small_json(dataset: Path) -> None:
    text = json.dumps(open_loader(dataset, batch_size=100, **SMALL).state_dict())
    assert len(text) < 600


def test_a_new_pass_ends_the_one_before(dataset: Path) -> None:
    loader = open_loader(dataset, batch_size=100, **SMALL)
    first = iter(loader)
    next(first)
    second = iter(loader)
    next(second)
    with pytest.raises(LoaderStateError, match="another began"):
        next(first)


def test_a_closed_loader_says_so_and_leaves_no_threads(dataset: Path) -> None:
    before = set(threading.enumerate())
    loader = open_loader(dataset, batch_size=10, threads=2, **SMALL)
    next(iter(loader))
    assert set(threading.enumerate()) - before
    loader.close()
    with pytest.raises(LoaderStateError, match="closed"):
        iter(loader)
    assert not set(threading.enumerate()) - before


def test_batches_that_are_kept_stay_as_they_were(dataset: Path) -> None:
    loader = open_loader(dataset, batch_size=64, dtype="float32", columns=["row", "a"])
    kept = [(batch, batch.x.copy()) for batch in loader]
    assert all(np.array_equal(batch.x, copy) for batch, copy in kept)


def test_buffers_of_collected_batches_are_used_again(dataset: Path) -> None:
    loader = open_loader(dataset, batch_size=16, threads=1, prefetch=2, dtype="float32", columns=["row", "a"])
    for _ in range(3):
        for batch in loader:
            batch.x[:] = 0  # writable: a trainer may change it in place
    assert loader.tier.pool.allocated < 80 < 3 * len(loader)  # type: ignore[attr-defined] # the CPU tier's


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        pytest.param({}, DefinitionError, "batch size", id="no batch size"),
        pytest.param(
            {"batch_size": 8, "global_batch_size": 8}, DefinitionError, "together", id="two batch sizes"
        ),
        pytest.param({"batch_size": 8, "columns": ["nope"]}, NotFoundError, "nope", id="unknown column"),
        pytest.param({"batch_size": 8, "colums": ["a"]}, DefinitionError, "columns", id="misspelt option"),
        pytest.param(
            {"batch_size": 8, "dtype": "int32", "columns": ["a"]}, SchemaError, "float64", id="float to int"
        ),
        pytest.param({"batch_size": 8, "nulls": "nan"}, SchemaError, "floating", id="nan in integers"),
        pytest.param({"batch_size": 8, "fill": 0.5}, SchemaError, "whole", id="fraction in integers"),
        pytest.param({"batch_size": 8, "fill": {"z": 1.0}}, DefinitionError, "z", id="fill of no column"),
        pytest.param({"batch_size": 8, "label": "s"}, SchemaError, "label", id="text label"),
        pytest.param(
            {"batch_size": 8, "world_size": 3, "rank": 0}, DefinitionError, "streams", id="odd world"
        ),
        pytest.param({"batch_size": 8, "rank": 0}, DefinitionError, "both", id="rank alone"),
        pytest.param(
            {"batch_size": 8, "subset": "train"}, DefinitionError, "split", id="subset without split"
        ),
        pytest.param({"batch_size": 8, "device": "cuda"}, DefinitionError, "host", id="device"),
        pytest.param({"batch_size": 8, "nulls": "drop"}, DefinitionError, "mask", id="nulls"),
        pytest.param({"batch_size": 5000}, DefinitionError, "no global batch", id="empty epoch"),
        pytest.param({"batch_size": "a"}, DefinitionError, "batch_size='a'", id="text for a number"),
        pytest.param({"batch_size": True}, DefinitionError, "batch_size=True", id="truth for a number"),
        pytest.param({"batch_size": 8, "window": "5"}, DefinitionError, "window", id="text for a window"),
        pytest.param({"batch_size": 8, "io": "fast"}, DefinitionError, "io=", id="unknown io"),
        pytest.param({"batch_size": 8, "io": "gds"}, DefinitionError, "host", id="io of a device"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    dataset: Path, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        open_loader(dataset, **options)


WRONG = [None, True, -1, 1.5, float("nan"), "x", "", b"x", [], ["x"], {}, {"x": ["y"]}, object(), np.float32]


@pytest.mark.parametrize("option", [f.name for f in dataclasses.fields(LoaderOptions)])
def test_an_option_takes_what_it_can_and_refuses_the_rest_by_a_typed_error(
    dataset: Path, option: str
) -> None:
    refused = []
    for value in WRONG:
        options: dict[str, Any] = {"batch_size": 8, option: value}
        try:
            next(iter(open_loader(dataset, **options)))
        except FeatureStoreError as error:
            refused.append(error)
    assert len(refused) >= 8
    assert all(error.hint for error in refused)


@pytest.mark.parametrize("epoch", [-1, None, 1.5, "1", True])
def test_an_epoch_is_a_whole_number_from_0(dataset: Path, epoch: Any) -> None:
    with pytest.raises(DefinitionError, match="epoch="):
        open_loader(dataset, batch_size=8).set_epoch(epoch)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(EntitySplit, {"frac": "x"}), (EntitySplit, {"valid": True}), (Window, {"lookback": 1.5})],
)
def test_shares_and_rows_are_numbers(kind: Any, options: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError):
        kind(**options)


def test_what_is_asked_of_a_loader_by_name_is_there_or_named(dataset: Path) -> None:
    loader = open_loader(dataset, batch_size=8, columns=["a", "s"])
    assert loader.vocabulary("s")
    with pytest.raises(NotFoundError, match=r"no string column 'a'.*\n.*'?s'?"):
        loader.vocabulary("a")
    with pytest.raises(DefinitionError, match="kinds="):
        loader.fit_preprocessing(["standardize"])  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="folds="):
        walk_forward("2025-01-01", "2025-05-01", folds="2", test="1d")  # type: ignore[arg-type]
