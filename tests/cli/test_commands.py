"""The commands on a store that `init` made, from first definitions to a second version."""

import hashlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer.main
from tests.cli.conftest import Run

from featurestore import FeatureStore
from featurestore.cli.app import app
from featurestore.errors import FeatureStoreError
from featurestore.serve.flight_client import BulkClient
from featurestore.serve.grpc_client import OnlineClient

TOKEN = secrets.token_urlsafe(16)
ROOT = Path(__file__).parents[2]


def test_init_makes_a_folder_that_plans_and_refuses_to_overwrite_it(run: Run, shop: Path) -> None:
    assert {"feature_store.yaml", "definitions.py", "notebooks", "data"} <= {p.name for p in shop.iterdir()}
    assert run("plan", "--root", shop).status == 0
    again = run("init", shop)
    assert again.status == 1
    assert "is there already" in again.err
    assert "empty the folder" in again.err


def test_init_refuses_a_name_that_cannot_be_a_project(run: Run, tmp_path: Path) -> None:
    refused = run("init", tmp_path / "9 lives")
    assert refused.status == 1
    assert "project name" in refused.err
    assert not (tmp_path / "9 lives").exists()


def test_plan_changes_nothing_and_apply_commits_once(run: Run, shop: Path) -> None:
    planned = run("plan", "--root", shop, "--json")
    assert [c["action"] for c in planned.json["changes"]] == ["add"] * 10
    assert not (shop / "catalog").exists()
    assert run("plan", "--root", shop, "--exit-code").status == 2
    applied = run("apply", "--root", shop, "-m", "first", "--json")
    assert applied.json == {"catalog_version": 1, "changed": True}
    assert run("plan", "--root", shop, "--exit-code").status == 0
    assert run("apply", "--root", shop, "--json").json == {"catalog_version": 1, "changed": False}


def test_a_materialized_dataset_is_listed_verified_and_recreated(run: Run, stored: Path) -> None:
    listed = run("datasets", "--root", stored, "--json").json
    assert {row["name"] for row in listed} == {"payment_risk", "profile", "spending"}
    (version,) = run("history", "payment_risk", "--root", stored, "--json").json
    assert (version["version"], version["rows"]) == (1, 20_000)
    (verified,) = run("verify", "payment_risk", "--root", stored, "--json").json
    (recreated,) = run("recreate", "payment_risk", "--root", stored, "--json").json
    assert verified["fingerprint"] == recreated["fingerprint"] == version["fingerprint"]


def test_tables_are_for_people_and_go_to_stdout(run: Run, stored: Path) -> None:
    shown = run("datasets", "--root", stored)
    assert "payment_risk" in shown.out
    assert "20,000" in shown.out


def test_materializing_again_without_a_change_makes_no_version(run: Run, shop_stored: Path) -> None:
    again = run("materialize", "payment_risk", "--root", shop_stored)
    assert "nothing has changed; version 1 stays" in again.err


def test_a_second_version_can_be_compared_pinned_and_rolled_back(run: Run, shop_stored: Path) -> None:
    path = shop_stored / "data" / "payments.parquet"
    pq.write_table(pq.read_table(path).slice(0, 19_000), path)
    (made,) = run("materialize", "payment_risk", "--root", shop_stored, "--json").json
    assert (made["version"], made["rows"]) == (2, 19_000)
    assert run("diff", "payment_risk", "1", "2", "--root", shop_stored).status == 0
    assert run("pin", "payment_risk", "1", "-t", "model_a", "--root", shop_stored).status == 0
    (pinned,) = run("verify", "payment_risk", "-v", "model_a", "--root", shop_stored, "--json").json
    assert pinned["version"] == 1
    assert run("rollback", "payment_risk", "1", "--root", shop_stored).status == 0
    newest = run("history", "payment_risk", "--root", shop_stored, "--json").json[-1]
    assert newest["rows"] == 20_000
    assert run("unpin", "payment_risk", "-t", "model_a", "--root", shop_stored).status == 0
    assert run("vacuum", "payment_risk", "--root", shop_stored).status == 0


