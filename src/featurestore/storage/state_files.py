"""Carried state on disk: what earlier rows leave behind at the end of a date, so that none is read again.

A state file holds the states of one bucket, each an Arrow stream of its own with its own checksum: a run that
goes on from one date reads that date's bytes and no others. STATES.json lists a version's files and states.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, NoReturn, Self

import pyarrow as pa

from featurestore.core.canonical import canonical_json, digest_bytes
from featurestore.errors import CorruptDataError, NotFoundError
from featurestore.storage.files import AnyPath, announce, read_file, storage_errors, write_file
from featurestore.storage.objects import object_errors
from featurestore.storage.version_files import object_of, share_files

STATES: Final = "STATES.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The rows of a source that readers after a date may still need, of one bucket.

    Attributes:
        date: Rows up to the end of this date are taken in.
        bucket: -1 where every bucket needs the rows.
        key: Digest of all that decided what was kept, apart from the rows themselves.
        file: The file that holds it, `offset` and `bytes` where in it.
        xxh3: xxh3-128 of these bytes.
    """

    source: str
    date: str
    bucket: int
    key: str
    rows: int
    file: str
    offset: int
    bytes: int
    xxh3: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StateFile:
    """A file of states.

    Attributes:
        xxh3: xxh3-128 of the whole file.
    """

    file: str
    bytes: int
    xxh3: str


@dataclass(frozen=True, slots=True)
class StateIndex:
    """All states of a version, ordered by source, bucket and date."""

    states: tuple[State, ...] = ()
    files: tuple[StateFile, ...] = ()

    def to_json(self) -> bytes:
        """Write canonical JSON."""
        spec = {"states": [asdict(s) for s in self.states], "files": [asdict(f) for f in self.files]}
        return canonical_json(spec).encode() + b"\n"


class StateWriter:
    """Writes the states of one chain into one file, one after the other; nothing is kept without a state."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / name
        self._file: BinaryIO | None = None
        self._hasher: Any = None
        self._states: list[State] = []
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def add(self, table: pa.Table, *, source: str, date: str, bucket: int, key: str) -> None:
        """Append one state.

        Raises:
            StorageError: disk full or no permission.
        """
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        data = memoryview(sink.getvalue())
        self._put(data)
        self._states.append(
            State(
                source=source,
                date=date,
                bucket=bucket,
                key=key,
                rows=table.num_rows,
                file=self._path.name,
                offset=self._end - len(data),
                bytes=len(data),
                xxh3=digest_bytes(data),
            )
        )

    def finish(self) -> StateIndex:
        """Force the file to the disk and say what it holds; without states there is no file.

        Raises:
            StorageError: the disk refused.
        """
        if self._file is None:
            return StateIndex()
        with storage_errors("write", self._path):
            self._file.flush()
            announce("fsync", self._path)
            os.fsync(self._file.fileno())
        whole = StateFile(file=self._path.name, bytes=self._end, xxh3=self._hasher.hexdigest())
        return StateIndex(tuple(self._states), (whole,))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            # What `finish` did not force to the disk belongs to a run that failed already.
            with suppress(OSError):
                self._file.close()

    def _put(self, data: memoryview) -> None:
        import xxhash  # noqa: PLC0415 -- readers of datasets do without it

        if self._file is None:
            announce("write", self._path)
            with storage_errors("write", self._path):
                self._file = self._path.open("xb")
            self._hasher = xxhash.xxh3_128()
        with storage_errors("write", self._path):
            self._file.write(data)
        self._hasher.update(data)
        self._end += len(data)


def read_state(folder: AnyPath, state: State) -> pa.Table:
    """Read one state, memory-mapped, or by one request; nothing else of its file is touched.

    Raises:
        CorruptDataError: the bytes are not those that were written.
        NotFoundError: the file is gone.
    """
    data = _state_bytes(folder, state.file, state.offset, state.bytes)
    path = folder / state.file
    if len(data) != state.bytes or digest_bytes(memoryview(data)) != state.xxh3:
        _refuse(path, f"the state of {state.source!r} at the end of {state.date}")
    table = pa.ipc.open_stream(data).read_all()
    if table.num_rows != state.rows:
        _refuse(path, f"the number of rows at the end of {state.date}")
    return table


def _state_bytes(folder: AnyPath, name: str, start: int, size: int) -> pa.Buffer:
    if isinstance(folder, Path):
        with storage_errors("read", folder / name):
            mapped = pa.memory_map(str(folder / name))
            mapped.seek(min(start, mapped.size()))
            return mapped.read_buffer(size)
    remote = object_of(folder.parent, name)
    with object_errors("read", remote):
        return pa.py_buffer(remote.store.filesystem.cat_file(remote.key, start=start, end=start + size))


def index_digest(data: bytes) -> str:
    """Hash STATES.json as the manifest records it."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def read_index(folder: AnyPath, digest: str) -> StateIndex:
    """Read the states of a version; `digest` is the one in its manifest, empty where there are none.

    States only save work: whoever has a reason to may remove STATES.json, then the state files.

    Raises:
        CorruptDataError: the file is not what was written.
    """
    if not digest:
        return StateIndex()
    path = folder / STATES
    try:
        data = read_file(path)
    except NotFoundError:
        return StateIndex()
    if index_digest(data) != digest:
        _refuse(path, "its digest")
    spec: Mapping[str, Any] = json.loads(data)
    return StateIndex(tuple(State(**s) for s in spec["states"]), tuple(StateFile(**f) for f in spec["files"]))


def write_index(folder: AnyPath, index: StateIndex) -> str:
    """Write STATES.json; returns its digest for the manifest, empty where there are no states.

    Raises:
        StorageError: disk full or no permission.
    """
    if not index.states:
        return ""
    data = index.to_json()
    write_file(folder / STATES, data)
    return index_digest(data)


def link_states(folder: AnyPath | None, target: AnyPath, index: StateIndex) -> None:
    """Let another version's folder have the files of an index's states.

    Raises:
        NotFoundError: one is gone.
    """
    if folder is not None:
        share_files(folder, target, [whole.file for whole in merged([index]).files])


def merged(indexes: Iterable[StateIndex]) -> StateIndex:
    """Put indexes together; of files only those that a state lies in."""
    states: list[State] = []
    files: dict[str, StateFile] = {}
    for index in indexes:
        states += index.states
        files |= {f.file: f for f in index.files}
    used = {s.file for s in states}
    ordered = sorted(states, key=lambda s: (s.source, s.bucket, s.date))
    return StateIndex(tuple(ordered), tuple(files[name] for name in sorted(used)))


def check_states(folder: AnyPath, index: StateIndex) -> int:
    """Hash every state file and every state again; returns the bytes of the files.

    Raises:
        CorruptDataError: something is not as it was written.
        NotFoundError: a file is gone.
    """
    for whole in index.files:
        data = _state_bytes(folder, whole.file, 0, whole.bytes + 1)
        if len(data) != whole.bytes or digest_bytes(memoryview(data)) != whole.xxh3:
            _refuse(folder / whole.file, "its checksum")
    for state in index.states:
        read_state(folder, state)
    return sum(f.bytes for f in index.files)


def _refuse(path: AnyPath, what: str) -> NoReturn:
    raise CorruptDataError(
        f"state file {str(path)!r} is damaged: {what} is not what was recorded",
        hint="materialize again without a start: it reads the sources and writes new states",
        path=str(path),
    )
