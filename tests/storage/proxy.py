"""A proxy in front of an object store that loses requests and answers when it is told to."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final
from urllib.parse import urlsplit

FORWARD: Final = "forward"
REFUSE: Final = "refuse"  # 503, and the store never hears of it
LOSE: Final = "lose"  # the store does it, the answer is lost
_HOP: Final = {"connection", "transfer-encoding", "content-length", "expect"}

Rule = Callable[[int, str, str], str]


@dataclass
class Faults:
    """What the proxy does with each request.

    Attributes:
        rule: Of the request's number from 1, its method and path: `FORWARD`, `REFUSE` or `LOSE`.
        seen: Method and path of each request.
    """

    rule: Rule = lambda _number, _method, _path: FORWARD
    seen: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def choose(self, method: str, path: str) -> str:
        """Count a request and say what is done with it."""
        with self.lock:
            self.seen.append((method, path))
            return self.rule(len(self.seen), method, path)

    def restart(self, rule: Rule) -> None:
        """Count from 1 again, with another rule."""
        with self.lock:
            self.rule = rule
            self.seen.clear()


def _body(request: BaseHTTPRequestHandler) -> bytes:
    if "chunked" not in request.headers.get("Transfer-Encoding", ""):
        return request.rfile.read(int(request.headers.get("Content-Length", 0)))
    parts = []
    while size := int(request.rfile.readline().split(b";")[0], 16):
        parts.append(request.rfile.read(size))
        request.rfile.readline()
    while request.rfile.readline().strip():
        pass
    return b"".join(parts)


@contextmanager
def proxy(endpoint: str, faults: Faults) -> Iterator[str]:
    """Run a proxy in front of an HTTP endpoint; yields its own."""
    target = urlsplit(endpoint)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_args: object) -> None:
            """Stay silent."""

        def _serve(self) -> None:
            body = _body(self)
            chosen = faults.choose(self.command, self.path)
            if chosen == REFUSE:
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=30)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            if chosen == LOSE:
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _HOP:
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve  # noqa: N815 -- the names that http.server calls

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
