"""OnlineService: what every front calls. Bytes and callers in, bytes out; access is checked before work."""

from collections.abc import Sequence

import numpy as np

from featurestore.serve.access import Caller
from featurestore.serve.answer_log import AnswerLog
from featurestore.serve.backend import OnlineBackend
from featurestore.serve.config import Limits
from featurestore.serve.metrics import Metrics
from featurestore.serve.reader import ReadPlan
from featurestore.serve.response import STATUS, OnlineResponse
from featurestore.serve.tracing import NO_TRACING, Tracing
from featurestore.serve.wire import (
    RequestReader,
    check_cells,
    encode_response,
    list_features,
    parse_push,
    push_rows,
    read_ipc,
    readers_of,
)


class OnlineService:
    """The verbs of serving, for one worker.

    Attributes:
        backend: Store and catalog.
    """

    def __init__(
        self,
        backend: OnlineBackend,
        limits: Limits,
        metrics: Metrics,
        log: AnswerLog | None = None,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        """Serve a backend, which is traced from here on."""
        self.backend = backend
        self.limits = limits
        self.metrics = metrics
        self.log = log
        self.tracing = backend.tracing = tracing
        self._requests = RequestReader()

    def get_online_features(self, data: bytes, caller: Caller) -> bytes:
        """Answer a GetOnlineFeaturesRequest.

        Raises:
            DefinitionError: the request contradicts itself.
        """
        with self.tracing.stage("decode"):
            request, features = self._requests.read(data)
            readers = readers_of(request.entities, self.limits)
            plan = self.backend.plan(
                features,
                tuple(readers.columns),
                full_feature_names=request.full_feature_names,
                key_map=tuple((m.alias, m.join_key, m.column) for m in request.key_map),
                preprocessing=request.preprocessing,
            )
            self.check_read(plan, readers.rows, caller)
        now_ns = request.now_ns if request.HasField("now_ns") else None
        response = self.backend.read(plan, readers, now_ns)
        with self.tracing.stage("encode"):
            self.note(response, features, full_feature_names=request.full_feature_names)
            return encode_response(request, response)

    def check_read(self, plan: ReadPlan, rows: int, caller: Caller) -> None:
        """Check a read's size and the caller's right to it, before it is done.

        Raises:
            LimitError: too many rows or cells.
            AccessDeniedError: not this caller, or not these views.
        """
        caller.check("read", (read.program.name for read in plan.reads))
        check_cells(rows, len(plan.names), self.limits)

    def note(
        self, response: OnlineResponse, features: str | Sequence[str], *, full_feature_names: bool
    ) -> None:
        """Count an answer's rows by view and status, trace them, and log a sample where asked."""
        plan = response.plan
        self.tracing.note(views=plan.views, rows=response.num_rows, features=len(plan.names))
        if self.log is not None and plan.replayable:
            listed = [features] if isinstance(features, str) else features
            self.log.note(response, listed, full_feature_names=full_feature_names)
        for view, answer in zip(plan.views, response.answers.values(), strict=True):
            row = getattr(answer, "row", None)
            if row is not None:
                self.metrics.cells(view, STATUS[row], 1)
                continue
            for code, count in enumerate(np.bincount(answer.row_status, minlength=len(STATUS)).tolist()):
                if count:
                    self.metrics.cells(view, STATUS[code], count)

    def push(self, data: bytes, caller: Caller) -> bytes:
        """Apply a PushRequest; the rows are durable when this returns."""
        with self.tracing.stage("decode"):
            request = parse_push(data)
            views = self.backend.views_over(request.source)
            caller.check("push", (view.program.name for view in views))
            table = read_ipc(request.rows, self.limits.message_bytes * 16)
        with self.tracing.stage("write"):
            self.tracing.note(views=tuple(view.table for view in views), rows=table.num_rows)
            return push_rows(self.backend, request, table)

    def metrics_text(self, now_ns: int) -> str:
        """Return the metrics of all workers in the Prometheus text format."""
        return self.metrics.text(self.backend.newest_events(), now_ns)

    def list_features(self, data: bytes, caller: Caller) -> bytes:
        """Answer a ListFeaturesRequest."""
        del data
        caller.check("read")
        return list_features(self.backend)
