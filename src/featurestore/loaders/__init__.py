"""The training read path: deterministic batches from one immutable dataset version."""

from featurestore.loaders.batch import Batch
from featurestore.loaders.loader import Loader, open_loader
from featurestore.loaders.options import LoaderOptions
from featurestore.loaders.splits import EntitySplit, TimeSplit, walk_forward
from featurestore.loaders.windows import Window

__all__ = [
    "Batch",
    "EntitySplit",
    "Loader",
    "LoaderOptions",
    "TimeSplit",
    "Window",
    "open_loader",
    "walk_forward",
]
