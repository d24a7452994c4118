"""Bytes on disk: aligned Arrow files, exact types, packed features, shards, manifests, keys, fingerprints."""

import os
import subprocess
import sys
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.core.fingerprint import PartitionDigest, combine_partitions, partition_digest
from featurestore.core.keys import buckets_of, key_bytes
from featurestore.errors import CorruptDataError, DefinitionError, NotFoundError, SchemaError
from featurestore.storage.hashed_file import HashedFile
from featurestore.storage.ipc import write_ipc
from featurestore.storage.manifest import (
    current_text,
    current_version,
    manifest_from_json,
    published_versions,
    read_manifest,
    schema_from_text,
    schema_text,
)
from featurestore.storage.packing import numpy_type, pack_table, plan_packs, unpack
from featurestore.storage.parquet import check_parquet, read_parquet, write_parquet
from featurestore.storage.physical import from_stored, stored_schema, to_stored
from featurestore.storage.shards import open_dataset_folder
from featurestore.testing.packed_dataset import write_dataset

ROWS = 301


def everything(rows: int = ROWS) -> pa.Table:
    """A column of every kind that a dataset can hold, nulls and extremes included."""
    extremes = [-(2**63), 2**63 - 1, None, 0]
    return pa.table(
        {
            "i64": [extremes[i % 4] for i in range(rows)],
            "u8": pa.array([None if i % 7 == 0 else i % 256 for i in range(rows)], pa.uint8()),
            "u64": pa.array([2**64 - 1 - i for i in range(rows)], pa.uint64()),
            "f16": pa.array(np.arange(rows).astype(np.float16)),
            "f64": [float("nan") if i % 5 == 0 else -0.0 if i % 5 == 1 else i / 7 for i in range(rows)],
            "bool": [None if i % 3 == 0 else i % 2 == 0 for i in range(rows)],
            "text": pa.array([f"τ{i}" * (i % 4) for i in range(rows)], pa.large_string()),
            "view": pa.array([f"v{i}" for i in range(rows)]).cast(pa.string_view()),
            "bytes": pa.array([bytes([i % 256]) * 3 for i in range(rows)], pa.binary(3)),
            "list": [[i, None] * (i % 3) for i in range(rows)],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(rows * 4, dtype=np.float32)), 4),
            "struct": [{"a": i, "b": None if i % 2 else str(i)} for i in range(rows)],
            "decimal": [Decimal(i) / 100 for i in range(rows)],
            "ns": pa.array(range(-150, rows - 150)).view(pa.timestamp("ns", "UTC")),
            "naive": pa.array(range(rows), pa.int64()).cast(pa.timestamp("s")),
            "time": pa.array(range(rows), pa.time64("ns")),
            "span": pa.array(range(rows), pa.duration("us")),
            "date": pa.array(range(rows), pa.date32()),
            "none": pa.nulls(rows),
        }
    )


@pytest.mark.parametrize("align", [8, 64, 4096])
@pytest.mark.parametrize("bounds", [(0, ROWS), (5, 100), (0, 0)], ids=["whole", "a slice", "empty"])
def test_arrow_files_are_aligned_and_read_by_arrow(
    tmp_path: Path, align: int, bounds: tuple[int, int]
) -> None:
    table = everything().slice(*bounds).combine_chunks()
    batch = pa.RecordBatch.from_arrays(
        [c.combine_chunks() if c.num_chunks != 1 else c.chunk(0) for c in table.columns], schema=table.schema
    )
    written = write_ipc(tmp_path / "x.arrow", batch, align=align)
    data = (tmp_path / "x.arrow").read_bytes()
    assert (written.bytes, written.xxh3) == (len(data), xxhash.xxh3_128_hexdigest(data))
    mapped = pa.memory_map(str(tmp_path / "x.arrow"))
    found = pa.ipc.open_file(mapped).read_all()
    found.validate(full=True)
    assert found.schema == table.schema
    assert partition_digest(found.drop_columns(["none"])) == partition_digest(table.drop_columns(["none"]))
    base = mapped.read_buffer(8).address if mapped.seek(0) is None else 0
    buffers = [b for c in found.columns for chunk in c.chunks for b in chunk.buffers() if b and b.size]
    assert not [b for b in buffers if (b.address - base) % align]


