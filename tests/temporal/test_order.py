"""Grouping and sorting: order that is there is found, order that is not is made, ties keep their place."""

import numpy as np
import pytest

from featurestore.temporal import threads
from featurestore.temporal.order import Partition, partition_rows
from featurestore.temporal.rows import Rows


def listed(partition: Partition, count: int) -> list[list[int]]:
    order = np.arange(count) if partition.order is None else partition.order
    bounds = zip(partition.starts.tolist(), partition.ends.tolist(), strict=True)
    return [order[a:b].tolist() for a, b in bounds]


def expected(rows: Rows, entities: int) -> list[list[int]]:
    def rank(row: int) -> tuple[int, ...]:
        keys = (rows.event_ns, rows.known_ns, rows.sequence)
        return (*(int(key[row]) for key in keys if key is not None), row)

    codes = rows.codes.tolist()
    return [sorted((r for r, code in enumerate(codes) if code == e), key=rank) for e in range(entities)]


@pytest.mark.parametrize(
    ("codes", "event", "kept"),
    [
        ([1, 1, 0, 0], [1, 2, 0, 0], True),
        ([0, 1, 0], [0, 1, 2], False),
        ([0, 0, 1], [2, 1, 0], False),
        ([0, -1, 1], [0, 0, 0], True),
        ([0, -1, 0], [0, 5, 1], True),
        ([], [], True),
    ],
)
def test_order_that_is_there_is_found(codes: list[int], event: list[int], kept: bool) -> None:
    rows = Rows(np.array(codes, np.int32), np.array(event, np.int64))
    partition = partition_rows(rows, entities=2)
    if codes != [0, -1, 0]:
        assert (partition.order is None) == kept
    assert listed(partition, len(rows)) == expected(rows, 2)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("span", [2, 50, 2**62])
def test_random_rows_are_grouped_and_sorted_stably(
    count: int, span: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "MIN_ROWS", 8)
    rng = np.random.default_rng(span % 97 + count)
    for size in (1, 40, 300, 1500):
        for entities in (1, 3, 40):
            rows = Rows(
                rng.integers(-1, entities, size).astype(np.int32),
                rng.integers(-span, span, size),
                rng.integers(0, 3, size) if rng.random() < 0.5 else None,
                rng.integers(0, 2, size) if rng.random() < 0.5 else None,
            )
            partition = partition_rows(rows, entities=entities, threads=count)
            assert listed(partition, size) == expected(rows, entities)
            taken = partition.take(rows.event_ns, threads=count)
            order = np.arange(size) if partition.order is None else partition.order
            assert taken[: len(order)].tolist() == rows.event_ns[order].tolist()


def test_no_entities_at_all() -> None:
    rows = Rows(np.full(3, -1, np.int32), np.zeros(3, np.int64))
    partition = partition_rows(rows, entities=0)
    assert len(partition.starts) == len(partition.ends) == 0
