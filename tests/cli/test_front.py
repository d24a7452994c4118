"""An error becomes two lines and an exit status; a traceback is only for those who ask."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from featurestore.cli import front, main
from featurestore.errors import CommitConflictError, FeatureStoreError, StorageError


def _command(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make every command fail with `error`."""

    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr(front, "_exit_status", fail)


def test_an_error_is_told_as_message_and_hint_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _command(monkeypatch, FeatureStoreError("no view 'qoute' [here]", hint="did you mean 'quote'?"))
    assert main(["plan"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "error: no view 'qoute' [here]\nhint: did you mean 'quote'?\n"


def test_a_retryable_error_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _command(monkeypatch, CommitConflictError("someone else applied first"))
    assert main(["apply"]) == 1
    assert "may succeed if you run it again" in capsys.readouterr().err


def test_debug_lets_the_error_through(monkeypatch: pytest.MonkeyPatch) -> None:
    _command(monkeypatch, StorageError("disk full"))
    with pytest.raises(StorageError):
        main(["plan", "--debug"])


def test_what_the_operating_system_refuses_is_told_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _command(monkeypatch, PermissionError(13, "Permission denied", "/x"))
    assert main(["plan"]) == 1
    assert "Permission denied" in capsys.readouterr().err


def test_wrong_usage_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plann"]) == 2
    assert "No such command" in capsys.readouterr().err
    assert main(["history"]) == 2


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("featurestore ")


def test_a_folder_without_a_store_is_refused_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--root", str(tmp_path)]) == 1
    shown = capsys.readouterr().err
    assert "no feature_store.yaml" in shown
    assert "featurestore init" in shown


# A shell that runs the tests in the background hands down that SIGINT is ignored.
_PLAN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from featurestore.cli import main
sys.exit(main(["plan"]))
"""


def test_ctrl_c_is_status_130_and_says_what_was_kept(tmp_path: Path) -> None:
    """A real signal to a real process, while a command waits."""
    (tmp_path / "feature_store.yaml").write_text("project: slow\n", encoding="utf-8")
    (tmp_path / "definitions.py").write_text(
        "import pathlib, time\npathlib.Path('started').touch()\ntime.sleep(60)\n", encoding="utf-8"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", _PLAN],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert "Traceback" not in errors


def test_doctor_knows_every_extra_and_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import metadata  # noqa: PLC0415

    assert main(["doctor", "--json"]) == 0
    parts = {finding["part"]: finding for finding in json.loads(capsys.readouterr().out)}
    extras = set(metadata("featurestore").get_all("Provides-Extra") or []) - {"dev"}
    assert extras <= parts.keys()
    assert parts["core"]["usable"]
    assert "numba" in parts["core"]["found"]
    for finding in parts.values():
        assert finding["usable"] or finding["remedy"]
