"""The whole path on ticks: from files to a trained model, a live answer, and a second day."""

import importlib.util
import shutil
import tempfile
from pathlib import Path

from rich.console import Console

from featurestore.demo.folder import TickDays, find_days, generated_days
from featurestore.demo.memory import peak_bytes
from featurestore.demo.report import report_html
from featurestore.demo.screen import Screen
from featurestore.demo.steps import Demo, define, materialize, open_demo, second_day, train, verify
from featurestore.demo.ticks import TickSize
from featurestore.errors import AlreadyExistsError


def run_demo(
    *, data: Path | None, root: Path | None, keep: bool, report: Path, size: TickSize | None = None
) -> bool:
    """Run the six steps and say whether every check held.

    Args:
        data: A folder of real ticks; `None` generates two days of them.
        root: Where the store is made; `None`: a temporary folder, removed at the end unless `keep`.
        report: The HTML file that is written at the end.

    Raises:
        AlreadyExistsError: `root` is there and not empty.
        NotFoundError: `data` holds fewer than two days of ticks.
    """
    screen = Screen(Console(highlight=False))
    if root is not None and root.exists() and any(root.iterdir()):
        raise AlreadyExistsError(
            f"{root} is there and not empty", hint="name a new folder: the demo begins with an empty store"
        )
    folder = Path(tempfile.mkdtemp(prefix="featurestore-demo-")) if root is None else root
    try:
        ticks = _ticks(screen, data, folder, size or TickSize())
        demo = _steps(screen, ticks, folder)
        screen.facts["time"] = f"{screen.seconds:.1f} s"
        screen.facts["peak memory"] = f"{peak_bytes() / 1e9:.2f} GB"
        for process, peak in demo.peaks.items():
            screen.facts["peak memory"] += f"; {process} {peak / 1e9:.2f} GB"
        origin = "generated ticks" if data is None else f"the ticks in {data}"
        write_report(demo, report, origin=origin)
        screen.facts["report"] = str(report)
        if root is not None or keep:
            screen.facts["store"] = f"{folder}: try featurestore history trade_features --root {folder}"
        screen.close()
    finally:
        if root is None and not keep:
            shutil.rmtree(folder, ignore_errors=True)
    return screen.all_hold


def _ticks(screen: Screen, data: Path | None, folder: Path, size: TickSize) -> TickDays:
    if data is not None:
        return find_days(data)
    with screen.work("generating two days of ticks"):
        return generated_days(folder / "incoming", size=size)


def _steps(screen: Screen, ticks: TickDays, root: Path) -> Demo:
    with screen.step("sources, definitions in an ordinary file, plan, apply"):
        demo = open_demo(screen, ticks, root)
        define(demo)
    with screen.step("materialize: trades with quotes, flows and labels, as one version"):
        materialize(demo)
    with screen.step("verify: hashes, rows, leaks; recreate from pinned inputs"):
        verify(demo)
    with screen.step("train one epoch through the loader, split by time"):
        train(demo)
    with screen.step("serve: newest values over gRPC, compared with history"):
        if importlib.util.find_spec("grpc") is None:
            screen.skip("gRPC equals history", "grpcio is not installed: pip install 'featurestore[serve]'")
        else:
            from featurestore.demo.serving import serve  # noqa: PLC0415 -- an optional library

            serve(demo)
    with screen.step("another day arrives: version 2, and version 1 as it was"):
        second_day(demo)
    return demo


def write_report(demo: Demo, path: Path, *, origin: str) -> None:
    """Write the HTML report of a finished run."""
    lead = f"Run on {origin}: {len(demo.ticks.days)} days; the last one arrived after version 1 was made."
    html = report_html(
        title="featurestore demo",
        lead=lead,
        facts=demo.screen.facts,
        checks=demo.screen.checks,
        age=demo.ages,
        rows=demo.counts,
        losses=demo.losses,
    )
    path.write_text(html, encoding="utf-8")
