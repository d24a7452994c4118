"""Bad input: a typed error, a hint, and nothing changed."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from tests.cli.conftest import Run

Edit = Callable[[Path], None]
SECOND_PROFILE = (
    'again = fs.FeatureView("profile", source=profiles, entities=[customer], features=["segment"])\n'
)


def _swap(old: str, new: str) -> Edit:
    def edit(shop: Path) -> None:
        path = shop / "definitions.py"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    return edit


def _append(text: str, file: str = "definitions.py") -> Edit:
    def edit(shop: Path) -> None:
        with (shop / file).open("a", encoding="utf-8") as handle:
            handle.write(text)

    return edit


def _remove(shop: Path) -> None:
    (shop / "data" / "payments.parquet").unlink()


def _damage(shop: Path) -> None:
    (shop / "data" / "payments.parquet").write_bytes(b"PAR1 not much of a file PAR1")


def _text_times(shop: Path) -> None:
    path = shop / "data" / "payments.parquet"
    table = pq.read_table(path)
    text = pc.strftime(table["event_timestamp"], format="%d/%m/%Y")
    pq.write_table(table.set_column(1, "event_timestamp", text), path)


def _null_times(shop: Path) -> None:
    path = shop / "data" / "payments.parquet"
    table = pq.read_table(path)
    times = table["event_timestamp"].combine_chunks()
    first = pa.array(np.arange(len(times)) < 3)
    nulled = pc.if_else(first, pa.scalar(None, times.type), times)
    pq.write_table(table.set_column(1, "event_timestamp", nulled), path)


def _csv_with_a_bad_time(shop: Path) -> None:
    _swap("payments.parquet", "payments.csv")(shop)
    (shop / "data" / "payments.csv").write_text(
        "customer,event_timestamp,created,amount\n"
        "c0001,2025-03-01T00:00:00Z,2025-03-01T00:00:01Z,5.0\n"
        "c0002,next tuesday,2025-03-01T00:00:01Z,5.0\n",
        encoding="utf-8",
    )


@pytest.mark.parametrize(
    ("edit", "message", "hint"),
    [
        pytest.param(_remove, "no file at", "did you mean", id="a missing file"),
        pytest.param(_damage, "cannot read", "restore", id="a damaged file"),
        pytest.param(
            _swap('"amount", "sum"', '"amuont", "sum"'),
            "no column 'amuont'",
            "'amount'",
            id="a missing column",
        ),
        pytest.param(
            _swap('"amount", "sum"', '"customer", "sum"'),
            "sum cannot take string",
            "numbers",
            id="a wrong type",
        ),
        pytest.param(_text_times, "'event_timestamp' is string", "a time is", id="times that are text"),
        pytest.param(
            _csv_with_a_bad_time, "'event_timestamp' is string", "a time is", id="an unparseable time"
        ),
        pytest.param(
            _append(SECOND_PROFILE),
            "'profile' is defined twice",
            "keep one",
            id="a duplicate name",
        ),
        pytest.param(
            _swap("profile:credit_limit", "profile:limit"),
            "'profile:limit'",
            "'credit_limit'",
            id="an unknown feature",
        ),
        pytest.param(
            _swap("features=[profile, spending, usage]", 'features=["profile@9", spending, usage]'),
            "profile",
            "",
            id="an unknown version",
        ),
        pytest.param(_append("import no_such_module\n"), "definitions.py:50", "", id="an import that fails"),
        pytest.param(_append("def broken(:\n"), "SyntaxError", "", id="a syntax error"),
        pytest.param(_append("1 / 0\n"), "ZeroDivisionError", "", id="a definition file that raises"),
        pytest.param(
            _append("bukcets: 4\n", "feature_store.yaml"),
            "unknown key 'bukcets'",
            "'buckets'",
            id="an unknown setting",
        ),
        pytest.param(
            _append(": [\n", "feature_store.yaml"), "cannot be read", "YAML", id="settings that are not YAML"
        ),
        pytest.param(_swap('"30d")', '"30 parsecs")'), "30 parsecs", "1h30m", id="a duration that is none"),
        pytest.param(
            _swap("amount / credit_limit", "amount / random()"),
            "random()",
            "",
            id="a random expression",
        ),
        pytest.param(
            _swap("amount / credit_limit", "(select 1)"), "", "", id="an expression with a query in it"
        ),
    ],
)
def test_plan_refuses_it_and_nothing_is_written(
    edit: Edit, message: str, hint: str, run: Run, shop: Path
) -> None:
    edit(shop)
    refused = run("apply", "--root", shop)
    assert refused.status == 1
    assert refused.err.startswith("error: ")
    assert message in refused.err
    assert "\nhint: " in refused.err
    assert hint in refused.err
    assert "Traceback" not in refused.err
    assert not list((shop / "catalog").glob("0*.json")) if (shop / "catalog").exists() else True


def test_a_spine_without_times_is_refused_and_makes_no_version(run: Run, shop: Path) -> None:
    _null_times(shop)
    assert run("apply", "--root", shop).status == 0
    refused = run("materialize", "payment_risk", "--root", shop)
    assert refused.status == 1
    assert "3 rows of the spine 'payments' have no event timestamp" in refused.err
    assert run("history", "payment_risk", "--root", shop, "--json").json == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["verify", "payment_risk", "--version", "7"], "version 7"),
        (["verify", "payment_risk", "--version", "modle_a"], "no version 'modle_a'"),
        (["verify", "payment_risk", "--version", "2001-01-01"], "no version as old as"),
        (["history", "paymnet_risk"], "paymnet_risk"),
        (["materialize", "usage"], "usage"),
        (["get-online", "profile:limit", "-k", "customer=c0001"], "limit"),
        (["get-online", "profile", "-k", "custmer=c0001"], "customer"),
        (["rollback", "payment_risk", "9"], "9"),
        (["serve", "--address", "0.0.0.0:0"], "without TLS"),
        (["serve", "--certificate", "c.pem"], "needs a certificate and its key"),
        (["serve", "--access", "nowhere.yaml"], "cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_not_there_is_named_with_a_hint(
    command: list[str], message: str, run: Run, stored: Path
) -> None:
    refused = run(*command, "--root", stored)
    assert refused.status == 1
    assert message in refused.err
    assert "\nhint: " in refused.err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.csv", None, "no file"),
        ("spine.txt", "x", "no format"),
        ("spine.parquet", "not parquet", "not a readable parquet file"),
        ("spine.csv", "cust,event_timestamp\nc0001,2025-04-01T00:00:00Z\n", "customer"),
        ("spine.csv", "customer,event_timestamp\nc0001,soon\n", "event_timestamp"),
    ],
)
def test_a_spine_that_cannot_be_used_is_refused(
    name: str, content: str | None, message: str, run: Run, stored: Path, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    refused = run("get-historical", "profile", "-s", tmp_path / name, "--root", stored)
    assert refused.status == 1
    assert message in refused.err
    assert "Traceback" not in refused.err


def test_a_port_in_use_is_told(run: Run, stored: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = run("serve", "--address", f"127.0.0.1:{port}", "--root", stored)
    assert refused.status == 1
    assert f"127.0.0.1:{port}" in refused.err
    assert "port 0" in refused.err


def _fill(folder: Path) -> None:
    with contextlib.suppress(OSError), (folder / "fill").open("wb", buffering=0) as handle:
        while True:
            handle.write(bytes(4096))


def test_a_full_disk_changes_nothing_and_the_same_command_succeeds_later(
    run: Run, starter: Path, tmp_path: Path
) -> None:
    """A real, small file system; where mounting is not allowed the test skips."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)],  # noqa: S607
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("mounting a small file system needs privileges that this process does not have")
    try:
        shop = disk / "shop"
        subprocess.run(["cp", "-r", str(starter), str(shop)], check=True)  # noqa: S607
        assert run("apply", "--root", shop).status == 0
        assert run("materialize", "profile", "--root", shop).status == 0
        before = run("history", "profile", "--root", shop, "--json").json
        _fill(disk)
        refused = run("materialize", "payment_risk", "--root", shop)
        assert refused.status == 1
        assert "disk is full" in refused.err
        assert run("history", "payment_risk", "--root", shop, "--json").json == []
        assert run("history", "profile", "--root", shop, "--json").json == before
        (disk / "fill").unlink()
        assert run("materialize", "payment_risk", "--root", shop).status == 0
        assert run("verify", "payment_risk", "--root", shop).status == 0
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=False)  # noqa: S607


