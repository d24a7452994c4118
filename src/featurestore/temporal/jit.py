"""How kernels are compiled: as everywhere in the house, see `core.jit`."""

from featurestore.core.jit import inlined, kernel, lazy_module

__all__ = ["inlined", "kernel", "lazy_module"]
