"""Positions by code: what splits rows among partitions."""

import numpy as np
import pytest

from featurestore.errors import SchemaError
from featurestore.temporal.order import group_positions


@pytest.mark.parametrize("rows", [0, 1, 1000])
@pytest.mark.parametrize("groups", [1, 7, 5000])
def test_positions_are_grouped_as_a_stable_sort_groups_them(rows: int, groups: int) -> None:
    codes = np.random.default_rng(rows + groups).integers(0, groups, rows).astype(np.int32)
    order, ends = group_positions(codes, groups)
    assert np.array_equal(order, np.argsort(codes, kind="stable"))
    assert np.array_equal(ends, np.cumsum(np.bincount(codes, minlength=groups)))


def test_a_code_outside_the_groups_is_refused() -> None:
    with pytest.raises(SchemaError, match="codes"):
        group_positions(np.array([0, 3], np.int32), 3)
