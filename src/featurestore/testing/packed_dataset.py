"""Small packed dataset versions, written as materialization writes them: for tests of whatever reads them.

The writer goes through the storage room's own packing.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.core.time import DAY_NS, day_text
from featurestore.storage.ipc import write_ipc
from featurestore.storage.manifest import Manifest, ManifestColumn, Shard, schema_text
from featurestore.storage.packing import pack_table, plan_packs


def write_dataset(
    folder: str | Path,
    table: pa.Table,
    *,
    entity_keys: Sequence[str],
    timestamp: str,
    features: Sequence[str],
    labels: Sequence[str] = (),
    horizons_ns: Mapping[str, int] | None = None,
    windows_ns: Mapping[str, int | None] | None = None,
    vocabularies: Mapping[str, Sequence[str]] | None = None,
    buckets: int = 1,
    version: int = 1,
    name: str = "dataset",
) -> Path:
    """Write one packed version: shards by (event date, bucket), rows by entity then time.

    Args:
        table: Rows in any order; `timestamp` as `timestamp[ns, UTC]`.

    Returns:
        The version's folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True)
    times = np.asarray(table.column(timestamp).cast(pa.int64()))
    days = np.floor_divide(times, DAY_NS)
    first_key = table.column(entity_keys[0]).combine_chunks().dictionary_encode()
    bucket = np.asarray(first_key.indices.fill_null(0)).astype(np.int64) % buckets
    shards: list[Shard] = []
    digests: list[str] = []
    for day in np.unique(days).tolist():
        for b in range(buckets):
            chosen = np.flatnonzero((days == day) & (bucket == b))
            if not chosen.size:
                continue
            part = table.take(pa.array(chosen)).append_column("_time", pa.array(times[chosen]))
            order = pc.sort_indices(part, [(key, "ascending") for key in (*entity_keys, "_time")])
            part = part.take(order).drop_columns(["_time"])
            shards.append(_write_shard(folder, part, len(shards), entity_keys, timestamp, features, day, b))
            digests.append(shards[-1].xxh3)
    packs = plan_packs(table.schema, features)
    masked = {column for shard in shards for column in shard.nulls}
    roles = (
        dict.fromkeys(table.column_names, "spine")
        | dict.fromkeys(features, "feature")
        | dict.fromkeys(labels, "label")
    )
    manifest = Manifest(
        name=name,
        kind="training_set",
        version=version,
        fingerprint=hashlib.sha256("".join(digests).encode()).hexdigest()[:32],
        rows=table.num_rows,
        catalog_version=1,
        definition={},
        definitions={},
        inputs=[],
        engine="test",
        timestamp=timestamp,
        entity_keys=tuple(entity_keys),
        columns=tuple(
            ManifestColumn(name=f.name, type=str(f.type), role=roles[f.name]) for f in table.schema
        ),
        packs=tuple(
            type(p)(
                column=p.column,
                mask=p.mask if p.column in masked else None,
                dtype=p.dtype,
                features=p.features,
            )
            for p in packs
        ),
        labels=tuple(labels),
        horizons_ns=dict(horizons_ns or {}),
        windows_ns=dict(windows_ns or {}),
        shards=tuple(shards),
        created_ns=0,
        arrow_schema=schema_text(table.schema),
        buckets=buckets,
        vocabularies=dict(vocabularies or {}),
    )
    (folder / "MANIFEST.json").write_bytes(manifest.to_json())
    return folder


def _write_shard(
    folder: Path,
    part: pa.Table,
    number: int,
    entity_keys: Sequence[str],
    timestamp: str,
    features: Sequence[str],
    day: int,
    bucket: int,
) -> Shard:
    keys = list(zip(*(part.column(key).to_pylist() for key in entity_keys), strict=True))
    starts = [0, *(i for i in range(1, len(keys)) if keys[i] != keys[i - 1])]
    codes = np.zeros(part.num_rows, np.int32)
    codes[starts[1:]] = 1
    codes = np.cumsum(codes, dtype=np.int32)
    packed = pack_table(part, plan_packs(part.schema, features), codes)
    offsets = pa.record_batch(
        {
            "offset": pa.array([*starts, part.num_rows], pa.int64()),
            **{
                key: pa.concat_arrays(
                    [
                        part.column(key).take(pa.array(starts)).combine_chunks(),
                        pa.nulls(1, part.schema.field(key).type),
                    ]
                )
                for key in entity_keys
            },
        }
    )
    file, offsets_file = f"part-{number:05d}.arrow", f"part-{number:05d}.offsets.arrow"
    written = write_ipc(folder / file, packed.batch)
    written_offsets = write_ipc(folder / offsets_file, offsets)
    times = np.asarray(part.column(timestamp).cast(pa.int64()))
    return Shard(
        file=file,
        offsets=offsets_file,
        date=day_text(day),
        bucket=bucket,
        rows=part.num_rows,
        entities=len(starts),
        bytes=written.bytes,
        xxh3=written.xxh3,
        offsets_xxh3=written_offsets.xxh3,
        min_time_ns=int(times.min()),
        max_time_ns=int(times.max()),
        digest=written.xxh3,
        nulls=packed.nulls,
    )
