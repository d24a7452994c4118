"""Buffers of answers: whole large pages of their own from 2 MiB on, and never a byte short."""

import numpy as np
import pyarrow as pa
import pytest

from featurestore.temporal import memory
from featurestore.temporal.memory import allocate

PAGE = 1 << 21


@pytest.mark.parametrize("with_hints", [True, False])
@pytest.mark.parametrize(
    "size", [0, 8, PAGE - 8, PAGE, PAGE + 8, 2 * PAGE - 8, PAGE + PAGE // 2, 3 * PAGE + 800]
)
def test_buffers_hold_what_was_asked_for_and_large_ones_begin_at_a_large_page(
    size: int, with_hints: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, int]] = []
    call = (lambda *hint: asked.append(hint)) if with_hints else None
    monkeypatch.setattr(memory, "_madvise", lambda: call)
    buffer, array = allocate(size // 8, np.dtype(np.int64))
    assert (buffer.size, array.nbytes, buffer.address % 8) == (size, size, 0)
    array[:] = np.arange(len(array))
    assert pa.Array.from_buffers(pa.int64(), len(array), [None, buffer]).equals(
        pa.array(np.arange(size // 8))
    )
    if not with_hints or size < PAGE:
        assert not asked
        return
    ((begin, length, advice),) = asked
    assert (begin, length % PAGE, advice) == (buffer.address, 0, 14)
    assert begin % PAGE == 0
    assert abs(length - size) <= PAGE // 2


def test_the_system_takes_the_hint_or_refuses_it_without_harm() -> None:
    _, array = allocate(4 * PAGE, np.dtype(np.uint8))
    array[:] = 1
    assert int(array.sum()) == 4 * PAGE