def test_a_slice_takes_no_bytes_of_its_neighbours_along(tmp_path: Path) -> None:
    secret = 0x5EC2E75EC2E75EC2
    numbers = pa.array([secret] * 70 + [1, 2, 3] + [secret] * 70)
    columns = [
        numbers,
        pa.array(numbers.to_pylist(), mask=np.arange(143) == 71),
        numbers.cast(pa.timestamp("ns")),
        numbers.cast(pa.string()),
        pa.FixedSizeListArray.from_arrays(numbers, 1),
    ]
    batch = pa.RecordBatch.from_arrays([c.slice(70, 3) for c in columns], names=list("abcde"))
    write_ipc(tmp_path / "x", batch)
    data = (tmp_path / "x").read_bytes()
    assert secret.to_bytes(8, "little") not in data
    assert str(secret).encode() not in data
    assert pa.ipc.open_file(tmp_path / "x").read_all().to_batches()[0].equals(batch)


def test_a_dictionary_is_not_written_to_a_shard(tmp_path: Path) -> None:
    batch = pa.RecordBatch.from_arrays([pa.array(["a"]).dictionary_encode()], ["d"])
    with pytest.raises(SchemaError, match="decode it first"):
        write_ipc(tmp_path / "x", batch)


def test_every_type_comes_back_from_parquet_exactly(tmp_path: Path) -> None:
    table = everything().append_column("coded", pa.array(["x", None, "y"] * 100 + ["x"]).dictionary_encode())
    file = write_parquet(tmp_path, to_stored(table), times=("ns",), sort=("i64", "ns"))
    again = from_stored(read_parquet(file.path), table.schema)
    assert partition_digest(again.drop_columns(["none"])) == partition_digest(table.drop_columns(["none"]))
    assert again.schema == table.schema
    check_parquet(file.path, xxh3=file.xxh3, rows=ROWS, size=file.bytes)
    with pytest.raises(CorruptDataError, match="says 7"):
        check_parquet(file.path, xxh3=file.xxh3, rows=7, size=file.bytes)


@pytest.mark.parametrize(
    "kind", [pa.decimal256(50), pa.map_(pa.string(), pa.int32()), pa.month_day_nano_interval()]
)
def test_what_delta_cannot_hold_is_named(kind: pa.DataType) -> None:
    with pytest.raises(SchemaError, match="column 'odd'"):
        stored_schema(pa.schema([("odd", kind)]))


def test_equal_rows_are_equal_bytes_of_parquet(tmp_path: Path) -> None:
    one = write_parquet(tmp_path, to_stored(everything()), times=("ns",), sort=())
    two = write_parquet(tmp_path, to_stored(everything()), times=("ns",), sort=())
    assert one == two
    assert [p.name for p in tmp_path.iterdir()] == [f"part-{one.xxh3}.parquet"]


def test_columns_are_encoded_by_what_they_hold(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=60_000)
    columns = {
        "key": np.sort(rng.integers(0, 20_000, 60_000)),
        "ts": np.arange(60_000),
        "random": rng.integers(0, 10**15, 60_000),
        "noise": noise,
        "held": np.repeat(noise[:20_000], 3),
        "few": rng.integers(0, 9, 60_000) / 8,
        "text": pa.array(["a", "b"] * 30_000),
    }
    columns["lists"] = pa.array([["a", "b"]] * 60_000)
    file = write_parquet(tmp_path, pa.table(columns), times=("ts", "random"), sort=("key", "ts"))
    group = pq.read_metadata(file.path).row_group(0)
    parts = [group.column(i) for i in range(len(columns))]
    found = {part.path_in_schema: set(part.encodings) for part in parts}
    for name in ("key", "ts", "random"):
        assert "DELTA_BINARY_PACKED" in found[name]
    # Steps that never repeat do not compress once they are packed.
    assert {p.path_in_schema for p in parts if p.compression != "ZSTD"} == {"random"}
    assert "BYTE_STREAM_SPLIT" in found["noise"]
    # Values that stay the same from row to row compress as they are, and would not as byte streams.
    assert found["held"] == {"PLAIN", "RLE"}
    assert "RLE_DICTIONARY" in found["few"]
    assert "RLE_DICTIONARY" in found["text"]
    assert read_parquet(file.path).equals(pa.table(columns))


def test_a_file_is_hashed_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    pieces = [rng.bytes(int(size)) for size in rng.choice([0, 1, 28, 5_000, 1 << 15, 300_000], 3_000)]
    write = os.writev
    # The system may take less than it is given.
    monkeypatch.setattr(
        os, "writev", lambda file, views: write(file, _cut(views, int(rng.integers(1, 1 << 20))))
    )
    with closing(HashedFile(tmp_path / "x")) as file:
        assert [file.write(piece) for piece in pieces[:50]] == [len(piece) for piece in pieces[:50]]
        file.write_all(pieces[50:])
        assert file.tell() == sum(map(len, pieces))
        digest = file.digest()
    assert file.write(b"more") == 4  # what Arrow lets go of late
    assert (tmp_path / "x").read_bytes() == b"".join(pieces)
    assert digest == xxhash.xxh3_128_hexdigest(b"".join(pieces))
    with pytest.raises(FileExistsError):
        HashedFile(tmp_path / "x")


