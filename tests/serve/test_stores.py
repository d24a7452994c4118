"""Every online store keeps the same rules."""

import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tests.serve.house import DEFINITIONS, F64, FLOW, SCHEMAS, SYMBOL, quotes, snapshot_of

from featurestore.catalog.aggregation import Aggregation
from featurestore.catalog.feature_view import FeatureView
from featurestore.core.clock import ManualClock
from featurestore.errors import CorruptDataError, OnlineStoreError
from featurestore.serve.backend import OnlineBackend
from featurestore.serve.lmdb_store import LmdbStore
from featurestore.serve.memory_store import MemoryStore
from featurestore.serve.redis_store import RedisStore
from featurestore.serve.store import Edit
from featurestore.testing.online_conformance import (
    FINGERPRINT,
    TABLE,
    OnlineStoreConformance,
    append,
    put,
)

PACE = FeatureView(
    "pace",
    source=FLOW,
    entities=[SYMBOL],
    features={"mean": "mean_bid", "where": "last_venue"},
    aggregations=[Aggregation("mean_bid", "max", 300, "highest")],
)
PACE_ROWS = pa.schema([("mean", F64), ("where", pa.string()), ("highest", F64)])


class TestMemoryStore(OnlineStoreConformance):
    """In memory."""

    @pytest.fixture
    def store(self) -> Iterator[MemoryStore]:
        with closing(MemoryStore()) as store:
            yield store


class TestLmdbStore(OnlineStoreConformance):
    """On a local disk."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[LmdbStore]:
        with closing(LmdbStore(tmp_path)) as store:
            yield store

    def test_a_store_opened_again_holds_what_was_written(self, store: LmdbStore) -> None:
        store.open_table(TABLE, FINGERPRINT)
        store.update([put(TABLE, {b"a": b"1"}, floor=7)])
        store.close()
        with closing(LmdbStore(store.path)) as again:
            assert again.read([(TABLE, [b"a"])]) == [[b"1"]]
            assert again.floor_ns(TABLE) == 7
            assert again.tables() == {TABLE: FINGERPRINT}

    def test_two_stores_of_one_process_share_the_folder(self, store: LmdbStore) -> None:
        store.open_table(TABLE, FINGERPRINT)
        with closing(LmdbStore(store.path)) as other:
            other.update([append(TABLE, b"a", b"1")])
            assert store.read_one(TABLE, b"a") == b"1"
        assert store.read_one(TABLE, b"a") == b"1"

    def test_another_process_sees_a_commit_at_once(self, store: LmdbStore) -> None:
        store.open_table(TABLE, FINGERPRINT)
        program = (
            "import sys; from featurestore.serve.lmdb_store import LmdbStore as S; s = S(sys.argv[1]);"
            "from featurestore.testing.online_conformance import append, TABLE;"
            "s.update([append(TABLE, b'a', b'child')]); s.close()"
        )
        subprocess.run([sys.executable, "-c", program, store.path], check=True)
        assert store.read_one(TABLE, b"a") == b"child"

    @pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")  # JAX's, where it is loaded
    def test_a_store_does_not_cross_a_fork(self, store: LmdbStore) -> None:
        store.open_table(TABLE, FINGERPRINT)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                store.read([(TABLE, [b"a"])])
                os.write(writing, b"read")
            except OnlineStoreError:
                os.write(writing, b"refused")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            assert pipe.read() == b"refused"

    def test_the_folder_is_closed_to_others(self, tmp_path: Path) -> None:
        with closing(LmdbStore(tmp_path / "online")):
            assert (tmp_path / "online").stat().st_mode & 0o077 == 0

    def test_a_folder_that_cannot_be_made_is_a_typed_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OnlineStoreError, match="failed"):
            LmdbStore(tmp_path / "file" / "online")

    def test_a_full_map_is_a_typed_error_and_what_was_there_stays(self, tmp_path: Path) -> None:
        with closing(LmdbStore(tmp_path, map_bytes=1 << 20)) as store:
            store.open_table(TABLE, FINGERPRINT)
            store.update([put(TABLE, {b"a": b"1"})])
            with pytest.raises(OnlineStoreError, match="map"):
                store.update([put(TABLE, {b"b": bytes(1 << 21)})])
            assert store.read([(TABLE, [b"a", b"b"])]) == [[b"1", None]]
            store.update([put(TABLE, {b"b": b"2"})])

    def test_two_long_keys_of_one_hash_are_told_apart(
        self, store: LmdbStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("featurestore.serve.lmdb_store.xxhash.xxh3_128_digest", lambda _: bytes(16))
        store.open_table(TABLE, FINGERPRINT)
        store.update([put(TABLE, {b"x" * 600: b"1"})])
        with pytest.raises(CorruptDataError, match="same hash"):
            store.read([(TABLE, [b"y" * 600])])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        pytest.skip(
            "neither redis-server nor valkey-server is installed (Debian: apt-get install redis-server)"
        )
    folder, port = tmp_path_factory.mktemp("redis"), free_port()
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


class TestRedisStore(OnlineStoreConformance):
    """On a server of the test's own."""

    @pytest.fixture
    def store(self, redis_url: str, request: pytest.FixtureRequest) -> Iterator[RedisStore]:
        with closing(RedisStore(redis_url, project=request.node.name)) as store:
            yield store

    def test_a_script_the_server_forgot_is_sent_again(self, store: RedisStore, redis_url: str) -> None:
        import redis  # noqa: PLC0415 -- to make the server forget

        store.open_table(TABLE, FINGERPRINT)
        store.update([append(TABLE, b"a", b"1")])
        with closing(redis.Redis.from_url(redis_url)) as client:
            client.script_flush()
        store.update([append(TABLE, b"a", b"2")])
        assert store.read([(TABLE, [b"a"])]) == [[b"12"]]

    def test_more_keys_than_one_script_takes_are_put_in_parts(self, store: RedisStore) -> None:
        store.open_table(TABLE, FINGERPRINT)
        rows: dict[bytes, bytes | None] = {str(n).encode(): b"v" for n in range(5_001)}
        store.update([put(TABLE, rows)])
        assert store.read([(TABLE, list(rows))]) == [[b"v"] * 5_001]
        assert len(dict(store.scan(TABLE))) == 5_001

    def test_a_server_that_is_not_there_is_a_typed_error_without_the_password(self) -> None:
        with pytest.raises(OnlineStoreError) as caught:
            RedisStore(f"redis://user:secret@127.0.0.1:{free_port()}/0")
        assert "secret" not in str(caught.value)


