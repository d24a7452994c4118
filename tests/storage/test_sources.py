"""Every kind of source gives the same rows in a fixed order, and says what is wrong with it."""

import gzip
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from pyarrow import feather

from featurestore.errors import (
    CorruptDataError,
    DefinitionError,
    FeatureStoreError,
    MissingDependencyError,
    NotFoundError,
    SchemaError,
)
from featurestore.storage.snapshots import snapshot_from_spec
from featurestore.storage.source_files import HashCache
from featurestore.storage.sources import SourceSpec, SourceTable, open_source

UTC = pa.timestamp("us", "UTC")
TABLE = pa.table({"k": ["a", "b", "a"], "ts": pa.array([3, 1, 2]).cast(UTC), "v": [1.5, None, 2.5]})


def source(root: Path, path: str, **options: str) -> SourceTable:
    """Open a source under a root."""
    return open_source(SourceSpec("s", path, "ts", **options), str(root))


def write_parquet(path: Path, table: pa.Table = TABLE) -> None:
    """Write one Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def _delta(root: Path) -> str:
    write_deltalake(str(root / "t"), TABLE)
    return "t"


def _csv_gz(root: Path) -> str:
    pa_csv.write_csv(TABLE, root / "plain.csv")
    (root / "t.csv.gz").write_bytes(gzip.compress((root / "plain.csv").read_bytes()))
    return "t.csv.gz"


def _arrow(root: Path) -> str:
    feather.write_feather(TABLE, root / "t.arrow")
    return "t.arrow"


def _stream(root: Path) -> str:
    with pa.OSFile(str(root / "t.ipc"), "wb") as sink, pa.ipc.new_stream(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)
    return "t.ipc"


def _parquet(root: Path) -> str:
    write_parquet(root / "t.parquet")
    return "t.parquet"


def _nameless(root: Path) -> str:
    write_parquet(root / "t")
    return "t"


@pytest.mark.parametrize(
    "make", [_delta, _csv_gz, _arrow, _stream, _parquet, _nameless], ids=lambda f: f.__name__
)
def test_every_format_gives_the_same_rows(tmp_path: Path, make: object) -> None:
    path = make(tmp_path)  # type: ignore[operator]
    found = source(tmp_path, path).read()
    assert found.select(["k", "v"]).to_pydict() == TABLE.select(["k", "v"]).to_pydict()
    assert found.column("ts").cast(UTC).to_pylist() == TABLE.column("ts").to_pylist()
    assert source(tmp_path, str(tmp_path / path)).read(["v"]).column_names == ["v"]


def test_in_a_csv_file_only_nothing_is_null(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        'k,ts,v\nNA,2025-06-02T10:00:00Z,nan\nnull,2025-06-02T10:00:00Z,-inf\n,,\n"",2025-06-02T10:00:00Z,1\n'
    )
    found = source(tmp_path, "t.csv").read()
    assert found["k"].to_pylist() == ["NA", "null", None, ""]
    assert [str(value) for value in found["v"].to_pylist()] == ["nan", "-inf", "None", "1.0"]


def test_the_position_follows_the_names_of_files(tmp_path: Path) -> None:
    for name, value in (("b/x.parquet", 2.0), ("a/z.parquet", 1.0), ("c.parquet", 3.0)):
        write_parquet(tmp_path / "t" / name, pa.table({"v": [value]}))
    (tmp_path / "t" / "_SUCCESS").touch()
    (tmp_path / "t" / ".hidden.parquet").touch()
    assert source(tmp_path, "t").read().column("v").to_pylist() == [1.0, 2.0, 3.0]
    assert source(tmp_path, "t/*.parquet").read().column("v").to_pylist() == [3.0]
    assert source(tmp_path, "t/**/*.parquet").read().column("v").to_pylist() == [1.0, 2.0, 3.0]


def test_hive_folders_are_columns(tmp_path: Path) -> None:
    for day, part in (("2020-01-02", 7), ("2020-01-01", 8)):
        write_parquet(tmp_path / "t" / f"day={day}" / f"part={part}" / "f.parquet", pa.table({"v": [part]}))
    found = source(tmp_path, "t").read()
    assert found.schema.field("day").type == pa.date32()
    assert [
        tuple(r.values())
        for r in found.cast(
            pa.schema([("v", pa.int64()), ("day", pa.string()), ("part", pa.int64())])
        ).to_pylist()
    ] == [
        (8, "2020-01-01", 8),
        (7, "2020-01-02", 7),
    ]


@pytest.mark.parametrize(
    ("path", "error", "match"),
    [
        pytest.param("tt.parquet", NotFoundError, "did you mean 't.parquet'", id="a near name is offered"),
        pytest.param("none/*.parquet", NotFoundError, "no file at", id="an empty pattern"),
        pytest.param("empty", NotFoundError, "no file in the folder", id="an empty folder"),
        pytest.param("text", DefinitionError, "cannot tell the format", id="an unknown format"),
        pytest.param("torn.parquet", CorruptDataError, "cannot read", id="a torn file"),
        pytest.param("nosuch://bucket/x", DefinitionError, "cannot read", id="an unknown protocol"),
    ],
)
def test_what_cannot_be_opened_says_why(
    tmp_path: Path, path: str, error: type[FeatureStoreError], match: str
) -> None:
    write_parquet(tmp_path / "t.parquet")
    (tmp_path / "text").write_text("what is this")
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-30])
    with pytest.raises(error, match=match):
        assert source(tmp_path, path).schema is None


def test_an_unknown_column_and_a_file_without_one(tmp_path: Path) -> None:
    write_parquet(tmp_path / "t" / "a.parquet")
    opened = source(tmp_path, "t")
    with pytest.raises(SchemaError, match="did you mean 'ts'"):
        opened.read(["tss"])
    write_parquet(tmp_path / "t" / "b.parquet", TABLE.drop_columns(["v"]))
    with pytest.raises(SchemaError, match=r"b\.parquet.*no column 'v'"):
        opened.read()


def test_kinds_are_never_cast_but_encodings_may_differ(tmp_path: Path) -> None:
    write_parquet(tmp_path / "t" / "a.parquet")
    coded = TABLE.set_column(0, "k", TABLE.column("k").dictionary_encode())
    write_parquet(tmp_path / "t" / "b.parquet", coded)
    assert source(tmp_path, "t").read().column("k").to_pylist() == ["a", "b", "a"] * 2
    write_parquet(
        tmp_path / "t" / "c.parquet", TABLE.set_column(2, "v", TABLE.column("v").cast(pa.float32()))
    )
    with pytest.raises(SchemaError, match="'v' as float, the first file as double"):
        source(tmp_path, "t").read()


def test_a_snapshot_reads_what_it_pinned_or_refuses(tmp_path: Path) -> None:
    write_parquet(tmp_path / "t" / "a.parquet")
    opened = source(tmp_path, "t")
    pinned = snapshot_from_spec(opened.snapshot().spec())
    assert pinned == opened.snapshot()
    write_parquet(tmp_path / "t" / "b.parquet")
    assert source(tmp_path, "t").read(snapshot=pinned).num_rows == 3
    assert source(tmp_path, "t").snapshot() != pinned
    write_parquet(tmp_path / "t" / "a.parquet", TABLE.slice(1))
    with pytest.raises(CorruptDataError, match="has changed since it was pinned"):
        source(tmp_path, "t").read(snapshot=pinned)
    (tmp_path / "t" / "a.parquet").unlink()
    with pytest.raises(NotFoundError, match="is gone"):
        source(tmp_path, "t").read(snapshot=pinned)


def test_a_delta_source_is_pinned_by_its_version(tmp_path: Path) -> None:
    write_deltalake(str(tmp_path / "t"), TABLE)
    pinned = source(tmp_path, "t").snapshot()
    write_deltalake(str(tmp_path / "t"), TABLE, mode="append")
    assert (pinned.kind, pinned.version) == ("delta", 0)
    assert source(tmp_path, "t").read(snapshot=pinned).num_rows == 3
    assert source(tmp_path, "t").read().num_rows == 6


def test_pruning_by_time_never_loses_a_row(tmp_path: Path) -> None:
    table = pa.table({"ts": pa.array(range(1000)).cast(pa.timestamp("ms")), "v": range(1000)})
    (tmp_path / "t").mkdir()
    pq.write_table(table, tmp_path / "t" / "a.parquet", row_group_size=100)
    read = source(tmp_path, "t").read(time_range_ns=(250 * 10**6, 310 * 10**6)).column("v").to_pylist()
    assert set(range(250, 310)) <= set(read)
    assert len(read) == 200


def test_a_query_is_the_table(tmp_path: Path) -> None:
    write_parquet(tmp_path / "t.parquet")
    opened = source(tmp_path, "t.parquet", query="SELECT *, v * 2 AS w FROM source")
    assert opened.schema.names == ["k", "ts", "v", "w"]
    assert opened.read(["w"]).to_pydict() == {"w": [3.0, None, 5.0]}


def test_remote_files_are_read_through_fsspec(tmp_path: Path) -> None:
    import fsspec  # noqa: PLC0415 -- this test alone

    remote = fsspec.filesystem("memory")
    with remote.open("/bucket/t/a.parquet", "wb") as file:
        pq.write_table(TABLE, file)
    opened = open_source(SourceSpec("s", "memory://bucket/t", "ts"), str(tmp_path))
    assert opened.read().equals(TABLE)
    assert opened.read(snapshot=opened.snapshot()).equals(TABLE)


def test_a_file_system_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="not installed"):
        open_source(SourceSpec("s", "gcs://bucket/t"), str(tmp_path))


def test_the_cache_of_hashes_is_only_a_hint(tmp_path: Path) -> None:
    write_parquet(tmp_path / "t.parquet")
    before = source(tmp_path, "t.parquet").snapshot()
    assert (tmp_path / ".cache" / "hashes.json").is_file()
    (tmp_path / ".cache" / "hashes.json").write_text("{ torn")
    assert source(tmp_path, "t.parquet").snapshot() == before
    assert HashCache(None).save() is None  # type: ignore[func-returns-value]


# Threads of Arrow read on behind the end of a reader that was left early.
_ABANDONED = """
import sys
from featurestore.storage.source_files import place_of, list_files
from featurestore.storage.source_readers import file_schema, scan_file
place = place_of("t.csv", sys.argv[1])
(file,) = list_files(place)
for turn in range(600):
    schema = file_schema(place, file, "csv")
    if turn % 10 == 0:
        rows = scan_file(
            place, file, "csv", columns=["k"], schema=schema, timestamp="ts", time_range_ns=None, batch_rows=1
        )
        assert next(rows)[0].num_rows
        rows.close()
