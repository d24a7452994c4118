"""The audit's own rules, by hand: what it calls visible is what the point-in-time rules say."""

import numpy as np
import pyarrow as pa
import pytest

from featurestore.demo.audit import Mismatch, Raw, audit_rows, flow_features, quote_features, raw_rows

S = 1_000_000_000
BOOK = ["bid", "ask", "bid_size", "ask_size"]


def _quotes(*rows: tuple[int, int, float | None, float | None]) -> Raw:
    """Rows of event s, known s, bid, ask; sizes are 100 where the side is there."""
    event, known, bid, ask = zip(*rows, strict=True)
    table = pa.table(
        {
            "symbol": ["A"] * len(rows),
            "ts": pa.array([e * S for e in event], pa.timestamp("ns", "UTC")),
            "created": pa.array([k * S for k in known], pa.timestamp("ns", "UTC")),
            "bid": pa.array(bid, pa.float64()),
            "ask": pa.array(ask, pa.float64()),
            "bid_size": pa.array([None if b is None else 100 for b in bid], pa.int64()),
            "ask_size": pa.array([None if a is None else 300 for a in ask], pa.int64()),
        }
    )
    return raw_rows(table, BOOK, "created")["A"]


def test_each_side_takes_its_newest_value_and_expressions_see_both() -> None:
    found = quote_features(_quotes((100, 100, 10.0, None), (101, 101, None, 12.0)), 102 * S)
    assert found["mid"] == 11.0
    assert found["spread"] == 2.0
    assert found["imbalance"] == -0.5


@pytest.mark.parametrize(
    ("event", "known", "bid"),
    [
        pytest.param(105, 105, 10.0, id="the same instant is visible"),
        pytest.param(106, 106, None, id="a later event is not"),
        pytest.param(104, 106, None, id="what is known later is not"),
        pytest.param(100, 100, 10.0, id="an age equal to the ttl is visible"),
        pytest.param(99, 99, None, id="an older one is not"),
    ],
)
def test_the_bounds_of_time(event: int, known: int, bid: float | None) -> None:
    assert quote_features(_quotes((event, known, 10.0, None)), 105 * S)["bid"] == bid


def test_of_equal_events_the_newest_correction_wins_then_the_later_row() -> None:
    rows = ((100, 102, 11.0, None), (100, 101, 12.0, None), (100, 102, 13.0, None))
    assert quote_features(_quotes(*rows), 103 * S)["bid"] == 13.0
    assert quote_features(_quotes(*rows), 101 * S)["bid"] == 12.0


def test_the_label_looks_a_minute_ahead_and_sees_late_corrections() -> None:
    rows = ((100, 100, 10.0, 12.0), (158, 900, 11.0, 13.0), (161, 161, 99.0, 99.0))
    assert quote_features(_quotes(*rows), 100 * S)["mid_return_60s"] == 12.0 / 11.0 - 1
    assert quote_features(_quotes(rows[0]), 100 * S)["mid_return_60s"] is None


def test_a_window_excludes_its_start_and_what_was_not_known() -> None:
    raw: Raw = {
        "event": np.array([90, 91, 100]) * S,
        "known": np.array([90, 91, 200]) * S,
        "position": np.arange(3),
        "price": np.array([1.0, 2.0, 4.0]),
        "size": np.array([10.0, 20.0, 40.0]),
    }
    found = flow_features(raw, 100 * S)
    assert (found["trades_10s"], found["volume_10s"], found["price_std_10s"]) == (1, 20.0, None)
    assert (found["trades_60s"], found["notional_60s"]) == (2, 50.0)
    assert found["price_std_60s"] == pytest.approx(np.std([1.0, 2.0], ddof=1))


def test_a_single_wrong_value_is_found_and_named() -> None:
    quotes = {"A": _quotes((100, 100, 10.0, 12.0))}
    trades: dict[str, Raw] = {
        "A": {
            "event": np.array([100]) * S,
            "known": np.array([100]) * S,
            "position": np.arange(1),
            "price": np.array([1.0]),
            "size": np.array([1.0]),
        }
    }
    right = {**quote_features(quotes["A"], 100 * S), **flow_features(trades["A"], 100 * S)}
    row = {"symbol": "A", "ts": 100 * S, **right}
    kept = {name: pa.array([value]) for name, value in row.items()}
    assert audit_rows(pa.table(kept), trades, quotes).mismatches == ()
    leaked = pa.table({**kept, "bid": pa.array([10.5])})
    audit = audit_rows(leaked, trades, quotes)
    assert audit.mismatches == (Mismatch("A", 100 * S, "bid", 10.5, 10.0),)
    assert "raw rows say 10.0" in str(audit.mismatches[0])
