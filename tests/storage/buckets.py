"""Object stores that tests start themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

BUCKET = "bucket"


@contextmanager
def s3_server() -> Iterator[dict[str, Any]]:
    """Run an S3 server in this process; yields the options that reach it. It has one bucket."""
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    running = server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    options = {
        "key": "t",
        "secret": "t",
        "client_kwargs": {"endpoint_url": f"http://{host}:{port}", "region_name": "eu-west-1"},
    }
    try:
        s3fs.S3FileSystem(**options).mkdir(BUCKET)
        yield options
    finally:
        running.stop()