@pytest.fixture
def read_only_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with a store in it, mounted so that nobody can write; skips where mounting is not allowed."""
    folder, seen = tmp_path / "written", tmp_path / "seen"
    LmdbStore(folder).close()
    seen.mkdir()
    for options in (["--bind", str(folder)], ["-o", "remount,ro,bind"]):
        done = subprocess.run(["mount", *options, str(seen)], check=False, capture_output=True)  # noqa: S607
        if done.returncode:
            pytest.skip("mounting a folder read-only is not allowed here")
    yield seen
    subprocess.run(["umount", str(seen)], check=True)  # noqa: S607


def test_a_folder_that_cannot_be_written_to_says_why_readers_need_that(read_only_folder: Path) -> None:
    with pytest.raises(OnlineStoreError, match="Read-only file system") as caught:
        LmdbStore(read_only_folder)
    assert "lock file" in str(caught.value.hint)


def test_every_store_gives_the_same_answers_to_the_same_deliveries(tmp_path: Path, redis_url: str) -> None:
    draw = np.random.default_rng(5)
    history = quotes(
        [
            {
                "symbol": str(draw.choice(["A", "B"])),
                "ts": int(draw.integers(0, 1000)),
                "bid": float(draw.random()),
                "size": int(draw.integers(0, 9)),
                "seq": at,
            }
            for at in range(60)
        ]
    )
    snapshot = snapshot_of([*DEFINITIONS, PACE], {**SCHEMAS, "pace": PACE_ROWS})
    answers = []
    for store in (MemoryStore(), LmdbStore(tmp_path), RedisStore(redis_url, project="alike")):
        backend = OnlineBackend(lambda: snapshot, store, clock=ManualClock(1000), history_ns=0)
        for part in np.array_split(draw.permutation(60), 7):
            backend.push("quotes", history.take(pa.array(part)))
        backend.push("quotes", history)
        erased = backend.erase("symbol", {"symbol": ["B"]})
        found = backend.get_online_features(["model", "pace"], {"symbol": ["A", "B", "C"]}, now=1000)
        answers.append((found.to_dict(), found.statuses(), found.event_timestamps(), erased))
        backend.close()
    assert answers[0] == answers[1] == answers[2]
    assert answers[0][0]["bid"][0] is not None
    assert answers[0][0]["highest"][0] is not None


_TOO_MUCH = 1 << 44  # of 47 bits of address space


def _writers() -> int:
    return sum(thread.name == "lmdb-writer" for thread in threading.enumerate())


def test_stores_that_nobody_closed_give_back_their_map_and_their_thread(tmp_path: Path) -> None:
    def leave(number: int) -> None:
        store = LmdbStore(tmp_path / str(number), map_bytes=_TOO_MUCH)
        store.open_table(TABLE, FINGERPRINT)
        leads_back = Edit(TABLE, [b"k"], lambda *_: [b"v" if store.path else b""], lambda floor: floor)
        store.update([leads_back])
        if number % 3:
            store.cycle = store  # type: ignore[attr-defined] # found by a collection alone

    before = _writers()
    gc.disable()
    try:
        for number in range(20):
            leave(number)
    finally:
        gc.enable()
    gc.collect()
    with closing(LmdbStore(tmp_path / "0")) as again:
        assert again.read([(TABLE, [b"k"])]) == [[b"v"]]
        maps = Path("/proc/self/maps").read_text().splitlines()
        assert [
            line.endswith("/0/data.mdb") for line in maps if f"{tmp_path}/" in line and "data" in line
        ] == [True]
        assert _writers() <= before


def test_one_store_too_many_says_why(tmp_path: Path) -> None:
    held = []

    def hold() -> None:
        for number in range(20):
            held.append(LmdbStore(tmp_path / str(number), map_bytes=_TOO_MUCH))  # noqa: PERF401 -- kept on failure

    with pytest.raises(OnlineStoreError, match="Cannot allocate memory") as refused:
        hold()
    count = len(held)
    for store in held:
        store.close()
    assert count >= 5
    assert "online stores are open in this process" in refused.value.hint
