"""The catalog's commands: lists, details, lineage, history, differences, rollback; in text and JSON."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import typer
from rich.console import Console
from tests.catalog.house import QUOTES, catalog_in, market, quote_view
from typer.testing import CliRunner

from featurestore import FeatureStore
from featurestore.catalog.plan import Plan
from featurestore.cli.catalog_commands import register
from featurestore.cli.plan_view import plan_json, plan_renderable, render_plan

DEFINITIONS = """\
import featurestore as fs

symbol = fs.Entity("symbol", description="ticker")
quotes = fs.Source("quotes", path="quotes.parquet", timestamp_field="ts", entities=[symbol])
quote = fs.FeatureView(
    "quote",
    source=quotes,
    entities=[symbol],
    features={"bid": "bid", "mid": "(bid + ask) / 2"},
    aggregations=[fs.Aggregation("bid", "max", "1h", name="high", tile="5m")],
    ttl="5s",
)
request = {"p": "float64"}
edge = fs.OnDemandFeatureView("edge", inputs=["quote:mid"], request=request, features={"e": "p / mid"})
model = fs.FeatureService("model", features=[quote, edge])
move = fs.Label("move", source=quote, expression="mid / start.mid - 1", horizon="5m")
train = fs.TrainingSet("train", spine=quotes, features=["quote:mid"], labels=[move])
"""

Run = Callable[..., str]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    pq.write_table(QUOTES.empty_table(), tmp_path / "quotes.parquet")
    (tmp_path / "feature_store.yaml").write_text("project: test\n")
    (tmp_path / "definitions.py").write_text(DEFINITIONS)
    monkeypatch.chdir(tmp_path)
    store = FeatureStore(tmp_path)
    store.apply(store.plan(), message="begin")
    text = DEFINITIONS.replace("(bid + ask) / 2", "bid").replace("ticker", "the ticker")
    (tmp_path / "definitions.py").write_text(text)
    store.apply(store.plan(), message="simpler")
    return store


@pytest.fixture
def run(store: FeatureStore) -> Run:  # noqa: ARG001 -- it makes the folder
    app = typer.Typer()
    register(app)

    def call(*words: str) -> str:
        result = CliRunner().invoke(app, list(words), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    return call


@pytest.mark.parametrize(
    ("group", "names"),
    [
        ("views", ["quote", "edge"]),
        ("entities", ["symbol"]),
        ("sources", ["quotes"]),
        ("services", ["model"]),
        ("labels", ["move"]),
        ("training-sets", ["train"]),
    ],
)
def test_every_kind_is_listed_and_shown(run: Run, group: str, names: list[str]) -> None:
    rows = json.loads(run(group, "list", "--json"))
    assert [row["name"] for row in rows] == names
    for name in names:
        assert name in run(group, "list")
        shown = json.loads(run(group, "show", name, "--json"))
        assert shown["definition"]["name"] == name
        assert name in run(group, "show", name)


def test_a_view_is_shown_as_a_person_would_write_it(run: Run) -> None:
    shown = run("views", "show", "quote")
    assert "mid = bid" in shown
    assert "high = max of bid over 1h, tile 5m" in shown
    assert "timestamp[ns, tz=UTC]" in shown
    assert "[1, 2]" in shown
    assert "mid = (bid + ask) / 2" in run("views", "show", "quote@1")
    assert json.loads(run("views", "show", "quote", "--json"))["versions"] == [1, 2]


def test_lists_in_json_are_lists_and_what_is_not_there_is_null(run: Run) -> None:
    view, on_demand = json.loads(run("views", "list", "--json"))
    assert (view["entities"], view["ttl"]) == (["symbol"], "5s")
    assert (on_demand["source"], on_demand["ttl"]) == (["quote:mid"], None)
    assert json.loads(run("entities", "list", "--json"))[0]["join_keys"] == ["symbol"]
    assert json.loads(run("training-sets", "list", "--json"))[0]["labels"] == ["move"]
    assert "null" not in run("views", "list")


def test_lists_can_be_of_an_older_catalog(run: Run) -> None:
    assert json.loads(run("views", "list", "--json", "--at", "1"))[0]["version"] == 1
    assert json.loads(run("views", "list", "--json"))[0]["version"] == 2


def test_lineage_in_every_form(run: Run, tmp_path: Path) -> None:
    assert "source quotes@1" in run("lineage", "quote")
    assert run("lineage", "quote:mid", "--format", "mermaid").startswith("flowchart LR")
    assert json.loads(run("lineage", "quote", "--json"))["root"] == "feature_view/quote@2"
    run("lineage", "train", "-f", "svg", "-o", "train.svg")
    assert (tmp_path / "train.svg").read_text().startswith("<svg")


def test_history_difference_and_rollback(run: Run) -> None:
    history = json.loads(run("catalog", "history", "--json"))
    assert [(h["version"], h["message"]) for h in history] == [(2, "simpler"), (1, "begin")]
    assert "simpler" in run("catalog", "history", "-n", "1")
    assert "begin" not in run("catalog", "history", "-n", "1")
    assert "features.mid: (bid + ask) / 2 → bid" in run("catalog", "diff", "1", "2")
    changes = json.loads(run("catalog", "diff", "1", "--json"))
    assert changes[0]["fields"] == [{"field": "description", "before": "ticker", "after": "the ticker"}]
    assert "no difference" in run("catalog", "diff", "2")
    assert json.loads(run("catalog", "rollback", "1", "--json"))["catalog_version"] == 3
    assert "that is what version 3 holds" in run("catalog", "rollback", "1")


def printed(plan: Plan) -> str:
    """Return what a person sees, without colours."""
    console = Console(width=120, record=True, file=io.StringIO())
    render_plan(plan, console)
    return console.export_text()


def test_a_plan_for_people_shows_signs_fields_reasons_and_what_breaks(tmp_path: Path) -> None:
    catalog = catalog_in(tmp_path)
    assert "+ feature view quote@1" in printed(catalog.plan([market()["train"]]))
    catalog.apply([market()["train"]])
    text = printed(catalog.plan([quote_view("bid", description="x [bold]y[/]")]))
    assert "catalog version 1 → 2" in text
    assert "~ feature view quote@1 → @2" in text
    assert "features.mid: (bid + ask) / 2 → bid" in text
    assert "description:  → x [bold]y[/]" in text
    assert "because feature_view/quote@1 → @2" in text
    assert "to materialize again: quote@2, drift@2, train@2" in text
    gone = printed(catalog.plan([], remove=["train"]))
    assert "- training set train@1  breaking" in gone
    assert "nothing to change: the catalog is at version 1" in printed(catalog.plan([market()["train"]]))


def test_a_plan_has_colours_on_a_terminal(tmp_path: Path) -> None:
    console = Console(force_terminal=True, color_system="truecolor", width=100, file=io.StringIO())
    console.print(plan_renderable(catalog_in(tmp_path).plan([quote_view()])))
    file: Any = console.file
    assert "\x1b[32m" in file.getvalue()


def test_a_plan_for_machines_is_json(tmp_path: Path) -> None:
    told = json.loads(json.dumps(plan_json(catalog_in(tmp_path).plan([market()["train"]]))))
    assert len(told["changes"]) == 10
