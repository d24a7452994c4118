"""The rules every `OnlineStore` keeps, as tests to inherit.

class TestMyStore(OnlineStoreConformance):
    @pytest.fixture
    def store(self, tmp_path):
        with closing(MyStore(tmp_path)) as store:
            yield store
"""

# ruff: noqa: D102 -- a test's name is a sentence

import threading
from collections.abc import Callable, Sequence
from typing import Any

from featurestore.core.time import INT64_MIN
from featurestore.errors import OnlineStoreError, SchemaError
from featurestore.serve.store import Delivery, Edit, OnlineStore

TABLE = "quote@1"
FINGERPRINT = "0" * 32
Values = Sequence[bytes | None]


def put(table: str, rows: dict[bytes, bytes | None], floor: int = INT64_MIN) -> Edit:
    """Return an edit that replaces what keys hold."""
    return Edit(table, list(rows), lambda *_: list(rows.values()), lambda _: floor)


def append(table: str, key: bytes, what: bytes) -> Edit:
    """Return an edit whose result depends on what is there."""

    def merge(old: Values, at_ns: int) -> Values:
        del at_ns
        return [(old[0] or b"") + what]

    return Edit(table, [key], merge, lambda before: before)


def raised(kind: type[BaseException], call: Callable[[], Any]) -> BaseException:
    """Return the error that a call ends with, which must be of a kind.

    Raises:
        AssertionError: it ends without.
    """
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


class OnlineStoreConformance:
    """Inherit, and give a fixture `store` that makes an empty one."""

    def test_a_key_that_was_never_written_holds_nothing(self, store: OnlineStore) -> None:
        assert store.read([(TABLE, [b"a"]), ("other@1", [b"a", b"b"])]) == [[None], [None, None]]
        assert store.floor_ns(TABLE) == INT64_MIN
        assert store.tables() == {}

    def test_what_was_written_is_read_back_in_the_order_asked(self, store: OnlineStore) -> None:
        store.open_table(TABLE, FINGERPRINT)
        store.open_table("flow@2", FINGERPRINT)
        assert store.update([put(TABLE, {b"a": b"1", b"b": b"2"}), put("flow@2", {b"a": b"3"})])
        assert store.read([("flow@2", [b"a"]), (TABLE, [b"b", b"x", b"a", b"b"])]) == [
            [b"3"],
            [b"2", None, b"1", b"2"],
        ]

    def test_keys_and_values_are_any_bytes_of_any_length(self, store: OnlineStore) -> None:
        store.open_table(TABLE, FINGERPRINT)
        keys = [
            b"\0",
            b"\xff" * 4,
            b"k" * 500,
            b"k" * 501,
            b"k" * 511,
            b"k" * 5000 + b"1",
            b"k" * 5000 + b"2",
        ]
        rows: dict[bytes, bytes | None] = {key: key + bytes(100_000) for key in keys}
        store.update([put(TABLE, rows)])
        assert store.read([(TABLE, keys)]) == [list(rows.values())]
        assert dict(store.scan(TABLE)) == rows

    def test_a_table_remembers_its_layout(self, store: OnlineStore) -> None:
        store.open_table(TABLE, FINGERPRINT)
        store.open_table(TABLE, FINGERPRINT)
        raised(SchemaError, lambda: store.open_table(TABLE, "1" * 32))
        assert store.tables() == {TABLE: FINGERPRINT}

    def test_a_merge_sees_what_is_there_and_nothing_removes_a_key_but_none(self, store: OnlineStore) -> None:
        store.open_table(TABLE, FINGERPRINT)
        store.update([append(TABLE, b"a", b"1")])
        store.update([append(TABLE, b"a", b"2")])
        assert store.read([(TABLE, [b"a"])]) == [[b"12"]]
        store.update([put(TABLE, {b"a": None})])
        assert store.read([(TABLE, [b"a"])]) == [[None]]
        assert list(store.scan(TABLE)) == []

    def test_a_floor_never_goes_back(self, store: OnlineStore) -> None:
        store.open_table(TABLE, FINGERPRINT)
        seen: list[int] = []

        def merge(old: Values, at_ns: int) -> Values:
            seen.append(at_ns)
            return old

        for floor in (5, 2**62, -7, INT64_MIN):
            store.update([Edit(TABLE, [b"a"], merge, lambda _, floor=floor: floor)])  # type: ignore[misc]
        assert store.floor_ns(TABLE) == 2**62
        assert seen == [5, 2**62, 2**62, 2**62]

    def test_a_numbered_delivery_is_applied_once(self, store: OnlineStore) -> None:
        store.open_table(TABLE, FINGERPRINT)
        first, second = Delivery("p", 1), Delivery("p", 2)
        assert store.update([append(TABLE, b"a", b"1")], first)
        assert not store.update([append(TABLE, b"a", b"1")], first)
        assert store.update([append(TABLE, b"a", b"2")], second)
        assert not store.update([append(TABLE, b"a", b"1")], first)
        assert store.update([append(TABLE, b"a", b"3")], Delivery("another", 1))
        assert store.read([(TABLE, [b"a"])]) == [[b"123"]]

    def test_a_change_to_a_table_that_is_not_there_is_refused(self, store: OnlineStore) -> None:
        raised(OnlineStoreError, lambda: store.update([append(TABLE, b"a", b"1")]))

    def test_a_merge_that_fails_changes_nothing(self, store: OnlineStore) -> None:
        store.open_table(TABLE, FINGERPRINT)
        store.update([append(TABLE, b"a", b"1")])

        def fails(*_: object) -> Values:
            raise SchemaError("no")

        edits = [append(TABLE, b"a", b"2"), Edit(TABLE, [b"b"], fails, lambda _: 9)]
        raised(SchemaError, lambda: store.update(edits))
        store.update([append(TABLE, b"b", b"3")])
        assert store.read([(TABLE, [b"b"])]) == [[b"3"]]
        assert store.floor_ns(TABLE) == INT64_MIN

    def test_changes_at_once_lose_nothing(self, store: OnlineStore) -> None:
        store.open_table(TABLE, FINGERPRINT)

        def work() -> None:
            for _ in range(20):
                store.update([append(TABLE, b"a", b"x"), append(TABLE, b"b", b"y")])

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.read([(TABLE, [b"a", b"b"])]) == [[b"x" * 80, b"y" * 80]]

    def test_a_closed_store_says_so(self, store: OnlineStore) -> None:
        store.open_table(TABLE, FINGERPRINT)
        store.close()
        store.close()
        raised(OnlineStoreError, lambda: store.read([(TABLE, [b"a"])]))
        raised(OnlineStoreError, lambda: store.update([append(TABLE, b"a", b"1")]))
