"""Object stores that tests start themselves, and feature stores in them."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest

import featurestore as fs
from featurestore.catalog.definition import Definition
from featurestore.core.clock import ManualClock

BUCKET = "bucket"


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
