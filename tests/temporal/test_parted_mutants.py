"""Mutants of the loops over stored parts: the search and its bounds, the groups, values written to places."""

import ast
from collections.abc import Callable
from typing import Final

import numpy as np
import pyarrow as pa
import pytest
from tests.temporal import test_parted as parts
from tests.temporal import test_scatter as writes
from tests.temporal.mutants import FOLDER, loaded, survivors
from tests.temporal.test_key_mutants import INSTRUCTIONS

from featurestore.core.time import DAY_NS
from featurestore.errors import FeatureStoreError
from featurestore.temporal import parted, scatter
from featurestore.testing.strategies import chunked, random_case

# Mutants that answer the same, by (function, changed line, change).
SAME: Final[dict[tuple[str, str, str], str]] = {
    (
        "keep_reaching",
        "if now <= newest or np.uint64(now - newest) <= limit:",
        "LtE to Lt",
    ): "an age of 0 is within every reach",
}


def searches_wrongly() -> bool:
    try:
        for name in parts.BOUNDS:
            parts.test_the_bounds_of_time(name)
        parts.test_a_reader_that_found_a_row_points_to_its_own_place_and_knows_when_it_was()
        parts.test_a_reader_whose_newest_row_is_too_old_looks_no_further()
        parts.test_the_tolerance_counts_for_every_row_the_first_included()
        parts.test_readers_whose_entity_is_not_known_are_left_out()
        for seed in range(24):
            rng = np.random.default_rng(seed)
            times = rng.integers(-3 * DAY_NS, 4 * DAY_NS, 20) // (1, DAY_NS)[seed % 2] * (1, DAY_NS)[seed % 2]
            readers = list(zip(times.tolist(), rng.integers(-1, 4, 20).tolist(), strict=True))
            parts.check_days(readers, set(rng.integers(-4, 5, 1 + seed % 4).tolist()), 1)
            case = random_case(seed)
            parts.check_parted(case.rows, case.entities)
            cuts = rng.integers(0, 400, 4).tolist()
            for look_back_ns in (None, case.tolerance_ns):
                if parts.newest_of(case, cuts, look_back_ns) != parts.expected(case, look_back_ns):
                    return True
    except (AssertionError, IndexError, ValueError, FeatureStoreError):
        return True
    return False


def writes_wrongly() -> bool:
    try:
        writes.test_under_a_null_and_where_nobody_wrote_no_value_lingers()
        for seed in range(20):
            values = [None if seed % 2 and k % 5 == seed % 5 else k + 1 for k in range(9 + seed)]
            kind = (pa.int8(), pa.float32(), pa.int64())[seed % 3]
            sources = [chunked(pa.array(values, kind).slice(skip), []) for skip in (0, 3)]
            hands = writes.dealt(seed, 30, 2)
            writes.check(writes.scattered(sources, hands, 30, 1), sources, hands)
    except (AssertionError, IndexError, ValueError, pa.ArrowInvalid):
        return True
    return False


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize(
    ("name", "owner", "notices"),
    [("parted_kernels", parted, searches_wrongly), ("scatter_kernels", scatter, writes_wrongly)],
)
def test_no_mutant_of_the_loops_over_parts_survives(
    name: str, owner: object, notices: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Compiled, they would read wherever a mutant sends them.
    names = {"U64": INSTRUCTIONS["U64"]}
    for module, shared in (
        ("asof_kernels", ("count_before", "known_before")),
        ("gather_kernels", ("bit_of",)),
    ):
        plain = vars(loaded(ast.parse((FOLDER / f"{module}.py").read_text()), module, names))
        names |= {part: plain[part] for part in shared}

    def load(tree: ast.Module) -> None:
        monkeypatch.setattr(owner, "_kernels", loaded(tree, name, names))

    found = survivors(name, notices, load, SAME)
    assert not found, f"{len(found)} mutants survive:\n" + "\n".join(found)
