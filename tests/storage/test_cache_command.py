"""The command that shows and clears the copies of remote files."""

import json
from pathlib import Path

import xxhash
from typer.testing import CliRunner

from featurestore.cli.app import app
from featurestore.storage.cache import FileCache


def test_copies_are_shown_and_removed(tmp_path: Path) -> None:
    (tmp_path / "feature_store.yaml").write_text(f"cache:\n  path: {tmp_path / 'copies'}\n  size: 1MB\n")
    data = b"some bytes"
    key = xxhash.xxh3_128(data).hexdigest()
    FileCache(tmp_path / "copies", 10**6).use(key, len(data), lambda _: [data], Path.read_bytes)
    run = ["cache", "--root", str(tmp_path), "--json"]
    expected = {
        "folder": str(tmp_path / "copies"),
        "entries": 1,
        "bytes": 10,
        "filling_bytes": 0,
        "limit_bytes": 10**6,
    }
    assert json.loads(CliRunner().invoke(app, run).stdout) == [expected]
    assert json.loads(CliRunner().invoke(app, [*run, "--clear"]).stdout) == [expected]
    assert json.loads(CliRunner().invoke(app, run).stdout) == [{**expected, "entries": 0, "bytes": 0}]
