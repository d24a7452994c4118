"""No call waits for a kernel: warming has loaded every one that calls use."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
from tests.serve.house import FLOW, QUOTE_ROWS, snapshot_of

from featurestore.catalog.refs import Ref
from featurestore.serve.views import online_view
from featurestore.serve.warming import made_up_rows

PROGRAM = """
import gc, sys
from pathlib import Path
from numba.core.registry import CPUDispatcher
from tests.serve.house import backend_at, quotes

def loaded():
    found = [d for d in gc.get_objects() if isinstance(d, CPUDispatcher)]
    return sorted((d.py_func.__name__, str(s)) for d in found for s in d.overloads)

backend = backend_at(Path(sys.argv[1]))
backend.warm()
before = loaded()
rows = [
    {"symbol": "IBM", "ts": 980, "bid": 1.0, "ask": 2.0, "venue": "N", "size": 5},
    {"symbol": "IBM", "ts": 990, "bid": 3.0, "venue": "Q", "size": -7, "seq": 1},
    {"symbol": "AIG", "ts": 100, "bid": 3.0, "ask": 4.0},
]
backend.push("quotes", quotes(rows))
backend.push("quotes", quotes(rows[:2]))
for symbols in (["IBM"], ["IBM", "AIG", "nobody", None]):
    for view in ("quote", "flow", "last"):
        backend.get_online_features([view], {"symbol": symbols}).to_dict()
after = loaded()
print([entry for entry in after if entry not in before], len(before))
"""


def test_calls_load_no_kernel_that_warming_did_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    missed, _, count = ran.stdout.strip().rpartition(" ")
    assert missed == "[]"
    assert int(count) > 10


def test_made_up_rows_have_the_sources_types_with_values_and_without() -> None:
    kinds = [pa.decimal128(9, 2), pa.list_(pa.int8()), pa.bool_(), pa.dictionary(pa.int32(), pa.string())]
    kinds += [pa.date32(), pa.binary(16)]
    schema = pa.schema([*QUOTE_ROWS, *((f"c{at}", kind) for at, kind in enumerate(kinds))])
    rows = made_up_rows(online_view(snapshot_of(), Ref(FLOW.name)), schema)
    assert rows.schema == schema
    assert rows.column("symbol").to_pylist() == ["a", "a", "a"]
    assert rows.column("ts").cast(pa.int64()).to_pylist() == [1, 2, 3]
    assert rows.column("bid").to_pylist() == [1.0, None, 1.0]
    assert rows.column("c1").to_pylist() == [None, None, None]
    assert rows.column("c3").to_pylist() == ["a", None, "a"]
    assert rows.column("c5").to_pylist() == [None, None, None]
