"""FeatureStore: the facade. It opens rooms when they are needed and holds no rule of its own."""

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Final

from featurestore.catalog.definition import Definition
from featurestore.catalog.entity import Entity
from featurestore.catalog.refs import parse_ref
from featurestore.catalog.source import Source
from featurestore.core.arguments import refuse
from featurestore.core.names import near
from featurestore.core.time import Instant, instant_ns
from featurestore.errors import DefinitionError
from featurestore.store.opened import Named, name_of
from featurestore.store.served import ServedStore

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.catalog.catalog import Commit
    from featurestore.catalog.plan import Plan
    from featurestore.materialize.erasure.report import EraseReport
    from featurestore.materialize.executors import Executor
    from featurestore.materialize.ingest import IngestResult
    from featurestore.materialize.plan import MaterializationPlan
    from featurestore.materialize.progress import Progress
    from featurestore.materialize.result import MaterializeResult
    from featurestore.serve.backend import WriteResult

PUSH_TO: Final = ("both", "online", "offline")


class FeatureStore(ServedStore):
    """A feature store: a folder or URL that holds a catalog, datasets and an online store.

    Attributes:
        root: The folder or URL.
        config: Its settings, from `feature_store.yaml` unless given.
    """

    def plan(
        self, objects: Sequence[Definition] | Definition | None = None, *, complete: bool = False
    ) -> "Plan":
        """Say what `apply` would change, and check it against the sources as they are now.

        Args:
            objects: Definitions; what they hold by reference comes along. `None`: all definitions in the
                `.py` files beside `feature_store.yaml`.
            complete: Whether what is not among the objects is to be removed.

        Raises:
            DefinitionError: a definition that cannot be right, or two of one name.
            LeakageError: a definition that could see the future.
            NotFoundError: a source's file or an object that is referred to is missing.
            SchemaError: an unknown column or a type that does not fit.
        """
        found = self._definitions() if objects is None else objects
        return self.catalog.plan(found, complete=complete)

    def apply(
        self,
        objects: "Sequence[Definition] | Plan | None" = None,
        *,
        complete: bool = False,
        message: str = "",
        author: str = "",
        expected_head: int | None = None,
    ) -> "Commit":
        """Commit definitions as one catalog version; applying the same again changes nothing.

        Returns:
            The commit, or the newest one where there was nothing to change.

        Raises:
            CommitConflictError: someone else applied since `expected_head`.
            DefinitionError: as for `plan`, which is done first.
        """
        given = self._definitions() if objects is None else objects
        commit = self.catalog.apply(
            given, complete=complete, message=message, author=author, expected_head=expected_head
        )
        if self._online is not None:
            self._online.reload()
        return commit

    def ingest(self, source: Source | str, data: Any) -> "IngestResult":
        """Append rows to a source: anything with the Arrow PyCapsule protocol, columns exactly as there.

        Raises:
            SchemaError: a column is missing, unknown or of another type.
        """
        from featurestore.materialize.ingest import ingest

        name = _name_of(source, Source)
        return ingest(self._context(), parse_ref(name), data)

    def materialize(
        self,
        name: Named,
        start: Instant | None = None,
        end: Instant | None = None,
        executor: "Executor | str | None" = None,
        *,
        progress: "Progress | None" = None,
    ) -> "MaterializeResult":
        """Write a new version of a training set or a view; the same inputs again write nothing.

        A view with `online=True` also has its newest rows written to the online store, where one can
        keep it: a view over a view whose values depend on several rows is read from history alone.

        Args:
            start: Rows from here on, included; `None`: from the first.
            end: Rows before this; `None`: to the last.

        Raises:
            NotFoundError: no such training set or view.
            CommitConflictError: another materialization of it committed first.
        """
        from featurestore.materialize.training_set import materialize

        start_ns, end_ns = _range_ns(start, end)
        result = materialize(
            self._context(),
            name_of(name),
            start_ns=start_ns,
            end_ns=end_ns,
            executor=executor,
            progress=progress,
        )
        self._write_online(name_of(name), end_ns)
        return result

    def materialize_incremental(
        self, name: Named, executor: "Executor | str | None" = None, *, progress: "Progress | None" = None
    ) -> "MaterializeResult":
        """Write a new version from what changed in the sources since the last; equal to a full one.

        Raises:
            NotFoundError: no such training set or view.
        """
        from featurestore.materialize.incremental import materialize_incremental

        result = materialize_incremental(self._context(), name_of(name), executor=executor, progress=progress)
        self._write_online(name_of(name), None)
        return result

    def plan_materialization(
        self,
        name: Named,
        start: Instant | None = None,
        end: Instant | None = None,
        *,
        incremental: bool = False,
    ) -> "MaterializationPlan":
        """Say what `materialize`, or `materialize_incremental`, would do now; nothing is computed or written.

        Returns:
            Its tasks with exact files, columns, Delta versions, stored states and estimates of rows and
            bytes; `explain()` prints them.

        Raises:
            NotFoundError: no such training set or view, or a source is not there.
        """
        from featurestore.materialize.training_set import plan_run

        start_ns, end_ns = _range_ns(start, end)
        return plan_run(
            self._context(), name_of(name), start_ns=start_ns, end_ns=end_ns, incremental=incremental
        )

    def push(self, source: Source | str, data: Any, *, to: str | None = None) -> "WriteResult | None":
        """Hand over new rows of a source as they happen.

        Args:
            to: `both` appends them to the source and updates every online view over it; `online` and
                `offline` do one of the two. `None`: both, or `online` alone where the source is a single
                file, a pattern or in a format that nothing can be appended to: history then knows
                the rows once whoever writes that file has added them.

        Returns:
            What the online store took; `None` for `offline`.

        Raises:
            DefinitionError: `to` is none of these.
        """
        if to is not None and to not in PUSH_TO:
            raise DefinitionError(f"push to {to!r}", hint=near(to, PUSH_TO))
        name = _name_of(source, Source)
        from featurestore.materialize.ingest import is_appendable
        from featurestore.temporal.tables import as_table

        rows = as_table(data, f"data for {name!r}")  # once: a stream can be read only once
        if to is None and not is_appendable(self._context(), parse_ref(name)):
            to = "online"
        if to != "online":
            self.ingest(name, rows)
        return None if to == "offline" else self.online.push(name, rows)

    def export(self, entity: Entity | str, keys: Any) -> "dict[str, pa.Table]":
        """Return every row that is stored of some keys of an entity, by place.

        Args:
            keys: One key or several, as for `erase`.

        Returns:
            `source/name`, `dataset/name@version` and `online/view@version` → rows; empty places left out.

        Raises:
            NotFoundError: no such entity.
            SchemaError: a join key is missing or of the wrong kind.
        """
        from featurestore.materialize.erasure.places import subject_rows
        from featurestore.materialize.erasure.subject import subject_of

        context = self._context()
        subject = subject_of(context.snapshot, _name_of(entity, Entity), keys)
        held = self.online.export(_name_of(entity, Entity), subject.keys)
        return subject_rows(context, subject) | {f"online/{view}": rows for view, rows in held.items()}

    def erase(
        self,
        entity: Entity | str,
        keys: Any,
        *,
        dry_run: bool = False,
        pinned: str = "refuse",
        answer_logs: Sequence[str | PathLike[str]] = (),
    ) -> "EraseReport":
        """Erase some keys of an entity from everything the store owns, prove it, and keep them out.

        The keys are entered into the ledger of erasures, as keyed hashes: from then on their rows count as
        absent in every read, join, run and push, also rows that arrive later, until `unsuppress`. Versions
        that held them are published anew without them, and removed. Files of sources that others wrote are
        reported, never changed. Killed, it is run to its end by the same call.

        Args:
            keys: One key or several: a value, a mapping of the join keys, a list of either, a mapping of
                columns, or a table of any library that speaks the Arrow PyCapsule protocol.
            dry_run: Change nothing, and report what would go.
            pinned: What becomes of versions with a tag that hold the keys. `refuse`: nothing is done;
                `rewrite`: the tag moves to a version without them; `remove`: tag and version go.
            answer_logs: Folders outside of the root into which `serve(answer_log=…)` wrote.

        Raises:
            NotFoundError: no such entity.
            SchemaError: a join key is missing or of the wrong kind.
            PinnedVersionError: tags stand in the way; they are listed.
            CommitConflictError: another process is writing; run again.
        """
        from featurestore.materialize.erasure.run import erase, plan_erasure
        from featurestore.store.outside import Outside

        outside = Outside(self, answer_logs, self._write_online)
        if dry_run:
            return plan_erasure(self._context(), _name_of(entity, Entity), keys, outside=outside)
        return erase(self._context(), _name_of(entity, Entity), keys, outside=outside, pinned=pinned)

    def unsuppress(self, entity: Entity | str, keys: Any) -> bool:
        """Let rows of erased keys count again, from the next materialization on; say whether any was erased.

        Nothing comes back by itself: what sources still hold is read again by the next runs.

        Raises:
            NotFoundError: no such entity.
            SchemaError: a join key is missing or of the wrong kind.
        """
        from featurestore.materialize.erasure.run import lift

        return lift(self._context(), _name_of(entity, Entity), keys) > 0


def _range_ns(start: Instant | None, end: Instant | None) -> tuple[int | None, int | None]:
    return (
        None if start is None else instant_ns(start, what="start"),
        None if end is None else instant_ns(end, what="end"),
    )


def _name_of(given: Source | Entity | str, kind: type[Source | Entity]) -> str:
    """Return a name given as such or as the object that has it.

    Raises:
        DefinitionError: something else.
    """
    if isinstance(given, str):
        return given
    if not isinstance(given, kind):
        refuse("the call", kind.kind, given, f"give the {kind.kind}, or its name")
    return given.name