def test_historical_features_have_one_row_per_row_of_the_file(run: Run, stored: Path, tmp_path: Path) -> None:
    spine = tmp_path / "spine.csv"
    spine.write_text(
        "customer,event_timestamp,amount\nc0001,2025-04-05T00:00:00Z,5.0\nnobody,2025-04-05T00:00:00Z,7.5\n",
        encoding="utf-8",
    )
    rows = run("get-historical", "fraud_model", "-s", spine, "--root", stored, "--json").json
    assert [row["customer"] for row in rows] == ["c0001", "nobody"]
    assert rows[1]["credit_limit"] is None
    output = tmp_path / "out.parquet"
    assert run("get-historical", "profile", "-s", spine, "--root", stored, "-o", output).status == 0
    assert pq.read_table(output).column_names == [
        "customer",
        "event_timestamp",
        "amount",
        "credit_limit",
        "segment",
    ]


def test_the_online_answer_is_the_historical_one_for_that_instant(run: Run, stored: Path) -> None:
    now = "2025-05-30T00:00:00Z"
    keys = ["c0001", "c0002", "c0003"]
    online = run(
        "get-online", "fraud_model", *(f"--key=customer={k},amount=25" for k in keys), "--now", now,
        "--root", stored, "--json",
    ).json  # fmt: skip
    spine = pa.table(
        {
            "customer": keys,
            "event_timestamp": pa.array([1_748_563_200_000_000_000] * 3, pa.timestamp("ns", "UTC")),
            "amount": [25.0] * 3,
        }
    )
    history = FeatureStore(stored).get_historical_features(spine, "fraud_model").to_arrow()
    expected = history.drop_columns(["event_timestamp"]).to_pylist()
    assert online == json.loads(json.dumps(expected))


def test_keys_are_read_by_the_types_that_the_catalog_recorded(run: Run, stored: Path) -> None:
    refused = run("get-online", "fraud_model", "-k", "customer=c0001,amount=much", "--root", stored)
    assert refused.status == 1
    assert "'much' is not of type float64" in refused.err
    assert "--key" in run("get-online", "profile", "-k", "c0001", "--root", stored).err
    apart = run("get-online", "fraud_model", "-k", "customer=c0001", "-k", "amount=25", "--root", stored)
    assert "hint: one --key is one entity: join its columns by commas" in apart.err
    # A string key that looks like a number stays a string.
    (row,) = run("get-online", "profile", "-k", "customer=0001", "--root", stored, "--json").json
    assert row["customer"] == "0001"


def test_tables_show_columns_under_their_own_names(run: Run, shop_stored: Path) -> None:
    root = ["--root", str(shop_stored)]
    assert "credit_limit" in run("get-online", "profile", "-k", "customer=c0001", *root).out
    run("pin", "profile", "1", "--tag", "kept", *root)
    assert "│ kept │" in run("history", "profile", *root).out


def test_a_run_that_nobody_watches_says_its_steps_in_lines(run: Run, shop: Path) -> None:
    run("apply", "--root", str(shop))
    said = run("materialize", "profile", "--json", "--root", str(shop))
    steps = [line.split(":")[0] for line in said.err.splitlines()]
    assert steps == ["read", "read", "compute", "compute"]
    assert " 900 rows, " in said.err.splitlines()[-1]
    assert said.json[0]["rows"] == 900


def test_rows_can_be_exported_and_erased(run: Run, shop_stored: Path, tmp_path: Path) -> None:
    key = ["--key", "customer=c0001", "--root", str(shop_stored)]
    before = {row["place"]: row["rows"] for row in run("export", "customer", *key, "--json").json}
    assert {"source/profiles", "dataset/payment_risk@1", "online/profile@1"} <= before.keys()
    assert run("export", "customer", *key, "-o", tmp_path / "held").status == 0
    assert len(list((tmp_path / "held").glob("*.parquet"))) == len(before)
    expected = run("erase", "customer", *key, "--dry-run", "--json").json
    erased = run("erase", "customer", *key, "--yes", "--json").json
    assert erased["online_rows"] == expected["online_rows"] == 2  # (view, key) pairs, not the rows they hold
    assert erased["remaining"]["source/profiles"] == before["source/profiles"]
    left = {row["place"] for row in run("export", "customer", *key, "--json").json}
    assert not [place for place in left if place.startswith("online/")]


