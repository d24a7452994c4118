"""How kernels are compiled, and how modules that hold them are imported only when one is called."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, ParamSpec, TypeVar, cast

from featurestore.core.compiling import listen

P = ParamSpec("P")
R = TypeVar("R")


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` on its first call: no GIL, no Python objects, kept on disk for the next process.

    The signature stays as it is written, so that calls are type-checked.
    """
    return _compiled(function)


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a small step of a kernel, always as part of the loop that calls it."""
    return _compiled(function, forceinline=True)


def _compiled(function: Callable[P, R], **options: Any) -> Callable[P, R]:
    numba = importlib.import_module("numba")
    listen()
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return cast("Callable[P, R]", numba.njit(cache=True, **options)(function))
    except RuntimeError:
        # No folder to keep it in can be written to, as in a read-only container: each process compiles.
        return cast("Callable[P, R]", numba.njit(**options)(function))


class _LazyModule(ModuleType):
    """Stands for a module until one of its names is used."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(importlib.import_module(self.__name__), name)
        setattr(self, name, value)
        return value


def lazy_module(name: str) -> Any:
    """Return a stand-in that imports module `name` when an attribute is first read."""
    return _LazyModule(name)
