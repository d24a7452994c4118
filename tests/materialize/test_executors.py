"""Threads, processes and a Ray cluster of two nodes: one suite, and one fingerprint."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.materialize.house import seed_store

from featurestore.errors import DefinitionError
from featurestore.materialize.executors import Executor, Processes, Threads, executor_of
from featurestore.materialize.training_set import materialize
from featurestore.testing.executor_conformance import ExecutorConformance


class TestThreads(ExecutorConformance):
    @pytest.fixture
    def executor(self) -> Executor:
        return Threads(2)


class TestProcesses(ExecutorConformance):
    @pytest.fixture
    def executor(self) -> Executor:
        return Processes(2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Executor]:
    ray = pytest.importorskip("ray", reason="the ray extra is not installed")
    from ray.cluster_utils import Cluster  # noqa: PLC0415 -- only where Ray is installed

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    ray.init(address=nodes.address, log_to_driver=False)
    try:
        yield executor_of("ray", default="threads", workers=0)
    finally:
        ray.shutdown()
        nodes.shutdown()  # type: ignore[no-untyped-call]


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")  # Ray's own: sockets and deprecated calls of its dependencies
class TestRay(ExecutorConformance):
    @pytest.fixture
    def executor(self, cluster: Executor) -> Executor:
        return cluster

    def test_two_nodes_give_the_same_fingerprint_as_threads(self, executor: Executor, tmp_path: Path) -> None:
        house = seed_store(tmp_path)
        first = materialize(house.context, "set", executor=Threads(1))
        copy = tmp_path / "copy"
        copy.mkdir()
        for name in ("spine", "events", "catalog"):
            (copy / name).symlink_to(tmp_path / name)
        second = materialize(replace(house.context, root=str(copy)), "set", executor=executor)
        assert executor.workers == 2
        assert second.fingerprint == first.fingerprint


def test_an_unknown_executor_is_refused_by_name() -> None:
    with pytest.raises(DefinitionError, match="treads"):
        executor_of("treads", default="threads", workers=1)
