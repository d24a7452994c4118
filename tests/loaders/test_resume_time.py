"""Resuming costs the same at any position of an epoch: measured on a version far too large to be read."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.loaders import open_loader
from featurestore.storage.manifest import read_manifest
from featurestore.testing.loader_conformance import write_conformance_dataset

SHARDS, SHARD_ROWS = 1000, 2_000_003
OPTIONS: dict[str, Any] = {"batch_size": 8192, "columns": ["row"], "labels": [], "verify": "off"}


@pytest.fixture(scope="module")
def vast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of two thousand million rows whose shards are empty files: nothing can be read from them."""
    small, folder = tmp_path_factory.mktemp("small") / "v00000001", tmp_path_factory.mktemp("vast")
    write_conformance_dataset(small)
    next(iter(open_loader(small, batch_size=8, labels=[])))  # compiles, or loads, the loops
    manifest = read_manifest(small)
    shards = tuple(
        replace(
            manifest.shards[0], file=f"part-{i:05d}.arrow", rows=SHARD_ROWS, bytes=0, date=f"{2000 + i}-01-01"
        )
        for i in range(SHARDS)
    )
    for shard in shards:
        (folder / shard.file).touch()
    whole = replace(manifest, shards=shards, rows=SHARDS * SHARD_ROWS)
    (folder / "MANIFEST.json").write_bytes(whole.to_json())
    return folder


@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "stored order"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_position_is_restored_within_a_second_without_reading_data(
    vast: Path, share: float, shuffle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shuffle:  # times are what time order reads; here the stored order stands for it
        monkeypatch.setattr("featurestore.loaders.prepare.in_time_order", lambda _, selection: selection)
    loader = open_loader(vast, **OPTIONS, shuffle=shuffle)
    step = int(len(loader) * share)
    text = json.dumps({**loader.state_dict(), "epoch": 3, "step": step})
    again = open_loader(vast, **OPTIONS, shuffle=shuffle)
    begin = time.process_time()
    again.load_state_dict(json.loads(text))
    rows, real = again.prepared.step_rows().rows(again.epoch, again.state_dict()["step"])
    took = time.process_time() - begin
    assert took < 1.0
    assert real == rows.size == 8192
    assert np.unique(rows).size == rows.size
    assert 0 <= rows.min() <= rows.max() < SHARDS * SHARD_ROWS
    if not shuffle:
        assert (rows[0], rows[-1]) == (step * 8192, step * 8192 + 8191)
    assert again.io_report()["index_bytes"] == 0
