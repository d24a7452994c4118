"""What rows of any bucket answer: views and labels matched on other keys than the bucket's.

They are answered wave by wave for the spine's rows of all buckets together: their sources are read, carried
and matched once, however many buckets there are. The buckets' own tasks take the answers over as columns.
"""

from collections.abc import Mapping
from typing import Final

import pyarrow as pa

from featurestore.materialize.carried import Carrier
from featurestore.materialize.changes import FOREVER
from featurestore.materialize.compute import Work, run_chain
from featurestore.materialize.plan import Task
from featurestore.materialize.staging import Held, Part, Place, concat_parts
from featurestore.resolve.joins import JoinPlan
from featurestore.resolve.training import resolve_features
from featurestore.storage.state_files import StateIndex, merged

# What a reader's cell takes while it is found.
_CELL_BYTES: Final = 16


class Whole:
    """Answers a run's waves, one after the other, in the thread that gathers them.

    Attributes:
        schema: The columns of the answers.
        states: What was left behind for later runs.
    """

    def __init__(self, plan: JoinPlan, held: Held) -> None:
        self.schema = pa.schema(
            [
                *(pa.field(c.name, c.type) for c in plan.columns),
                *(pa.field(x.program.name, x.program.type) for x in plan.labels),
            ]
        )
        self.states = StateIndex()
        self._plan = plan
        self._held = held
        self._carriers: dict[str, Carrier] = {}

    def answer(self, work: Work) -> Mapping[Place, Part]:
        """Answer the spine's rows of a wave; by place, in the order of the spine's parts.

        Args:
            work: The tasks for all buckets at once.

        Raises:
            SchemaError: columns that do not fit together.
            ExpressionError: an expression failed on the values it met.
            StorageError: disk full or no permission.

        Cost:
            One pass over the rows within reach and one over the readers, per view. Answers that are too many
            for the memory of what waits go to spill files.
        """

        def compute(task: Task, rows: dict[str, pa.Table]) -> None:
            self._keep(work, task, rows)

        left = run_chain(work, self._carriers, compute, row_bytes=len(self.schema) * _CELL_BYTES)
        self.states = merged([self.states, left])
        parts = self._held.parts()
        # The wave's own from here on: what waits for its dates is counted no longer.
        self._held.release(FOREVER + 1)
        return parts

    def _keep(self, work: Work, task: Task, rows: Mapping[str, pa.Table]) -> None:
        days = set(task.days)
        places = sorted(p for p in work.spine if p[0] in days)
        columns = list(self._plan.spine_columns())
        readers = [concat_parts([work.spine[p]], work.spine_schema).select(columns) for p in places]
        spine = pa.concat_tables(readers)
        found = resolve_features(self._plan, spine, rows, values_only=True, threads=work.threads).table
        found = found.select(self.schema.names)
        start = 0
        for place, own in zip(places, readers, strict=True):
            piece = found.slice(start, own.num_rows)
            self._held.keep(place, piece, piece.nbytes)
            start += own.num_rows
