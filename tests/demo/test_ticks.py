"""The generated ticks are the same for the same seed, and as untidy as they claim."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from featurestore.core.time import DAY_NS, day_of_text
from featurestore.demo.ticks import OPEN_S, SECOND_NS, SYMBOLS, TickSize, write_ticks

DAYS = ("2025-06-02", "2025-06-03")
SIZE = TickSize(trades=4000, quotes=30_000, overnight=20)


@pytest.fixture(scope="module")
def ticks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ticks")
    assert list(write_ticks(folder, DAYS, seed=5, size=SIZE)) == ["20250602", "20250603"]
    return folder


def _read(folder: Path, kind: str, day: str) -> pa.Table:
    return pq.read_table(folder / kind / f"{day}.parquet")


def _ns(table: pa.Table, column: str) -> np.ndarray:
    values: np.ndarray = table[column].cast(pa.int64()).to_numpy()
    return values


def test_the_same_seed_gives_the_same_ticks_and_another_seed_gives_others(
    ticks: Path, tmp_path: Path
) -> None:
    list(write_ticks(tmp_path / "same", DAYS, seed=5, size=SIZE))
    list(write_ticks(tmp_path / "other", DAYS, seed=6, size=SIZE))
    for kind in ("trades", "quotes"):
        first = _read(ticks, kind, "20250603")
        assert first.equals(_read(tmp_path / "same", kind, "20250603"))
        assert not first.equals(_read(tmp_path / "other", kind, "20250603"))


def test_a_day_does_not_depend_on_the_days_after_it(ticks: Path, tmp_path: Path) -> None:
    list(write_ticks(tmp_path, DAYS[:1], seed=5, size=SIZE))
    assert _read(tmp_path, "quotes", "20250602").equals(_read(ticks, "quotes", "20250602"))


def test_all_twenty_symbols_trade_before_the_bell_and_after_it(ticks: Path) -> None:
    trades = _read(ticks, "trades", "20250602")
    assert set(trades["symbol"].to_pylist()) == set(SYMBOLS)
    second = _ns(trades, "ts") % DAY_NS // SECOND_NS
    assert second.min() >= OPEN_S
    assert 0 < (second < 13.5 * 3600).mean() < 0.2
    assert (second >= 20 * 3600).any()


def test_a_quote_updates_one_side_and_a_few_update_both(ticks: Path) -> None:
    quotes = _read(ticks, "quotes", "20250602")
    bid, ask = (np.asarray(quotes[side].is_valid()) for side in ("bid", "ask"))
    assert (bid | ask).all()
    assert 0 < (bid & ask).mean() < 0.05
    for side in ("bid", "ask"):
        assert quotes[side].is_valid().equals(quotes[f"{side}_size"].is_valid())
    assert pc.min(quotes["bid_size"]).as_py() >= 100


def test_times_are_ns_with_coarse_exchanges_bursts_and_equal_timestamps(ticks: Path) -> None:
    quotes = _read(ticks, "quotes", "20250602")
    times = _ns(quotes, "ts")
    assert 0.2 < (times % 1_000_000 == 0).mean() < 0.5
    assert quotes.select(["symbol", "ts"]).group_by(["symbol", "ts"]).aggregate([]).num_rows < len(times)
    one = np.sort(times[np.asarray(pc.equal(quotes["symbol"], "ACME"))])
    gaps = np.diff(one)
    # A stream without memory has a coefficient of variation of 1; bursts push it far above.
    assert gaps.std() / gaps.mean() > 2


def test_rows_are_known_after_they_are_true_and_late_ones_much_later(ticks: Path) -> None:
    for kind in ("trades", "quotes"):
        table = _read(ticks, kind, "20250602")
        delay = _ns(table, "created") - _ns(table, "ts")
        assert delay.min() > 0
        assert np.median(delay) < SECOND_NS
        assert (delay > 10 * SECOND_NS).any()


def test_corrections_repeat_an_event_and_some_come_with_the_next_day(ticks: Path) -> None:
    second_day = _read(ticks, "quotes", "20250603")
    yesterday = pc.less(second_day["ts"].cast(pa.int64()), day_of_text("2025-06-03") * DAY_NS)
    overnight = second_day.filter(yesterday)
    assert overnight.num_rows == SIZE.overnight
    keys = ["symbol", "ts", "exchange"]
    known = set(zip(*(_read(ticks, "quotes", "20250602")[key].to_pylist() for key in keys), strict=True))
    assert set(zip(*(overnight[key].to_pylist() for key in keys), strict=True)) <= known
    assert _ns(overnight, "created").min() >= day_of_text("2025-06-03") * DAY_NS


def test_files_are_not_in_time_order(ticks: Path) -> None:
    for kind in ("trades", "quotes"):
        assert (np.diff(_ns(_read(ticks, kind, "20250602"), "ts")) < 0).any()


def test_trade_prices_stay_within_a_spread_of_the_quotes_around_them(ticks: Path) -> None:
    trades, quotes = _read(ticks, "trades", "20250602"), _read(ticks, "quotes", "20250602")
    assert pc.min(trades["price"]).as_py() > 0
    mean_trade = trades.group_by("symbol").aggregate([("price", "mean")]).sort_by("symbol")
    mean_bid = quotes.group_by("symbol").aggregate([("bid", "mean")]).sort_by("symbol")
    ratio = mean_trade["price_mean"].to_numpy() / mean_bid["bid_mean"].to_numpy()
    assert np.abs(ratio - 1).max() < 0.05
