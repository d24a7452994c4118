"""OnlineResponse: values, statuses and event timestamps, in request order."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from featurestore.core.python_values import as_pandas, python_values
from featurestore.core.time import INT64_MIN, Int64Array
from featurestore.resolve.views import NULL, PRESENT
from featurestore.serve.answers import Answer, OneReader, StatusArray
from featurestore.serve.request import Readers

if TYPE_CHECKING:
    import pandas as pd

    from featurestore.serve.reader import ReadPlan

# By the codes of resolve.views; the words are those of the field's wire formats.
STATUS: Final = ("PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE")


class OnlineResponse:
    """The answer to `get_online_features`: one row per entity row, one column per feature, in order.

    Attributes:
        now_ns: The readers' instant, ns since 1970 UTC.
        names: The feature columns.
    """

    def __init__(
        self,
        plan: "ReadPlan",
        readers: Readers,
        answers: Mapping[str, Answer],
        computed: Mapping[tuple[str, str], pa.Array],
        now_ns: int,
    ) -> None:
        """Hold the answers; columns are made when they are asked for."""
        self.plan = plan
        self.now_ns = now_ns
        self.names = plan.names
        self.readers = readers
        self.answers = answers
        self.computed = computed

    def __repr__(self) -> str:
        return f"OnlineResponse({self.num_rows:,} rows, {', '.join(self.names)})"

    @property
    def num_rows(self) -> int:
        """How many entity rows there were."""
        return self.readers.rows

    def to_dict(self) -> dict[str, list[object]]:
        """Return entity and feature columns as lists of `featurestore.core.python_values`."""
        out: dict[str, list[object]] = {
            name: python_values(column) if isinstance(column, pa.ChunkedArray) else list(column)
            for name, column in self.readers.columns.items()
        }
        ones = self._ones()
        if ones is not None:
            for name, (view, at) in zip(self.names, self.plan.cells, strict=True):
                out[name] = [ones[view].value(at)]
            return out
        for column in self.plan.join.columns:
            out[column.name] = self._values(column.cell)
        return out

    def to_arrow(self) -> pa.Table:
        """Return entity columns, then feature columns, each in the type the catalog recorded."""
        table = self.readers.arrow()
        for column in self.plan.join.columns:
            table = table.append_column(pa.field(column.name, column.type), self.array(column.cell))
        return table

    def to_pandas(self) -> "pd.DataFrame":
        """Return what `to_arrow` does as a pandas frame; there, integers beside nulls are floats.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        return as_pandas(self.to_arrow())

    def features(self) -> pa.RecordBatch:
        """Return the feature columns alone."""
        arrays = [self.array(column.cell) for column in self.plan.join.columns]
        if not arrays:
            return pa.RecordBatch.from_pydict({})
        return pa.RecordBatch.from_arrays(arrays, schema=self.plan.schema)

    def statuses(self) -> dict[str, list[str]]:
        """Return each feature's statuses: PRESENT, NULL_VALUE, NOT_FOUND or OUTSIDE_MAX_AGE."""
        codes = self.status_codes()
        return {name: [STATUS[code] for code in codes[at].tolist()] for at, name in enumerate(self.names)}

    def status_codes(self) -> StatusArray:
        """Return the statuses as numbers into `STATUS`; `(features, rows)`."""
        ones = self._ones()
        if ones is not None:
            cells = [ones[view].status_at(at) for view, at in self.plan.cells]
            return np.array(cells, np.int8).reshape(len(cells), 1)
        out = np.zeros((len(self.names), self.num_rows), np.int8)
        for at, (view, name) in enumerate(self.plan.origins):
            answer = self.answers.get(view)
            if answer is None:
                null = np.asarray(self.computed[view, name].is_null())
                out[at] = np.where(null, np.int8(NULL), np.int8(PRESENT))
            else:
                out[at] = answer.status(name)
        return out

    def event_timestamps(self) -> dict[str, list[int | None]]:
        """Return, by feature, the event timestamp of the newest row used, ns since 1970 UTC."""
        times = self.event_ns()
        return {
            name: [None if t == INT64_MIN else t for t in times[at].tolist()]
            for at, name in enumerate(self.names)
        }

    def event_ns(self) -> Int64Array:
        """Return event timestamps; `(features, rows)`, `INT64_MIN` where no row was used."""
        out = np.full((len(self.names), self.num_rows), INT64_MIN, np.int64)
        for at, (view, _) in enumerate(self.plan.origins):
            answer = self.answers.get(view)
            if answer is not None:
                out[at] = answer.event_ns
        return out

    def array(self, cell: tuple[str, str]) -> pa.Array:
        """Return one cell's column."""
        answer = self.answers.get(cell[0])
        return self.computed[cell] if answer is None else answer.array(cell[1])

    def _values(self, cell: tuple[str, str]) -> list[object]:
        answer = self.answers.get(cell[0])
        return python_values(self.computed[cell]) if answer is None else answer.values(cell[1])

    def _ones(self) -> list[OneReader] | None:
        """Return the views' answers where each is that of a single reader, by number in the plan."""
        if not self.plan.one or self.num_rows != 1:
            return None
        ones = [a for a in self.answers.values() if isinstance(a, OneReader)]
        return ones if len(ones) == len(self.answers) else None