def _cut(views: list[bytes | memoryview], size: int) -> list[bytes | memoryview]:
    """Return the first bytes of several pieces."""
    out = []
    for view in views:
        out.append(view[:size])
        size -= len(out[-1])
        if not size:
            break
    return out


def test_packed_features_come_back() -> None:
    table = everything()
    features = ["i64", "u8", "u64", "f16", "f64", "bool", "text"]
    packs = plan_packs(table.schema, features)
    assert [p.column for p in packs] == [
        "x_int64",
        "x_uint8",
        "x_uint64",
        "x_halffloat",
        "x_double",
        "x_bool",
    ]
    packed = pack_table(table, packs, np.zeros(ROWS, np.int32))
    assert packed.nulls == {"x_int64": 75, "x_uint8": 43, "x_bool": 101}
    for pack in packs:
        column = packed.batch.column(pack.column)
        values = column.flatten().to_numpy().reshape(ROWS, 1)
        assert values.dtype == numpy_type(pack.dtype)
        mask = (
            packed.batch.column(str(pack.mask)).flatten().to_numpy().reshape(ROWS, 1)
            if pack.column in packed.nulls
            else None
        )
        back = pa.table({"x": unpack(values, mask, 0, pack.dtype)})
        assert partition_digest(back) == partition_digest(table.select(pack.features).rename_columns(["x"]))


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A published version of two days and two buckets."""
    rng = np.random.default_rng(1)
    rows = 200
    table = pa.table(
        {
            "key": [f"k{i}" for i in rng.integers(0, 5, rows)],
            "ts": pa.array(rng.integers(0, 2 * 86_400 * 10**9, rows)).view(pa.timestamp("ns", "UTC")),
            "a": rng.normal(size=rows),
            "b": pa.array(rng.normal(size=rows), mask=rng.random(rows) < 0.1),
        }
    )
    folder = tmp_path / "ipc" / "v00000001"
    folder.parent.mkdir()
    write_dataset(folder, table, entity_keys=["key"], timestamp="ts", features=["a", "b"], buckets=2)
    return folder


def test_shards_are_views_of_the_mapped_file(version: Path) -> None:
    shards = open_dataset_folder(version)
    view = shards.shard(0)
    values = view.pack("x_double")
    assert values.shape == (view.shard.rows, 2)
    assert not values.flags.writeable
    assert values.ctypes.data % 64 == 0
    assert np.array_equal(values[:, 0], view.column("a").to_numpy())
    with pytest.raises(NotFoundError):
        view.column("c")
    assert sum(v.shard.rows for v in shards) == shards.manifest.rows == 200


@pytest.mark.parametrize("suffix", [".arrow", ".offsets.arrow"])
def test_a_damaged_shard_is_told_on_first_touch(version: Path, suffix: str) -> None:
    victim = min(p for p in version.glob(f"*{suffix}") if suffix != ".arrow" or "offsets" not in p.name)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    shards = open_dataset_folder(version)
    with pytest.raises(CorruptDataError, match="damaged"):
        list(shards)
    with pytest.raises(CorruptDataError, match="damaged"):
        open_dataset_folder(version, verify="full")
    assert len(list(open_dataset_folder(version, verify="off"))) == len(shards)


def test_versions_are_found_or_missed_by_name(version: Path) -> None:
    folder = version.parent
    assert current_version(folder) is None
    with pytest.raises(NotFoundError, match="has no version None"):
        open_dataset_folder(folder)
    (folder / "CURRENT").write_bytes(current_text(1))
    assert (current_version(folder), published_versions(folder)) == (1, [1])
    assert open_dataset_folder(folder).manifest.version == 1
    with pytest.raises(NotFoundError, match="there is version 1"):
        open_dataset_folder(folder, 2)
    with pytest.raises(DefinitionError, match="verify is"):
        open_dataset_folder(folder, verify="maybe")
    for text in (b"", b"v1", b"w00000001", b"v00000003 " + current_text(1)[10:]):
        (folder / "CURRENT").write_bytes(text)
        with pytest.raises(CorruptDataError):
            current_version(folder)


def test_no_flipped_bit_of_current_passes(version: Path) -> None:
    """Not even one in the end of its line, which says nothing."""
    current = version.parent / "CURRENT"
    data = current_text(1)
    for bit in range(8 * len(data)):
        spoiled = bytearray(data)
        spoiled[bit // 8] ^= 1 << bit % 8
        current.write_bytes(spoiled)
        with pytest.raises(CorruptDataError):
            current_version(version.parent)
    current.write_bytes(data)
    assert current_version(version.parent) == 1


def test_no_flipped_bit_of_a_manifest_passes(version: Path) -> None:
    manifest = read_manifest(version)
    data = manifest.to_json()
    assert manifest_from_json(data, path="x") == manifest
    rng = np.random.default_rng(2)
    for _ in range(300):
        spoiled = bytearray(data)
        spoiled[int(rng.integers(len(data) - 1))] ^= 1 << int(rng.integers(8))
        with pytest.raises(CorruptDataError):
            manifest_from_json(bytes(spoiled), path="x")


def test_a_schema_travels_as_text() -> None:
    schema = everything().schema
    assert schema_from_text(schema_text(schema)) == schema


def test_a_dataset_opens_with_numpy_and_pyarrow_alone(version: Path) -> None:
    code = (
        "import sys\n"
        "for name in 'xxhash fsspec deltalake polars duckdb numba'.split(): sys.modules[name] = None\n"
        "from featurestore.storage.shards import open_dataset_folder\n"
        f"shards = open_dataset_folder({str(version)!r}, verify='off')\n"
        "print(sum(v.pack('x_double').shape[0] for v in shards))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "200"


def test_keys_are_bytes_that_never_collide() -> None:
    assert key_bytes([pa.array(["ä", None])]) == ["ä".encode(), None]
    assert key_bytes([pa.array([-2], pa.int8())]) == [(-2).to_bytes(8, "little", signed=True)]
    one, two = key_bytes([pa.array([1, 12]), pa.array([23, 3])])
    assert one != two
    assert one == b"\x08\0\0\0" + (1).to_bytes(8, "little") + b"\x08\0\0\0" + (23).to_bytes(8, "little")
    with pytest.raises(SchemaError, match="keys are strings or integers"):
        key_bytes([pa.array([1.5])])


@settings(deadline=None, max_examples=60)
@given(
    keys=st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), max_size=40),
    names=st.lists(st.one_of(st.none(), st.text(max_size=4)), min_size=40, max_size=40),
    buckets=st.integers(1, 5000),
)
def test_a_bucket_is_the_hash_of_the_key(
    keys: list[int | None], names: list[str | None], buckets: int
) -> None:
    columns = [pa.array(keys, pa.int64()), pa.array(names[: len(keys)], pa.string())]
    for chosen in ([columns[0]], [columns[1]], columns):
        expected = [0 if k is None else xxhash.xxh64_intdigest(k) % buckets for k in key_bytes(chosen)]
        assert buckets_of(chosen, buckets).tolist() == expected
    coded = columns[1].dictionary_encode()
    twice = pa.chunked_array([coded, coded.slice(1), coded.slice(0, 0)])
    assert np.array_equal(buckets_of([coded], buckets), buckets_of([columns[1]], buckets))
    assert np.array_equal(buckets_of([twice], buckets), buckets_of([twice.cast(pa.string())], buckets))


def test_a_fingerprint_does_not_see_chunks_or_encodings() -> None:
    table = everything().drop_columns(["none"])
    whole = partition_digest(table)
    cut = pa.concat_tables([table.slice(0, 7), table.slice(7, 0), table.slice(7)])
    assert partition_digest(cut) == whole
    coded = table.set_column(6, "text", table.column("text").cast(pa.string()).dictionary_encode())
    assert partition_digest(coded) == whole


@pytest.mark.parametrize("row", [0, 150, ROWS - 1])
def test_a_fingerprint_sees_every_cell(row: int) -> None:
    table = everything().drop_columns(["none"])
    seen = {partition_digest(table)}
    for index, name in enumerate(table.column_names):
        other = (row + 11) % ROWS
        order = list(range(ROWS))
        order[row] = other
        changed = (
            table.set_column(
                index, name, table.column(name).cast(table.schema.field(name).type).take(pa.array(order))
            )
            if name != "view"
            else table
        )
        if not changed.column(name).combine_chunks().equals(table.column(name).combine_chunks()):
            seen.add(partition_digest(changed))
    assert len(seen) >= 15


def test_partitions_combine_in_any_order_and_empty_ones_do_not_count() -> None:
    schema = pa.schema([("a", pa.int64())])
    one, two = PartitionDigest(1, 0, 5, "a"), PartitionDigest(2, 0, 5, "b")
    assert combine_partitions(schema, [one, two]) == combine_partitions(
        schema, [two, PartitionDigest(3, 1, 0, "c"), one]
    )
    assert combine_partitions(schema, [one]) != combine_partitions(schema, [two])
