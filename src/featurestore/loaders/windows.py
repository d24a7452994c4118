"""Look-back windows."""

from dataclasses import dataclass
from typing import Any
from featurestore.loaders.selection import Selection


@dataclass(frozen=True, slots=True)
class Window:
    """x."""

    lookback: int


class WindowIndex:
    """x."""

    def __init__(self, *args: Any) -> None: ...
    def anchors(self, selection: Selection) -> Selection:
        return selection
