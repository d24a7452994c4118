"""`featurestore doctor`: what is installed, what is usable, and why the rest is not.

Every library is tried in a process of its own: one that crashes on import is reported like a missing one.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.table import Table

from featurestore.cli.session import AsJson, cell, leave, notes, out, print_json

PROBE_SECONDS: Final = 60
PROBES_AT_ONCE: Final = 4
_VERSIONS: Final = """
import importlib, importlib.metadata, json, sys
found = {}
for module, package in json.loads(sys.argv[1]):
    try:
        importlib.import_module(module)
        found[package] = importlib.metadata.version(package)
    except Exception as error:
        found[package] = f"!{type(error).__name__}: {error}"
print(json.dumps(found))
"""
CORE: Final = (
    ("numpy", "numpy"), ("numba", "numba"), ("pyarrow", "pyarrow"), ("polars", "polars"),
    ("deltalake", "deltalake"), ("duckdb", "duckdb"), ("xxhash", "xxhash"), ("fsspec", "fsspec"),
    ("lmdb", "lmdb"), ("yaml", "pyyaml"), ("typer", "typer"), ("rich", "rich"),
)  # fmt: skip
EXTRAS: Final = {
    "serve": (
        ("grpc", "grpcio"), ("grpc_health", "grpcio-health-checking"),
        ("grpc_reflection", "grpcio-reflection"), ("jwt", "pyjwt"),
    ),
    "torch": (("torch", "torch"),),
    "jax": (("jax", "jax"),),
    "gpu": (("cupy", "cupy-cuda13x"), ("kvikio", "kvikio-cu13")),
    "ray": (("ray", "ray"),),
    "redis": (("redis", "redis"),),
    "s3": (("s3fs", "s3fs"),),
    "azure": (("adlfs", "adlfs"),),
    "otel": (("opentelemetry.trace", "opentelemetry-api"), ("opentelemetry.sdk.trace", "opentelemetry-sdk")),
    "testing": (("pytest", "pytest"), ("hypothesis", "hypothesis")),
}  # fmt: skip
# Each prints one line: what it can use. It runs only where its extra imports.
DEVICES: Final = {
    "torch": "import torch; n = torch.cuda.device_count(); "
    "print(', '.join(torch.cuda.get_device_name(i) for i in range(n)) if n else "
    "'CPU only: ' + ('built without CUDA' if torch.version.cuda is None else 'CUDA finds no device'))",
    "jax": "import jax; print(', '.join(str(d) for d in jax.devices()))",
    "gpu": "import cupy, kvikio.defaults; n = cupy.cuda.runtime.getDeviceCount(); "
    "print(f'{n} devices, GPUDirect compatibility mode {kvikio.defaults.get(\"compat_mode\")}')",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        part: `core`, the name of an extra, or `machine`.
        usable: Whether it can be used here and now.
        found: Versions, devices, or why it is not usable.
        remedy: What would make it usable; empty where nothing is wrong.
    """

    part: str
    usable: bool
    found: str
    remedy: str = ""


def doctor(
    as_json: AsJson = False,
    warm: Annotated[bool, typer.Option("--warm", help="Compile the kernels now, and keep them.")] = False,
) -> None:
    """Say what is installed, which extras and accelerators are usable, and why not."""
    with notes().status("looking around"):
        with ThreadPoolExecutor(PROBES_AT_ONCE) as pool:
            parts = list(pool.map(_part, ("core", *EXTRAS), (CORE, *EXTRAS.values())))
        findings = [_machine(), *parts, _gpu_driver()]
    if warm:
        findings.append(_warm())
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        out().print(_table(findings))
    if not all(finding.usable for finding in findings if finding.part in {"core", "kernels"}):
        leave(1)


def _machine() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        memory = f", {total / 1e9:.1f} GB of memory"
    found = (
        f"featurestore {metadata.version('featurestore')}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {cores} cores{memory}"
    )
    return Finding("machine", sys.version_info >= (3, 11), found)


def _part(name: str, modules: Sequence[tuple[str, str]]) -> Finding:
    answer = _probe(_VERSIONS, json.dumps(modules))
    if answer is None:
        return Finding(name, False, "its import crashed or did not end", _pip(name))
    versions: dict[str, str] = json.loads(answer.splitlines()[-1])
    broken = {package: text[1:] for package, text in versions.items() if text.startswith("!")}
    if broken:
        return Finding(name, False, "; ".join(_why(p, reason) for p, reason in broken.items()), _pip(name))
    found = ", ".join(f"{package} {version}" for package, version in versions.items())
    if name in DEVICES:
        device = _probe(DEVICES[name])
        found += f" ({device.splitlines()[-1] if device else 'its devices could not be listed'})"
    return Finding(name, True, found)


def _why(package: str, reason: str) -> str:
    return (
        f"{package} is not installed" if reason.startswith("ModuleNotFoundError") else f"{package}: {reason}"
    )


def _pip(extra: str) -> str:
    return "pip install featurestore" if extra == "core" else f"pip install 'featurestore[{extra}]'"


def _gpu_driver() -> Finding:
    driver = Path("/proc/driver/nvidia/version")
    if not driver.is_file():
        return Finding(
            "gpu driver",
            False,
            "no NVIDIA driver is loaded: loaders use the CPU tiers",
            "a machine with a GPU",
        )
    return Finding("gpu driver", True, driver.read_text(encoding="utf-8").splitlines()[0])


def _warm() -> Finding:
    from featurestore.core.compiling import announced
    from featurestore.temporal.warm import warm_kernels

    with announced(), notes().status("compiling kernels"):
        warm_kernels()
    return Finding("kernels", True, "compiled and cached")


def _probe(program: str, *arguments: str) -> str | None:
    """Run a small program in a fresh interpreter; `None` if it fails or takes longer than a minute."""
    command = [sys.executable, "-W", "ignore", "-c", program, *arguments]
    try:
        done = subprocess.run(  # noqa: S603 -- our own interpreter, our own program
            command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(header_style="bold")
    for column in ("part", "usable", "found", "to make it usable"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        mark = "[green]yes[/]" if finding.usable else "[yellow]no[/]"
        table.add_row(finding.part, mark, cell(finding.found), cell(finding.remedy))
    return table
