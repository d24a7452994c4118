"""Lineage: what is made from what, down to columns, in four forms."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from tests.catalog.house import SYMBOL, TRADES_SOURCE, catalog_in, market, quote_view

from featurestore import FeatureService, FeatureView, TrainingSet
from featurestore.catalog.catalog import Catalog
from featurestore.errors import NotFoundError


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = catalog_in(tmp_path)
    catalog.apply([market()["train"]])
    return catalog


def names(ids: object) -> set[str]:
    """Return the names alone."""
    return {str(i).partition("/")[2].partition("@")[0] for i in ids}  # type: ignore[attr-defined]


def test_up_and_down_hold_everything_on_the_way(catalog: Catalog) -> None:
    lineage = catalog.lineage("quote")
    assert names(lineage.up) == {"quotes", "symbol"}
    assert names(lineage.down) == {"drift", "edge", "model", "move", "train"}
    assert names(catalog.lineage("train").up) == {name for _, name in catalog.snapshot().heads} - {"train"}
    assert catalog.lineage("train").down == frozenset()


def test_nodes_come_in_the_order_of_dependency(catalog: Catalog) -> None:
    lineage = catalog.lineage("train")
    place = {node: i for i, node in enumerate(lineage.nodes)}
    assert all(place[e.source] < place[e.target] for e in lineage.edges)


def test_columns_are_followed_through_expressions_windows_and_names(catalog: Catalog) -> None:
    edges = {(e.source, e.target): set(e.columns) for e in catalog.lineage("train").edges}
    assert edges["source/quotes@1", "feature_view/quote@1"] == {
        ("bid", "bid"),
        ("bid", "mid"),
        ("ask", "mid"),
    }
    assert edges["feature_view/quote@1", "feature_view/drift@1"] == {("mid", "twice"), ("mid", "mid_std")}
    assert edges["source/trades@1", "feature_view/flow@1"] == {("size", "size_sum_10s")}
    assert edges["feature_view/quote@1", "on_demand_feature_view/edge@1"] == {("mid", "edge_now")}
    assert edges["feature_view/quote@1", "label/move@1"] == {("mid", "move")}
    assert ("mid", "mid") in edges["feature_view/quote@1", "feature_service/model@1"]
    assert edges["label/move@1", "training_set/train@1"] == {("move", "move")}
    assert ("price", "price") in edges["source/trades@1", "training_set/train@1"]
    assert edges["entity/symbol@1", "source/quotes@1"] == set()


def test_one_feature_has_a_smaller_lineage(catalog: Catalog) -> None:
    lineage = catalog.lineage("quote:bid")
    assert names(lineage.up) == {"quotes"}
    assert names(lineage.down) == {"model", "train"}
    assert all(("ask", "mid") not in e.columns for e in lineage.edges)
    assert names(catalog.lineage("drift:twice").up) == {"quote", "quotes"}
    assert names(catalog.lineage("quotes:ask").down) == {"quote", "drift", "edge", "model", "move", "train"}
    with pytest.raises(NotFoundError, match="did you mean 'bid'"):
        catalog.lineage("quote:bit")


def test_renamed_outputs_are_followed(tmp_path: Path) -> None:
    catalog = catalog_in(tmp_path / "other")
    twin = FeatureView("twin", source=TRADES_SOURCE, entities=[SYMBOL], features={"mid": "price"})
    train = TrainingSet(
        "t",
        spine=TRADES_SOURCE,
        features=["again=quote:mid", "twin"],
        key_map={"again": {"symbol": "symbol"}},
    )
    catalog.apply([train, quote_view(), twin, FeatureService("both", features=["quote:mid", "twin:mid"])])
    edges = {(e.source, e.target): set(e.columns) for e in catalog.lineage("quote:mid").edges}
    assert edges["feature_view/quote@1", "training_set/t@1"] == {("mid", "again__mid")}
    assert edges["feature_view/quote@1", "feature_service/both@1"] == {("mid", "quote__mid")}


def test_an_older_version_shows_what_it_read(catalog: Catalog) -> None:
    catalog.apply([quote_view("bid")])
    assert "feature_view/quote@1" in catalog.lineage("drift@1").up
    assert "feature_view/quote@2" in catalog.lineage("drift").up
    assert catalog.lineage("quote@1").down == frozenset()


def test_text_shows_two_trees(catalog: Catalog) -> None:
    text = catalog.lineage("drift").to_text()
    assert text.splitlines()[:4] == [
        "feature view drift@1",
        "is made from",
        "  ├─ feature view quote@1: mid",
        "  │  ├─ source quotes@1: bid, ask",
    ]
    assert "  └─ feature service model@1: twice, mid_std" in text
    assert catalog.lineage("train").to_text().endswith("is read by nothing\n")
    assert "is made from nothing else" in catalog.lineage("symbol", "entity").to_text()


def test_json_holds_the_graph(catalog: Catalog) -> None:
    told = json.loads(json.dumps(catalog.lineage("quote:mid").to_json()))
    assert told["root"] == "feature_view/quote@1"
    assert told["feature"] == "mid"
    assert {"from": "feature_view/quote@1", "to": "label/move@1", "columns": [["mid", "move"]]} in told[
        "edges"
    ]


def test_mermaid_names_every_node_and_arrow(catalog: Catalog) -> None:
    lineage = catalog.lineage("quote")
    lines = lineage.to_mermaid().splitlines()
    assert lines[0] == "flowchart LR"
    assert sum(" -- " in line or " -.-> " in line for line in lines) == len(lineage.edges)
    declared = {m[1] for line in lines[1:] if (m := re.match(r"    (\w+)[\[({]", line))}
    assert len(declared) == len(lineage.nodes)


def test_the_picture_is_well_formed_and_boxes_do_not_overlap(catalog: Catalog) -> None:
    lineage = catalog.lineage("model")
    root = ET.fromstring(lineage.to_svg())  # noqa: S314 -- our own text
    space = "{http://www.w3.org/2000/svg}"
    boxes = [r for r in root.iter(f"{space}rect") if "box" in (r.get("class") or "")]
    assert len(boxes) == len(lineage.nodes)
    places = [tuple(float(r.get(k) or 0) for k in ("x", "y", "width", "height")) for r in boxes]
    for i, (x, y, w, h) in enumerate(places):
        for a, b, c, d in places[i + 1 :]:
            assert x + w <= a or a + c <= x or y + h <= b or b + d <= y
    width, height = float(root.get("width") or 0), float(root.get("height") or 0)
    assert all(x + w <= width and y + h <= height for x, y, w, h in places)
    shown = {t.text for t in root.iter(f"{space}text")}
    assert {"model@1", "quote@1", "mid", "bid"} <= shown


def test_a_picture_of_odd_names_is_well_formed(tmp_path: Path) -> None:
    catalog = catalog_in(tmp_path / "other")
    view = quote_view(features={"a < b & c": "bid"})
    catalog.apply([view])
    ET.fromstring(catalog.lineage("quote").to_svg())  # noqa: S314 -- our own text
    assert "a &lt; b &amp; c" in catalog.lineage("quotes:bid").to_svg()
