"""Every Python block of the documentation runs as printed."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from featurestore.cli import main
from featurestore.core.config import CacheConfig, OnlineConfig, StoreConfig, store_config

ROOT = Path(__file__).parents[2]
PAGES = sorted(p for p in (ROOT / "docs").glob("*.md") if "```python" in p.read_text(encoding="utf-8"))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")


def _blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def _run(program: str, folder: Path) -> str:
    script = folder / "_example.py"  # an underscore: not a definition
    script.write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_example_runs_as_printed_and_prints_what_the_readme_says(tmp_path: Path) -> None:
    (example,) = _blocks(ROOT / "README.md")
    assert len(example.strip().splitlines()) <= 36
    training, online = _run(example, tmp_path).strip().splitlines()
    assert training == (
        "[{'symbol': 'A', 'mid': 99.1, 'volume_10s': 100, 'rise': True}, "
        "{'symbol': 'A', 'mid': 99.5, 'volume_10s': 150, 'rise': None}, "
        "{'symbol': 'B', 'mid': None, 'volume_10s': 10, 'rise': None}]"
    )
    assert online == "{'symbol': ['A'], 'mid': [99.1]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_python_blocks_of_a_page_run_one_after_the_other(page: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    assert main(["init", str(folder)]) == 0
    _run("\n".join(_blocks(page)), folder)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
)
def test_every_local_link_leads_somewhere(page: Path) -> None:
    links = LINK.findall(page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_every_page_is_in_the_index() -> None:
    linked = set(LINK.findall((ROOT / "docs" / "index.md").read_text(encoding="utf-8")))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"} <= linked


def test_every_setting_is_documented_with_its_default() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([a-z_.]+)` \| (?:`([^`]+)`|[^`|]+) \|", page, re.MULTILINE))
    raw: dict[str, Any] = {}
    for key, default in told.items():
        group, _, name = key.rpartition(".")
        if default:
            (raw.setdefault(group, {}) if group else raw)[name] = yaml.safe_load(default)
    assert store_config(raw) == StoreConfig()
    nested = {"online": OnlineConfig, "cache": CacheConfig}
    names = {f.name for f in fields(StoreConfig) if f.name not in nested}
    names |= {f"{group}.{f.name}" for group, shape in nested.items() for f in fields(shape)}
    assert {name.removesuffix("_bytes").removesuffix("_ns") for name in names} == set(told)


def test_the_pictures_are_what_their_script_draws(tmp_path: Path) -> None:
    pictures = ROOT / "docs" / "pictures"
    script = tmp_path / "draw.py"
    script.write_text((pictures / "draw.py").read_text(encoding="utf-8"), encoding="utf-8")
    subprocess.run([sys.executable, str(script)], check=True)
    for drawn in tmp_path.glob("*.svg"):
        assert drawn.read_text(encoding="utf-8") == (pictures / drawn.name).read_text(encoding="utf-8")
    assert {p.name for p in tmp_path.glob("*.svg")} == {p.name for p in pictures.glob("*.svg")}
