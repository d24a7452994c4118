"""Make the message classes again: `python -m featurestore.serve.proto.generate`.

Needs `grpcio-tools`, which is in the `dev` extra. The generated files are checked in and never edited.
"""

import importlib
import sys
from pathlib import Path

from featurestore.errors import MissingDependencyError, ServerError

FOLDER = Path(__file__).parent
PACKAGE = "featurestore/serve/proto"


def generate() -> list[Path]:
    """Write `*_pb2.py` and `*_pb2.pyi` beside each `.proto` file.

    Raises:
        MissingDependencyError: `grpcio-tools` is not installed.
        ServerError: a `.proto` file is not right.
    """
    try:
        protoc = importlib.import_module("grpc_tools.protoc")
    except ImportError as error:
        raise MissingDependencyError(
            "grpcio-tools is not installed", hint="pip install 'featurestore[dev]'"
        ) from error
    root = FOLDER.parents[2]
    made = []
    for source in sorted(FOLDER.glob("*.proto")):
        arguments = [
            "protoc",
            f"-I{root}",
            f"--python_out={root}",
            f"--pyi_out={root}",
            f"{PACKAGE}/{source.name}",
        ]
        if protoc.main(arguments) != 0:
            raise ServerError(f"protoc refused {source.name}")
        made += [source.with_name(f"{source.stem}_pb2{end}") for end in (".py", ".pyi")]
    return made


if __name__ == "__main__":
    sys.stdout.write("".join(f"{path}\n" for path in generate()))