def test_an_interrupted_materialization_leaves_the_previous_version_and_can_be_repeated(
    run: Run, shop_stored: Path
) -> None:
    before = run("history", "payment_risk", "--root", shop_stored, "--json").json
    path = shop_stored / "data" / "payments.parquet"
    pq.write_table(pq.read_table(path).slice(0, 19_000), path)
    program = (
        "import sys\n"
        "from featurestore.cli import main\n"
        "from featurestore.materialize import partition\n"
        "write = partition.write_partition\n"
        "def slow(*args, **kwargs):\n"
        "    import pathlib, time\n"
        "    pathlib.Path(sys.argv[1], 'writing').touch()\n"
        "    time.sleep(0.05)\n"
        "    return write(*args, **kwargs)\n"
        "partition.write_partition = slow\n"
        "import featurestore.materialize.compute as compute\n"
        "compute.write_partition = slow\n"
        "sys.exit(main(['materialize', 'payment_risk', '--root', sys.argv[1]]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(shop_stored)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    deadline = time.monotonic() + 60
    while not (shop_stored / "writing").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert run("history", "payment_risk", "--root", shop_stored, "--json").json == before
    assert run("verify", "payment_risk", "--root", shop_stored).status == 0
    (made,) = run("materialize", "payment_risk", "--root", shop_stored, "--json").json
    assert (made["version"], made["rows"]) == (2, 19_000)