def test_a_key_is_typed_as_text_where_its_column_is_dictionary_encoded(run: Run, shop: Path) -> None:
    for path in (shop / "data").glob("*.parquet"):
        rows = pq.read_table(path)
        at = rows.schema.get_field_index("customer")
        codes = rows.column(at).cast(pa.dictionary(pa.int32(), pa.string()))
        pq.write_table(rows.set_column(at, "customer", codes), path)
    assert run("apply", "--root", shop).status == 0
    held = run("export", "customer", "--key", "customer=c0001", "--root", shop, "--json")
    assert {row["place"]: row["rows"] for row in held.json}["source/profiles"] == 2


def test_an_erasure_names_the_files_in_which_its_proof_found_the_key(run: Run, shop_stored: Path) -> None:
    key = ["--key", "customer=c0001", "--root", str(shop_stored)]
    assert run("export", "customer", *key, "-o", shop_stored / "held").status == 0
    erased = run("erase", "customer", *key, "--yes")
    assert erased.status == 1
    assert "held/source-profiles.parquet" in erased.out
    for file in (shop_stored / "held").iterdir():
        file.unlink()
    assert run("erase", "customer", *key, "--yes").status == 0


def test_a_file_is_appended_to_a_source_and_compaction_keeps_the_content(
    run: Run, shop: Path, tmp_path: Path
) -> None:
    (shop / "data" / "payments").mkdir()
    (shop / "data" / "payments.parquet").rename(shop / "data" / "payments" / "first.parquet")
    definitions = shop / "definitions.py"
    definitions.write_text(definitions.read_text("utf-8").replace("payments.parquet", "payments"), "utf-8")
    more = tmp_path / "more.parquet"
    pq.write_table(pq.read_table(shop / "data" / "payments" / "first.parquet").slice(0, 7), more)
    assert run("apply", "--root", shop).status == 0
    assert run("ingest", "payments", more, "--root", shop).status == 0
    (made,) = run("materialize", "payment_risk", "--root", shop, "--json").json
    assert made["rows"] == 20_007
    (compacted,) = run("compact", "payment_risk", "--root", shop, "--json").json
    assert compacted["fingerprint"] == made["fingerprint"]


def test_pushed_rows_are_readable_online_at_once(run: Run, shop_stored: Path, tmp_path: Path) -> None:
    at = ["--root", shop_stored]
    rows = pq.read_table(shop_stored / "data" / "profiles.parquet").slice(0, 1)
    (customer,) = rows["customer"].to_pylist()
    newest = pa.array([2_000_000_000_000_000_000], pa.timestamp("ns", "UTC"))
    for name in rows.column_names:
        if pa.types.is_timestamp(rows.schema.field(name).type):
            place, field = rows.column_names.index(name), rows.schema.field(name)
            rows = rows.set_column(place, field, newest.cast(field.type))
        elif name == "credit_limit":
            field = rows.schema.field(name)
            rows = rows.set_column(rows.column_names.index(name), field, pa.array([77_777], field.type))
    pq.write_table(rows, tmp_path / "more.parquet")
    pushed = run("push", "profiles", tmp_path / "more.parquet", *at)
    assert pushed.status == 0, pushed.err
    assert "profile@1" in pushed.err
    asked = ("get-online", "profile:credit_limit", "--key", f"customer={customer}")
    (row,) = run(*asked, "--now", "2033-06-01T00:00:00Z", "--json", *at).json
    assert row["credit_limit"] == 77_777
    refused = run("push", "profiles", tmp_path / "more.parquet", "--to", "everywhere", *at)
    assert (refused.status, "both" in refused.err) == (1, True)


