"""An authority with a server's and a client's certificate, made by openssl."""

import shutil
import subprocess
from pathlib import Path

import pytest


def certificates(folder: Path) -> dict[str, str]:
    """Write `ca`, `server` and `client`, `.pem` and `.key` each, over those that are there."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")

    def run(line: str) -> None:
        subprocess.run([openssl, *line.split()], check=True, capture_output=True, cwd=folder)

    run("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=ca -days 2")
    (folder / "ext").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name in ("server", "client"):
        run(f"req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}")
        sign = f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial"
        run(f"{sign} -out {name}.pem -days 2 -extfile ext")
    return {p.name: str(p) for p in folder.iterdir()}
