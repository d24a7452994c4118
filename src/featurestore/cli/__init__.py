"""The command line: `featurestore`, with the same verbs as the facade. Importing it costs nothing."""

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; what failed is told on stderr as message and hint."""
    from featurestore.cli.front import run

    return run(arguments)
