"""Any sequence of apply, remove, rollback and reads agrees with a model of plain dictionaries."""

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.catalog.house import SYMBOL, TRADES_SOURCE, catalog_in

from featurestore import FeatureService, FeatureView
from featurestore.catalog.catalog import Catalog
from featurestore.catalog.definition import Definition
from featurestore.core.clock import ManualClock
from featurestore.errors import CommitConflictError, NotFoundError

VIEWS = ("a", "b", "c")
SERVICES = ("s", "t")
Key = tuple[str, str]
Meaning = tuple[str, ...]


@dataclass
class World:
    """What a catalog holds, by the rules: the meaning of each version, and the version in force."""

    meanings: dict[tuple[Key, int], Meaning] = field(default_factory=dict)
    texts: dict[tuple[Key, int], str] = field(default_factory=dict)
    heads: dict[Key, int] = field(default_factory=dict)
    last: dict[Key, int] = field(default_factory=dict)

    def copy(self) -> "World":
        """Return a copy that later changes do not reach."""
        return World(dict(self.meanings), dict(self.texts), dict(self.heads), dict(self.last))

    def put(self, key: Key, meaning: Meaning, text: str) -> None:
        """Bring a meaning into force: under its version if it is that of the newest known, else a new one."""
        base = self.heads.get(key, self.last.get(key, 0))
        version = base if self.meanings.get((key, base)) == meaning else self.last.get(key, 0) + 1
        self.meanings[key, version] = meaning
        self.texts[key, version] = text
        self.heads[key] = version
        self.last[key] = max(version, self.last.get(key, 0))


