"""Requests of a stream: those that wait when a message can be sent travel in it together.

A message costs a server and a client far more than a request of one entity. Requests of one shape in one
message are read as one batch, and each gets its own rows of the answer.
"""

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Final

from featurestore.serve.client_messages import (
    ClientResponse,
    Question,
    SchemaCache,
    entity_bytes,
    entity_kind,
)
from featurestore.serve.request import Column, EntityRows, Readers, read_entity_rows

_ROWS_MAX: Final = 1024
_AHEAD: Final = 1024
Shape = tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class _Sent:
    """A message on its way: the requests in it."""

    name: object
    parts: Sequence[Readers]
    rows: int


class RequestStream:
    """Turns what a caller asks, one after the other, into messages, and messages back into answers.

    Iterating happens on the sender's thread, `answers` on the caller's.
    """

    def __init__(
        self, question: Question, entity_rows: Iterable[EntityRows], schemas: SchemaCache, *, pack: int
    ) -> None:
        """Take what is asked; at most `pack` requests travel in one message."""
        self._question = question
        self._schemas = schemas
        self._pack = pack
        self._sent: deque[_Sent] = deque()
        self._heads: dict[object, tuple[int, bytes]] = {}
        self._waiting: _Waiting | None = None
        self._listed: Sequence[EntityRows] = ()
        if isinstance(entity_rows, (list, tuple)):
            self._listed = entity_rows
        else:
            self._waiting = _Waiting(entity_rows)
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        """Yield messages. What fails on this side is kept for the caller, and ends the stream."""
        try:
            for group in self._groups():
                yield self._message(group)
        except Exception as error:  # noqa: BLE001 -- it is the caller's, who waits on another thread
            self.failure = error

    def answers(self, data: bytes) -> Iterator[ClientResponse]:
        """Yield the answers to the requests of the oldest message that has none yet."""
        sent = self._sent.popleft()
        received = self._schemas.received(sent.name, sent.rows, data, arrow=False)
        first = 0
        for part in sent.parts:
            yield ClientResponse(part, received, first)
            first += part.rows

    def close(self) -> None:
        """Take nothing more from the caller."""
        if self._waiting is not None:
            self._waiting.close()

    def _groups(self) -> Iterator[list[Readers]]:
        """Yield requests that wait together and are of one shape."""
        group: list[Readers] = []
        shape: Shape | None = None
        rows = 0
        for some in self._batches():
            for asked in some:
                readers = read_entity_rows(asked)
                mine = tuple((n, entity_kind(c)) for n, c in readers.columns.items())
                whole = mine == shape and all(kind is not None for _, kind in mine)
                if group and not (whole and len(group) < self._pack and rows + readers.rows <= _ROWS_MAX):
                    yield group
                    group, rows = [], 0
                group.append(readers)
                shape, rows = mine, rows + readers.rows
            if group and self._waiting is not None:
                yield group  # nothing more waits: go
                group, rows = [], 0
        if group:
            yield group

    def _batches(self) -> Iterator[Sequence[EntityRows]]:
        if self._waiting is None:
            yield self._listed
            return
        while some := self._waiting.take(self._pack):
            yield some

    def _message(self, group: Sequence[Readers]) -> bytes:
        columns: dict[str, Column] = dict(group[0].columns)
        if len(group) > 1:
            columns = {name: [v for part in group for v in part.columns[name]] for name in columns}
        name = self._question.name(columns)
        schema_id = self._schemas.id_of(name)
        head = self._heads.get(name)
        if head is None or head[0] != schema_id:
            head = self._heads[name] = (schema_id, self._question.to_bytes(schema_id))
        self._sent.append(_Sent(name, group, sum(part.rows for part in group)))
        return head[1] + entity_bytes(columns)


class _Waiting:
    """What a caller's iterable has given so far, taken from it by a thread of its own.

    Only so can it be known what waits without waiting for it. The thread stays a bounded number ahead.
    """

    def __init__(self, entity_rows: Iterable[EntityRows]) -> None:
        self._rows = entity_rows
        self._queue: SimpleQueue[tuple[Any, Exception | None, bool]] = SimpleQueue()
        self._room = threading.Semaphore(_AHEAD)
        self._closed = False
        self._ended = False
        threading.Thread(target=self._pull, daemon=True, name="stream-requests").start()

    def take(self, most: int) -> Sequence[EntityRows]:
        """Return what waits, at least one; nothing at the end."""
        out: list[EntityRows] = []
        while not self._ended and (not out or (len(out) < most and not self._queue.empty())):
            asked, failure, last = self._queue.get()
            self._room.release()
            if failure is not None:
                raise failure
            if last:
                self._ended = True
            else:
                out.append(asked)
        return out

    def close(self) -> None:
        self._closed = True
        self._room.release()
        self._queue.put((None, None, True))

    def _pull(self) -> None:
        failure = None
        try:
            for asked in self._rows:
                self._room.acquire()
                if self._closed:
                    return
                self._queue.put((asked, None, False))
        except Exception as error:  # noqa: BLE001 -- it is the caller's, and raised there
            failure = error
        self._queue.put((None, failure, True))