print(schema.names)
"""
_SLOW = """
import io, sys, time
from pathlib import Path
import fsspec
from fsspec.implementations.memory import MemoryFileSystem
from featurestore.storage.sources import SourceSpec, open_source

class Slow(io.BytesIO):
    def read(self, size=-1):
        time.sleep(0.02)
        return super().read(size)

class SlowFiles(MemoryFileSystem):
    protocol = "slow"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("slow:/"))

    def _open(self, path, mode="rb", **options):
        return Slow(self.store[path].getvalue())

fsspec.register_implementation("slow", SlowFiles)
whole = Path(sys.argv[1], sys.argv[2]).read_bytes()
fsspec.filesystem("memory").pipe("/" + sys.argv[2], whole)
source = open_source(SourceSpec("s", "slow://" + sys.argv[2], "ts"), sys.argv[1])
print(source.schema.names, source.read().num_rows)
next(source.scan())
"""


def _many_lines(folder: Path, count: int) -> Path:
    """Write a CSV file of about 33 bytes a row."""
    lines = "".join(f"u{i % 1000},2025-01-01T00:00:{i % 60:02d}Z,{i}\n" for i in range(count))
    (folder / "t.csv").write_text(f"k,ts,v\n{lines}")
    return folder / "t.csv"


def _run(program: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=True
    ).stdout.strip()


def test_a_csv_file_is_not_closed_under_the_threads_that_read_ahead(tmp_path: Path) -> None:
    _many_lines(tmp_path, 1_000_000)
    assert _run(_ABANDONED, str(tmp_path)) == "['k', 'ts', 'v']"


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_a_process_may_end_while_a_remote_csv_file_is_half_read(tmp_path: Path, name: str) -> None:
    path = _many_lines(tmp_path, 300_000)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(path.read_bytes(), 0))
    assert _run(_SLOW, str(tmp_path), name) == "['k', 'ts', 'v'] 300000"
