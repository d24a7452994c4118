"""What an erasure reaches beyond versions and sources: the online store and logs of its answers."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from featurestore.core.arguments import folder, listed

if TYPE_CHECKING:
    from featurestore.materialize.erasure.subject import Subject
    from featurestore.store.served import ServedStore


class Outside:
    """The rooms of a store that hold no versions, as an erasure sees them."""

    def __init__(
        self,
        store: "ServedStore",
        answer_logs: Sequence[str | PathLike[str]],
        write_online: Callable[[str, int | None], None],
    ) -> None:
        self._store = store
        self._write_online = write_online
        root = store.root.removeprefix("file://")
        logs = listed("the erasure", "answer_logs", answer_logs, "folders")
        self._logs = [Path(folder("the erasure", "answer_logs", log)) for log in logs]
        if "://" not in root:
            self._logs.insert(0, Path(root))

    @property
    def folders(self) -> list[Path]:
        """Folders that prove themselves: the embedded online store's."""
        location = self._store.online_location
        return [] if "://" in location else [Path(location).resolve()]

    @property
    def files(self) -> list[Path]:
        """Logs of answers, wherever they are."""
        from featurestore.serve.answer_log import answer_files

        return [path for folder in self._logs for path in answer_files(folder)]

    def count(self, subject: "Subject") -> int:
        """Count the online entries of a subject, as `erase` will."""
        return self._store.online.count(subject.entity, subject.keys)

    def erase(self, subject: "Subject") -> int:
        """Delete a subject online; views whose values may be made from its rows are written again."""
        from featurestore.serve.erasure import mixed_tables

        online = self._store.online
        mixed = mixed_tables(online, subject.entity)
        erased = online.erase(subject.entity, subject.keys)
        for view in mixed:
            self._write_online(view, None)
        return erased

    def erase_logs(self, subject: "Subject") -> Mapping[str, int]:
        """Take a subject out of logged answers."""
        from featurestore.serve.answer_log import erase_answers

        def remaining(table: pa.Table) -> pa.Table:
            return table.filter(pa.array(~subject.mask(table)))

        found = [erase_answers(folder, remaining) for folder in self._logs]
        return {f"answers/{path}": rows for one in found for path, rows in one.items()}

    def residue(self, subject: "Subject") -> Mapping[str, int]:
        """Count erased keys of which something is still online."""
        return self._store.online.residue(subject.entity, subject.keys)
