"""Look-back windows against a loop over the table."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.loaders.datasets import SECOND

from featurestore.errors import DefinitionError
from featurestore.loaders import TimeSplit, Window, gather, open_loader

CASES = [
    pytest.param({}, id="padding"),
    pytest.param({"max_gap": "3m"}, id="gaps"),
    pytest.param({"pad": None}, id="full windows only"),
    pytest.param({"stride": 3, "min_history": 4}, id="every third anchor with four rows"),
]


def window_by_loop(
    row: int, symbols: list[str], times: list[int], lookback: int, gap_ns: int | None, oldest: int
) -> list[int]:
    """The row and those of its entity before it, while they are in reach; oldest first."""
    found = [row]
    for other in range(row - 1, -1, -1):
        if symbols[other] != symbols[row]:
            continue
        if len(found) == lookback or times[other] < oldest:
            break
        if gap_ns is not None and times[found[-1]] - times[other] > gap_ns:
            break
        found.append(other)
    return found[::-1]


@pytest.mark.parametrize("numba", [True, False], ids=["compiled", "numpy"])
@pytest.mark.parametrize("dtype", [None, "float32"])
@pytest.mark.parametrize("options", CASES)
def test_a_window_holds_the_rows_of_its_entity_before_it(
    dataset: Path,
    table: pa.Table,
    options: dict[str, Any],
    dtype: str | None,
    numba: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not numba:
        monkeypatch.setattr(gather, "compiled", lambda: None)
    symbols = table.column("symbol").to_pylist()
    times = np.asarray(table.column("ts").cast(pa.int64())).tolist()
    values = np.asarray([np.nan if v is None else v for v in table.column("a").to_pylist()])
    loader = open_loader(
        dataset,
        batch_size=100,
        drop_last=False,
        window=Window(7, **options),
        columns=["a", "wt", "row"] if dtype else ["a", "wt"],
        labels=[],
        dtype=dtype,
        fill=-1.0,
        entity=True,
        time=True,
        weight=None,
        nulls="mask",
    )
    gap = 180 * SECOND if "max_gap" in options else None
    place_of = {time: place for place, time in enumerate(times)}
    seen = []
    for batch in loader:
        assert batch.x.shape[1] == 7
        for i in range(0, batch.rows, 7):
            row = place_of[int(batch.time[i])]
            expected = window_by_loop(row, symbols, times, 7, gap, 0)
            held = batch.window_mask[i]
            assert held.tolist() == [False] * (7 - len(expected)) + [True] * len(expected)
            assert (batch.x[i][~held] == 0).all()
            assert (~batch.mask[i][~held]).all()
            wanted = values[expected].astype(batch.x.dtype)
            assert np.array_equal(batch.mask[i][held][:, 0], ~np.isnan(wanted))
            assert np.array_equal(batch.x[i][held][:, 0], np.where(np.isnan(wanted), -1.0, wanted))
            assert batch.delta_ns[i][held].tolist() == [times[row] - times[r] for r in expected]
        seen += [place_of[int(t)] for t in batch.time]
    assert sorted(seen) == anchors_by_loop(symbols, times, options, gap)


def anchors_by_loop(
    symbols: list[str], times: list[int], options: dict[str, Any], gap: int | None
) -> list[int]:
    counts: dict[str, int] = {}
    found = []
    least = 7 if options.get("pad", "left") is None else options.get("min_history", 1)
    for row, symbol in enumerate(symbols):
        number = counts.get(symbol, 0)
        counts[symbol] = number + 1
        if (
            number % options.get("stride", 1) == 0
            and len(window_by_loop(row, symbols, times, 7, gap, 0)) >= least
        ):
            found.append(row)
    return found


def test_in_a_split_rows_before_the_own_period_count_as_absent(dataset: Path, table: pa.Table) -> None:
    split = TimeSplit(train=0.6, test=0.4)
    loader = open_loader(
        dataset, batch_size=50, split=split, subset="test", window=Window(9), time=True, columns=["row"]
    )
    plan = loader.prepared.selection.plan
    assert plan is not None
    start = plan.span()[0]
    short = 0
    for batch in loader:
        oldest = batch.time[:, None] - np.where(batch.window_mask, batch.delta_ns, 0)
        assert oldest.min() >= start
        short += int((~batch.window_mask[:, 0]).sum())
    assert short > 0
    assert table.num_rows == 3000


def test_windows_shuffle_and_resume_like_rows(dataset: Path) -> None:
    options: dict[str, Any] = {"batch_size": 64, "window": Window(4), "columns": ["row"], "labels": []}
    whole = [batch.x.tolist() for batch in open_loader(dataset, **options)]
    loader = open_loader(dataset, **options)
    passing = iter(loader)
    for _ in range(20):
        next(passing)
    other = open_loader(dataset, threads=0, **options)
    other.load_state_dict(loader.state_dict())
    assert [batch.x.tolist() for batch in other] == whole[20:]


@pytest.mark.parametrize(
    "options",
    [
        {"lookback": 0},
        {"lookback": 3, "stride": 0},
        {"lookback": 3, "min_history": 4},
        {"lookback": 3, "pad": "right"},
    ],
)
def test_windows_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError):
        Window(**options)


def test_windows_go_by_the_entities_that_the_dataset_is_stored_by(dataset: Path) -> None:
    assert open_loader(dataset, batch_size=8, window=Window(3, by="symbol"))
    with pytest.raises(DefinitionError, match="symbol"):
        open_loader(dataset, batch_size=8, window=Window(3, by="user"))