class CatalogMachine(RuleBasedStateMachine):
    """Views over one source, services over views; the service's meaning holds its view's version."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = ManualClock(1_000)
        self.catalog = self.opened()
        self.other = self.opened()
        self.worlds = [World()]
        self.times = [0]

    def opened(self) -> Catalog:
        """Open the folder anew."""
        return catalog_in(self.folder, clock=self.clock)

    def teardown(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder)

    @initialize()
    def begin(self) -> None:
        """Apply the source that everything reads."""
        self.commit([TRADES_SOURCE], self.worlds[-1].copy())

    def commit(self, given: list[Definition], world: World, remove: tuple[str, ...] = ()) -> None:
        """Apply, and expect a new version exactly where the model changed."""
        self.clock.advance(10)
        before = self.catalog.head
        commit = self.catalog.apply(given, remove=remove)
        changed = world != self.worlds[-1] or before == 0
        assert commit.version == before + changed
        if changed:
            self.worlds.append(world)
            self.times.append(commit.time_ns)

    @rule(name=st.sampled_from(VIEWS), factor=st.integers(0, 2), text=st.sampled_from(["", "x", "y"]))
    def apply_view(self, name: str, factor: int, text: str) -> None:
        """Give a view a meaning and a description; services over it follow a change of meaning."""
        world = self.worlds[-1].copy()
        world.put(("feature_view", name), (str(factor),), text)
        for service in SERVICES:
            key = ("feature_service", service)
            if key in world.heads and world.meanings[key, world.heads[key]][0] == name:
                text_of_it = world.texts[key, world.heads[key]]
                world.put(key, (name, str(world.heads["feature_view", name])), text_of_it)
        view = FeatureView(
            name, source="trades", entities=[SYMBOL], features={name: f"price * {factor}"}, description=text
        )
        self.commit([view], world)

    @rule(name=st.sampled_from(SERVICES), view=st.sampled_from(VIEWS), text=st.sampled_from(["", "z"]))
    def apply_service(self, name: str, view: str, text: str) -> None:
        """Give a service one view; without that view it is refused and nothing changes."""
        world = self.worlds[-1].copy()
        version = world.heads.get(("feature_view", view))
        service = FeatureService(name, features=[view], description=text)
        if version is None:
            with pytest.raises(NotFoundError):
                self.catalog.apply([service])
            return
        world.put(("feature_service", name), (view, str(version)), text)
        self.commit([service], world)

    @rule(name=st.sampled_from(VIEWS + SERVICES))
    def remove(self, name: str) -> None:
        """Remove something; what is in use or not there is refused."""
        world = self.worlds[-1].copy()
        key = ("feature_view" if name in VIEWS else "feature_service", name)
        used = any(
            k[0] == "feature_service" and world.meanings[k, v][0] == name for k, v in world.heads.items()
        )
        if key not in world.heads or used:
            with pytest.raises(NotFoundError):
                self.catalog.apply([], remove=[name])
            return
        del world.heads[key]
        self.commit([], world, remove=(name,))

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        """Go back to any version."""
        version = data.draw(st.integers(1, len(self.worlds) - 1))
        self.clock.advance(10)
        before, target = self.worlds[-1], self.worlds[version]
        world = before.copy()
        world.heads = dict(target.heads)
        for key, number in target.heads.items():
            world.texts[key, number] = target.texts[key, number]
        commit = self.catalog.rollback(version)
        if world != before:
            self.worlds.append(world)
            self.times.append(commit.time_ns)
        assert commit.version == len(self.worlds) - 1

    @rule()
    def reopen(self) -> None:
        """Read everything from the files again."""
        self.catalog = self.opened()

    @rule()
    @precondition(lambda self: len(self.worlds) > 2)
    def apply_an_overtaken_plan(self) -> None:
        """A plan of an older head is refused."""
        head = self.catalog.head
        with pytest.raises(CommitConflictError):
            self.catalog.apply([TRADES_SOURCE], expected_head=head - 1)

    @rule(data=st.data())
    def read_an_older_version(self, data: st.DataObject) -> None:
        """Any version, by number and by time, through any handle."""
        version = data.draw(st.integers(0, len(self.worlds) - 1))
        handle = data.draw(st.sampled_from([self.catalog, self.other]))
        self.agree(handle.at(version).heads, self.worlds[version], handle, version)
        if version:
            moment = self.times[version] + data.draw(st.integers(0, 9)) * (version == len(self.worlds) - 1)
            assert handle.at(_text(moment)).version == version

    def agree(self, heads: object, world: World, handle: Catalog, version: int) -> None:
        """Compare a snapshot with the model: versions in force, and the meaning of every version."""
        snapshot = handle.at(version)
        fixed = {("source", "trades"), ("entity", "symbol")}
        assert {k: v for k, v in dict(heads).items() if k not in fixed} == world.heads  # type: ignore[call-overload]
        for (key, number), meaning in world.meanings.items():
            definition = snapshot.get(f"{key[1]}@{number}", key[0])
            assert definition.spec()["description"] == world.texts[key, number]
            if isinstance(definition, FeatureView):
                assert definition.features[0].expression == f"price * {meaning[0]}"
            elif isinstance(definition, FeatureService):
                assert str(definition.features[0]) == meaning[0]
                assert snapshot.record(f"{key[1]}@{number}").pins == (
                    f"feature_view/{meaning[0]}@{meaning[1]}",
                )

    @invariant()
    def the_head_agrees(self) -> None:
        """The newest snapshot is the model's."""
        version = len(self.worlds) - 1
        assert self.catalog.head == version
        self.agree(self.catalog.snapshot().heads, self.worlds[-1], self.catalog, version)


def _text(time_ns: int) -> str:
    return f"1970-01-01T00:00:00.{time_ns:09d}Z"


TestCatalogStates = CatalogMachine.TestCase
TestCatalogStates.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


@pytest.mark.soak
@pytest.mark.timeout(1800)
class TestCatalogStatesAtLength(CatalogMachine.TestCase):  # type: ignore[valid-type,misc]
    """The same machine, at length."""

    settings = settings(max_examples=1500, stateful_step_count=50, deadline=None)
