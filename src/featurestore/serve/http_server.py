"""placeholder"""

from typing import Any


class HttpServer:
    draining = False

    def __init__(self, *a: Any) -> None: ...
    async def start(self) -> int:
        return 0

    async def stop(self) -> None: ...
