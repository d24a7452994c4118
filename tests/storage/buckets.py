"""Object stores that tests start themselves, and feature stores in them."""

import logging
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import fsspec
import pytest
from tests.environment import SOAK

import featurestore as fs
from featurestore.catalog.definition import Definition
from featurestore.core.clock import ManualClock

BUCKET = "bucket"
AZURITE = "3.37.0"
AZURE_ACCOUNT = "devstoreaccount1"
# The emulator's one account: its key is part of its documentation.
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@contextmanager
def s3_server() -> Iterator[dict[str, Any]]:
    """Run an S3 server in this process; yields the options that reach it. It has one bucket."""
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    options = s3_options(f"http://{host}:{port}")
    try:
        # Servers of one process share what they hold: an earlier one left its buckets.
        urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
        s3fs.S3FileSystem(**options).mkdir(BUCKET)
        yield options
    finally:
        running.stop()


def s3_options(endpoint: str, **more: Any) -> dict[str, Any]:
    """Return the options that reach an S3 server."""
    return {
        "key": "t",
        "secret": "t",
        "client_kwargs": {"endpoint_url": endpoint, "region_name": "eu-west-1"},
        **more,
    }


@contextmanager
def azure_server(folder: Path) -> Iterator[dict[str, Any]]:
    """Run Azurite, Microsoft's emulator; yields the options that reach it. It has one container.

    Where it is not installed, `make soak` installs it by npm into the user's cache folder.
    """
    adlfs = pytest.importorskip("adlfs", reason="adlfs is not installed")
    port = _free_port()
    command = [str(_azurite()), "--skipApiVersionCheck", "--silent", "--location", str(folder)]
    with subprocess.Popen([*command, "--blobPort", str(port)], stdout=subprocess.DEVNULL) as running:
        try:
            _wait_for(port)
            endpoint = f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}"
            options = {
                "account_name": AZURE_ACCOUNT,
                "account_key": AZURE_KEY,
                "connection_string": f"DefaultEndpointsProtocol=http;AccountName={AZURE_ACCOUNT};"
                f"AccountKey={AZURE_KEY};BlobEndpoint={endpoint};",
            }
            adlfs.AzureBlobFileSystem(**options).mkdir(BUCKET)
            yield options
        finally:
            running.kill()


def _azurite() -> Path:
    folder = Path("~/.cache/featurestore-tests/azurite").expanduser()
    program = folder / "node_modules" / ".bin" / "azurite-blob"
    if program.exists():
        return program
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("Azurite needs node and npm")
    if not SOAK:
        pytest.skip("Azurite is not installed: FEATURESTORE_SOAK=1 installs it")
    folder.mkdir(parents=True, exist_ok=True)
    install = ["npm", "install", "--no-audit", "--no-fund", "--silent", f"azurite@{AZURITE}"]
    if subprocess.run(install, cwd=folder, check=False, timeout=280).returncode:
        pytest.skip("npm could not install Azurite")
    return program


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("Azurite did not start")


def remote_store(
    url: str, options: Mapping[str, Any], scratch: Path, *, cache: str = "100MB", **config: Any
) -> fs.FeatureStore:
    """Open a feature store at a URL; copies and online values lie under `scratch`."""
    settings = {
        "storage_options": options,
        "buckets": 3,
        "threads": 2,
        "lease": "3s",
        "cache": {"path": str(scratch / "cache"), "size": cache},
        "online": {"path": str(scratch / "online")},
        **config,
    }
    return fs.FeatureStore(url, settings, clock=ManualClock(16_000 * 86_400 * 10**9))


def filled_store(
    origin: Path, definitions: list[Definition], store: fs.FeatureStore, options: Mapping[str, Any]
) -> fs.FeatureStore:
    """Copy the source files of a local store to a remote one and apply its definitions."""
    copy_sources(origin, store.root, options)
    store.apply(definitions)
    return store


def copy_sources(origin: Path, url: str, options: Mapping[str, Any]) -> None:
    """Copy the folders `spine` and `events`."""
    remote, inside = fsspec.core.url_to_fs(url, **options)
    for path in sorted([*origin.glob("spine/*"), *origin.glob("events/*")]):
        remote.pipe_file(f"{inside}/{path.relative_to(origin).as_posix()}", path.read_bytes())
