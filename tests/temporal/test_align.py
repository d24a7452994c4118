"""Many streams onto one spine: each by its own rules, as if it were joined alone."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore.core.time import INT64_MAX
from featurestore.errors import DefinitionError, FeatureStoreError, SchemaError, TimeOverflowError
from featurestore.temporal import threads
from featurestore.temporal.align import AsOf, align, align_with_statistics
from featurestore.temporal.join import asof_join
from featurestore.temporal.rows import BOUNDARIES, DIRECTIONS
from featurestore.testing.oracle import asof_oracle

SPINE = pa.table({"ts": [10, 20, 30, 40], "k": ["a", "b", "a", None]})
QUOTES = pa.table({"ts": [9, 19, 29], "k": ["a", "b", "a"], "bid": [1.0, 2.0, None]})
NEWS = pa.table({"when": [5, 25], "tone": ["calm", "wild"]})


def test_streams_follow_the_spine_in_their_order_each_with_its_own_rules() -> None:
    table = align(
        SPINE,
        {
            "quote": AsOf(QUOTES, prefix="q_", matched_timestamp="q_at", age="q_age"),
            "last": AsOf(QUOTES, columns=["bid"], prefix="last_", nulls="last_known"),
            "news": AsOf(NEWS, on="when", by=(), tolerance="10ns", boundary="exclusive"),
        },
        on="ts",
        by="k",
    )
    assert table.column_names == ["ts", "k", "q_bid", "q_at", "q_age", "last_bid", "tone"]
    assert table.select(["ts", "k"]).equals(SPINE)
    assert table["q_bid"].to_pylist() == [1.0, 2.0, None, None]
    assert table["q_at"].to_pylist() == [9, 19, 29, None]
    assert table["q_age"].cast(pa.int64()).to_pylist() == [1, 1, 1, None]
    assert table["last_bid"].to_pylist() == [1.0, 2.0, 1.0, None]
    assert table["tone"].to_pylist() == ["calm", None, "wild", None]


def test_a_last_known_value_has_its_own_age_and_may_expire_alone() -> None:
    rows = pa.table({"ts": [0, 8], "a": [1, None], "b": [1, 2]})
    spine = pa.table({"ts": [10, 11]})
    table = align(spine, {"s": AsOf(rows, tolerance=10, nulls="last_known")}, on="ts")
    assert table["a"].to_pylist() == [1, None]
    assert table["b"].to_pylist() == [2, 2]


def test_no_stream_is_the_spine_and_no_key_is_one_entity() -> None:
    assert align(SPINE, {}, on="ts", by="k").equals(SPINE)
    table = align(SPINE, {"q": AsOf(QUOTES, columns=["bid"])}, on="ts")
    assert table["bid"].to_pylist() == [1.0, 2.0, None, None]


def test_statistics_count_every_row_once() -> None:
    spine = pa.table({"ts": [10, 20, 50, 5, 10, None, 11], "k": ["a", "b", "a", "a", "z", "a", "a"]})
    aligned = align_with_statistics(spine, {"q": AsOf(QUOTES, tolerance=5)}, on="ts", by="k")
    counts = aligned.statistics["q"]
    assert (counts.rows, counts.matched, counts.expired, counts.no_key, counts.not_visible) == (7, 3, 1, 2, 1)
    assert counts.age_ns == {"min": 1, "p50": 1, "p90": 1, "p99": 1, "max": 2}
    assert counts.match_rate == pytest.approx(3 / 7)
    assert aligned.table.equals(align(spine, {"q": AsOf(QUOTES, tolerance=5)}, on="ts", by="k"))


def test_statistics_of_nothing() -> None:
    aligned = align_with_statistics(SPINE.slice(0, 0), {"q": AsOf(QUOTES)}, on="ts", by="k")
    counts = aligned.statistics["q"]
    assert (counts.rows, counts.age_ns, counts.match_rate) == (0, {}, 0.0)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_stream_is_what_it_would_be_joined_alone(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MIN_ROWS", 1)  # so that streams are joined side by side
    rng = np.random.default_rng(count)
    for _ in range(40):
        spine = _table(rng, 30, "x")
        streams: dict[str, AsOf] = {}
        for place in range(int(rng.integers(1, 5))):
            streams[f"s{place}"] = AsOf(
                _table(rng, 40, "v"),
                columns=["v"],
                tolerance=None if rng.random() < 0.5 else int(rng.integers(0, 9)),
                direction=str(rng.choice(DIRECTIONS)),
                boundary=str(rng.choice(BOUNDARIES)),
                created_on="made" if rng.random() < 0.4 else None,
                prefix=f"s{place}_",
                matched_timestamp=f"at{place}",
            )
        aligned = align_with_statistics(spine, streams, on="ts", by=["k"], threads=count)
        for place, (name, rule) in enumerate(streams.items()):
            alone = asof_join(
                spine,
                rule.table,
                on="ts",
                by="k",
                direction=rule.direction,
                tolerance=rule.tolerance,
                boundary=rule.boundary,
                created_on=rule.created_on,
                columns=["v"],
                matched_timestamp="at",
            )
            assert aligned.table[f"{name}_v"].equals(alone["v"])
            assert aligned.table[f"at{place}"].equals(alone["at"])
            _check_counts(aligned.statistics[name], spine, rule)


def _table(rng: np.random.Generator, most: int, name: str) -> pa.Table:
    count = int(rng.integers(0, most))
    times = rng.integers(0, 20, count)
    if rng.random() < 0.5:
        times.sort()
    return pa.table(
        {
            "ts": pa.array(times, mask=rng.random(count) < 0.1),
            "k": pa.array(rng.integers(0, 4, count), mask=rng.random(count) < 0.1),
            "made": pa.array(times + rng.integers(0, 5, count), mask=rng.random(count) < 0.1),
            name: pa.array(rng.integers(0, 99, count), mask=rng.random(count) < 0.2),
        }
    )


def _check_counts(counts: Any, spine: pa.Table, rule: AsOf) -> None:
    sides = [t[c].to_pylist() for t in (spine, rule.table) for c in ("k", "ts")]
    made = None if rule.created_on is None else rule.table["made"].to_pylist()
    options: Any = {"direction": rule.direction, "boundary": rule.boundary, "row_known": made}
    bounded = asof_oracle(*sides, tolerance_ns=rule.tolerance, **options)  # type: ignore[arg-type]
    free = asof_oracle(*sides, **options)
    keys = {k for k, t in zip(sides[2], sides[3], strict=True) if t is not None}
    usable = [k is not None and t is not None and k in keys for k, t in zip(*sides[:2], strict=True)]
    assert counts.matched == sum(row >= 0 for row in bounded)
    assert counts.expired == sum(row >= 0 for row in free) - counts.matched
    assert counts.no_key == len(usable) - sum(usable)
    assert counts.rows == counts.matched + counts.expired + counts.no_key + counts.not_visible
    pairs = zip(sides[1], bounded, strict=True)
    ages = sorted(abs(now - sides[3][row]) for now, row in pairs if row >= 0)
    assert [counts.age_ns.get("min"), counts.age_ns.get("max")] == (
        [ages[0], ages[-1]] if ages else [None] * 2
    )


def test_an_age_that_does_not_fit_is_an_error_that_names_the_column() -> None:
    rows = pa.table({"ts": [-(2**63)], "v": [1]})
    spine = pa.table({"ts": [INT64_MAX]})
    assert align(spine, {"s": AsOf(rows)}, on="ts")["v"].to_pylist() == [1]
    with pytest.raises(TimeOverflowError, match="age column 'old'"):
        align(spine, {"s": AsOf(rows, age="old")}, on="ts")
    ages = align(spine, {"s": AsOf(rows, age="old", tolerance=5)}, on="ts")["old"]
    assert ages.to_pylist() == [None]


def test_a_stream_that_fails_beside_another_is_the_error_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MIN_ROWS", 1)
    far, near = pa.table({"ts": [-(2**63)], "v": [1]}), pa.table({"ts": [5], "w": [1]})
    streams = {"near": AsOf(near, age="young"), "far": AsOf(far, age="old"), "last": AsOf(near, prefix="l_")}
    with pytest.raises(TimeOverflowError, match="age column 'old'"):
        align(pa.table({"ts": [INT64_MAX]}), streams, on="ts", threads=2)


@pytest.mark.parametrize(
    ("streams", "error", "message"),
    [
        ({"q": QUOTES}, DefinitionError, "stream 'q' is a Table"),
        ([AsOf(QUOTES)], DefinitionError, "streams is a list"),
        ({"q": AsOf(QUOTES), "p": AsOf(QUOTES)}, SchemaError, "two columns named 'bid'"),
        ({"q": AsOf(QUOTES, matched_timestamp="m", age="m")}, SchemaError, "two columns named 'm'"),
        ({"q": AsOf(QUOTES, nulls="drop")}, DefinitionError, "nulls of 'q' is 'drop'"),
        ({"q": AsOf(QUOTES, nulls="last_known", direction="forward")}, DefinitionError, "looks back"),
        ({"n": AsOf(NEWS, on="when")}, SchemaError, "n has no column 'k'"),
        ({"n": AsOf(NEWS, by=())}, SchemaError, "n has no column 'ts'"),
        ({"q": AsOf(3)}, SchemaError, "q is a int"),
        ({"q": AsOf(QUOTES, prefix=None)}, DefinitionError, "a name or prefix of 'q' is None"),  # type: ignore[arg-type]
    ],
)
def test_a_stream_that_cannot_be_is_refused_by_name(
    streams: Any, error: type[FeatureStoreError], message: str
) -> None:
    with pytest.raises(error, match=message):
        align(SPINE, streams, on="ts", by="k")