def test_logged_answers_are_replayed_against_history(run: Run, stored: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers"
    now = "2025-05-30T00:00:00Z"
    store = FeatureStore(stored)
    with (
        store.serve(now=now, answer_log=str(answers), answer_fraction=1.0) as handle,
        OnlineClient(handle.address, timeout_s=60) as client,
    ):
        client.get_online_features(["profile", "spending"], {"customer": [f"c{i:04d}" for i in range(50)]})
    report = run("verify-online", answers, "--root", stored, "--json")
    assert report.status == 0
    assert report.json["ok"]
    assert report.json["rows"] == 50


def test_datasets_are_tables_of_one_read_only_query(run: Run, stored: Path, tmp_path: Path) -> None:
    (row,) = run("sql", "select count(*) n from payment_risk", "--root", stored, "--json").json
    assert row == {"n": 20_000}
    output = tmp_path / "segments.csv"
    query = "select segment, count(*) n from payment_risk group by 1 order by 1"
    assert run("sql", query, "--root", stored, "-o", output).status == 0
    assert len(output.read_text(encoding="utf-8").splitlines()) == 4
    for refused in (
        "drop table payment_risk",
        "select * from 'data/payments.parquet'",
        "select * from nothing",
    ):
        answer = run("sql", refused, "--root", stored)
        assert answer.status == 1
        assert answer.err.startswith("error: ")


def _served(root: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    program = "import sys; from featurestore.cli import main; sys.exit(main(sys.argv[1:]))"
    free = "127.0.0.1:0"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "serve", "--root", str(root), "--address", free, "--http", free,
         "--flight", free, *options],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "300"},
    )  # fmt: skip
    assert process.stderr is not None
    words = ""
    while "Ctrl-C ends it" not in words:
        line = process.stderr.readline()
        assert line, words
        words += line
    return process, words


def test_an_access_file_lets_in_who_it_names_and_nobody_else(stored: Path, tmp_path: Path) -> None:
    hashed = hashlib.sha256(TOKEN.encode()).hexdigest()
    access = tmp_path / "access.yaml"
    access.write_text(f"tokens:\n- {{principal: model, sha256: {hashed}, roles: [read]}}\n")
    process, words = _served(stored, "--access", str(access))
    try:
        where = re.search(r"gRPC on (127\.0\.0\.1:\d+)", words)
        bulk = re.search(r"Flight on (127\.0\.0\.1:\d+)", words)
        assert where
        assert bulk
        rows = [{"customer": "c0001"}]
        with OnlineClient(where[1], token=TOKEN) as known:
            assert known.get_online_features(["profile:credit_limit"], rows).num_rows == 1
        with OnlineClient(where[1]) as stranger, pytest.raises(FeatureStoreError, match="token"):
            stranger.get_online_features(["profile:credit_limit"], rows)
        with BulkClient(bulk[1], token=TOKEN) as known_bulk:
            assert known_bulk.sql("select count(*) as n from payment_risk").read_all().num_rows == 1
        with BulkClient(bulk[1]) as stranger_bulk, pytest.raises(FeatureStoreError, match="token"):
            stranger_bulk.sql("select 1").read_all()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def test_a_plan_of_a_run_is_printed_and_nothing_is_written(run: Run, shop_stored: Path) -> None:
    before = run("history", "payment_risk", "--root", shop_stored, "--json").json
    shown = run("materialize", "payment_risk", "--explain", "--root", shop_stored)
    assert shown.status == 0
    assert "payment_risk" in shown.out
    plan = run("materialize", "payment_risk", "--explain", "--json", "--root", shop_stored).json[0]
    assert plan["name"] == "payment_risk"
    assert plan["rows"] == sum(task["rows"] for task in plan["tasks"])
    assert {read["source"] for task in plan["tasks"] for read in task["reads"]} <= set(plan["sources"])
    assert run("history", "payment_risk", "--root", shop_stored, "--json").json == before


def test_a_server_says_where_it_listens_and_ends_with_sigterm(stored: Path) -> None:
    process, words = _served(stored)
    for front in ("gRPC", "HTTP", "Flight"):
        assert re.search(rf"{front} on 127\.0\.0\.1:[1-9]", words)
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 0, rest
    assert "draining" in rest


def _names(command: Any, prefix: str = "") -> list[str]:
    inside = getattr(command, "commands", None)
    if inside is None:
        return [prefix.strip()]
    return [name for key, sub in inside.items() for name in _names(sub, f"{prefix} {key}")]


def test_every_command_has_help_and_a_place_in_the_documentation(run: Run) -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    missing = [name for name in _names(typer.main.get_command(app)) if f"featurestore {name}" not in page]
    assert not missing
    for name in ("plan", "materialize", "serve", "catalog history"):
        shown = run(*name.split(), "--help")
        assert shown.status == 0
        assert re.search(r"Usage: featurestore", shown.out)


@pytest.mark.parametrize("name", ["materialize", "demo"])
def test_the_documentation_of_a_command_names_its_options(name: str, run: Run) -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    options = set(re.findall(r"--[a-z][a-z-]+", run(name, "--help").out)) - {"--help", "--root"}
    assert {option for option in options if option not in page} == set()
