"""Streams of requests: what waits travels together, and each gets its own answer, in order."""

import random
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from featurestore.errors import NotFoundError, SchemaError
from featurestore.serve.client_messages import Question, SchemaCache
from featurestore.serve.client_stream import RequestStream
from featurestore.serve.grpc_client import OnlineClient
from featurestore.serve.proto import online_pb2 as pb

FEATURES = ["quote", "flow", "last"]


def requests(count: int) -> list[Any]:
    """Requests of all shapes: one row and several, nulls, unknown ones, Arrow, none at all."""
    draw = random.Random(5)  # noqa: S311 -- a test's dice
    shapes = [
        {"symbol": ["IBM"]},
        {"symbol": ["AIG"]},
        {"symbol": ["nobody"]},
        {"symbol": ["IBM", "AIG", "IBM"]},
        {"symbol": ["IBM", None]},
        pa.table({"symbol": ["AIG", "IBM"]}),
        [{"symbol": "IBM"}],
    ]
    return [draw.choice(shapes) for _ in range(count)]


@pytest.mark.parametrize("pack", [1, 3, 64])
@pytest.mark.parametrize("listed", [True, False], ids=["a list", "a generator"])
def test_a_stream_answers_as_calls_do_one_by_one_and_in_order(
    client: OnlineClient, pack: int, listed: bool
) -> None:
    asked = requests(200)
    found = list(client.stream(FEATURES, asked if listed else iter(asked), pack=pack))
    assert len(found) == len(asked)
    for rows, answer in zip(asked[:40], found, strict=False):
        wanted = client.get_online_features(FEATURES, rows)
        assert answer.to_arrow().equals(wanted.to_arrow())
        assert answer.statuses() == wanted.statuses()
        assert answer.event_timestamps() == wanted.event_timestamps()
        assert answer.num_rows == wanted.num_rows


def test_what_waits_travels_together_by_shape_and_size() -> None:
    asked = (
        [{"symbol": ["A"]}] * 5 + [{"symbol": [None]}] * 2 + [{"symbol": [1]}] + [{"symbol": ["A"] * 600}] * 2
    )
    feed = RequestStream(Question(("quote",)), asked, SchemaCache(), pack=3)
    sizes = []
    for data in feed:
        (column,) = pb.GetOnlineFeaturesRequest.FromString(data).entities
        sizes.append(len(column.strings) or len(column.integers) or -1)
    assert sizes == [3, 2, -1, -1, 1, 600, 600]
    assert feed.failure is None


def test_a_lone_request_is_answered_before_the_next_is_known(client: OnlineClient) -> None:
    answered = threading.Event()
    seen: list[object] = []

    def asks() -> Iterator[Any]:
        for _ in range(5):
            yield {"symbol": ["IBM"]}
            assert answered.wait(10)
            answered.clear()

    for answer in client.stream(["quote:bid"], asks()):
        seen += answer.to_dict()["bid"]
        answered.set()
    assert seen == [3.0] * 5


def test_what_the_caller_raises_comes_back_to_the_caller(client: OnlineClient) -> None:
    def asks() -> Iterator[Any]:
        yield {"symbol": ["IBM"]}
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(client.stream(["quote"], asks()))
    with pytest.raises(SchemaError, match="int"):
        list(client.stream(["quote"], [{"symbol": ["IBM"]}, 7]))


def test_a_request_that_fails_ends_the_stream(client: OnlineClient) -> None:
    with pytest.raises(NotFoundError, match="qoute"):
        list(client.stream(["qoute"], [{"symbol": ["IBM"]}] * 10))
    stream = client.stream(["quote"], [{"symbol": ["IBM"]}, {"symbol": [7]}, {"symbol": ["IBM"]}])
    assert next(stream).num_rows == 1
    with pytest.raises(SchemaError, match="'symbol'"):
        next(stream)


def test_a_caller_that_stops_early_leaves_nothing_behind(client: OnlineClient) -> None:
    taken = 0

    def endless() -> Iterator[Any]:
        nonlocal taken
        while True:
            taken += 1
            yield {"symbol": ["IBM"]}

    stream = client.stream(["quote"], endless())
    assert next(stream).num_rows == 1
    stream.close()
    mine = [thread for thread in threading.enumerate() if thread.name == "stream-requests"]
    for thread in mine:
        thread.join(30)
    assert not any(thread.is_alive() for thread in mine)
    assert taken < 100_000
