"""Who waits for a compiler is told why, once."""

import logging
from types import FunctionType
from typing import Any

import numba
import pytest

from featurestore.core import compiling

pytestmark = pytest.mark.usefixtures("fresh")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has compiled nothing yet, and a user without patience."""
    compiling.listen()
    monkeypatch.setattr(compiling, "_notice", compiling._Notice())
    monkeypatch.setattr(compiling, "_QUIET_S", -1.0)


def compile_one(module: str) -> None:
    """Compile a function of `module` that was never compiled before."""
    function: Any = FunctionType((lambda x: x + 1).__code__, {"__name__": module})
    compiled: Any = numba.njit(function)
    assert compiled(1) == 2


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "featurestore.compile"]


def test_the_user_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    compile_one("featurestore.temporal.some_kernels")
    compile_one("featurestore.temporal.more_kernels")
    (message,) = told(caplog)
    assert "once per machine" in message
    assert caplog.records[0].levelno == logging.WARNING


def test_kernels_of_others_are_none_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    compile_one("somebody.else")
    assert told(caplog) == []


def test_a_caller_that_has_announced_it_is_not_interrupted(caplog: pytest.LogCaptureFixture) -> None:
    with compiling.announced():
        compile_one("featurestore.temporal.some_kernels")
    assert told(caplog) == []
    compile_one("featurestore.temporal.some_kernels")
    assert len(told(caplog)) == 1


def test_a_short_wait_needs_no_words(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_QUIET_S", 3600.0)
    compile_one("featurestore.temporal.some_kernels")
    assert told(caplog) == []
