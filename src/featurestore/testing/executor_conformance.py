"""What every executor must do: a class of tests to inherit, with a fixture `executor` that makes one."""

import pytest

from featurestore.errors import SchemaError
from featurestore.materialize.executors import Executor


def _doubled(number: int) -> int:
    return 2 * number


def _failing(number: int) -> int:
    if number == 3:
        raise SchemaError("task 3 failed", hint="on purpose", column="c")
    return number


class ExecutorConformance:
    """Inherit this and provide the fixture `executor`."""

    @pytest.fixture
    def executor(self) -> Executor:
        """Return the executor under test."""
        raise NotImplementedError

    @pytest.mark.parametrize("tasks", [0, 1, 2, 37])
    def test_every_task_is_answered_once(self, executor: Executor, tasks: int) -> None:
        """Answers may come in any order, but all of them, once."""
        assert sorted(executor.run(_doubled, list(range(tasks)))) == [2 * n for n in range(tasks)]

    def test_a_typed_error_arrives_as_it_was_raised(self, executor: Executor) -> None:
        """Class, message, hint and context survive the way back."""
        with pytest.raises(SchemaError) as caught:
            list(executor.run(_failing, list(range(8))))
        assert (caught.value.message, caught.value.hint) == ("task 3 failed", "on purpose")
        assert caught.value.context == {"column": "c"}

    def test_it_runs_again_after_an_error(self, executor: Executor) -> None:
        """A failed run leaves nothing behind that the next one trips over."""
        with pytest.raises(SchemaError):
            list(executor.run(_failing, list(range(8))))
        assert sorted(executor.run(_doubled, [1, 2])) == [2, 4]

    def test_it_has_at_least_one_worker(self, executor: Executor) -> None:
        """The plan divides threads by it."""
        assert executor.workers >= 1
