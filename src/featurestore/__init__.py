"""A temporal feature store whose training data is provably right.

A feature's value at time t is a function of the rows visible at t and of nothing else; the same code
answers for a training set of a billion rows, for a live stream, and for one request.

    import featurestore as fs

    store = fs.FeatureStore("ticks")
    store.apply([symbol, trades, quotes, quote_view, training_set])
    store.materialize("trade_features")
    dataset = store.dataset("trade_features")      # one immutable version, re-creatable bit for bit

Importing this package is light: engines are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.catalog.aggregation import Aggregation
    from featurestore.catalog.entity import Entity
    from featurestore.catalog.feature_view import Feature, FeatureView
    from featurestore.catalog.label import Label
    from featurestore.catalog.on_demand import OnDemandFeatureView
    from featurestore.catalog.service import FeatureService
    from featurestore.catalog.source import Source
    from featurestore.catalog.training_set import TrainingSet
    from featurestore.dataset import Dataset
    from featurestore.errors import (
        AccessDeniedError,
        AlreadyExistsError,
        CommitConflictError,
        CorruptDataError,
        DefinitionError,
        ExpressionError,
        FeatureStoreError,
        LateDataError,
        LeakageError,
        LimitError,
        LoaderStateError,
        MissingDependencyError,
        NotFoundError,
        OnlineStoreError,
        OnlineStoreTimeoutError,
        PinnedVersionError,
        SchemaError,
        ServerError,
        StorageError,
        StreamError,
        TimeOverflowError,
    )
    from featurestore.store import FeatureStore
    from featurestore.temporal.align import AsOf, align
    from featurestore.temporal.join import asof_join
    from featurestore.temporal.streaming import StreamingJoin
    from featurestore.temporal.windows import Window

_HOME = {
    "Aggregation": "catalog.aggregation",
    "Entity": "catalog.entity",
    "Feature": "catalog.feature_view",
    "FeatureService": "catalog.service",
    "FeatureView": "catalog.feature_view",
    "Label": "catalog.label",
    "OnDemandFeatureView": "catalog.on_demand",
    "Source": "catalog.source",
    "TrainingSet": "catalog.training_set",
    "Dataset": "dataset",
    "FeatureStore": "store",
    "AsOf": "temporal.align",
    "align": "temporal.align",
    "asof_join": "temporal.join",
    "StreamingJoin": "temporal.streaming",
    "Window": "temporal.windows",
    "AccessDeniedError": "errors",
    "AlreadyExistsError": "errors",
    "CommitConflictError": "errors",
    "CorruptDataError": "errors",
    "DefinitionError": "errors",
    "ExpressionError": "errors",
    "FeatureStoreError": "errors",
    "LateDataError": "errors",
    "LeakageError": "errors",
    "LimitError": "errors",
    "LoaderStateError": "errors",
    "MissingDependencyError": "errors",
    "NotFoundError": "errors",
    "OnlineStoreError": "errors",
    "OnlineStoreTimeoutError": "errors",
    "PinnedVersionError": "errors",
    "SchemaError": "errors",
    "ServerError": "errors",
    "StorageError": "errors",
    "StreamError": "errors",
    "TimeOverflowError": "errors",
}

__all__ = [
    "AccessDeniedError",
    "Aggregation",
    "AlreadyExistsError",
    "AsOf",
    "CommitConflictError",
    "CorruptDataError",
    "Dataset",
    "DefinitionError",
    "Entity",
    "ExpressionError",
    "Feature",
    "FeatureService",
    "FeatureStore",
    "FeatureStoreError",
    "FeatureView",
    "Label",
    "LateDataError",
    "LeakageError",
    "LimitError",
    "LoaderStateError",
    "MissingDependencyError",
    "NotFoundError",
    "OnDemandFeatureView",
    "OnlineStoreError",
    "OnlineStoreTimeoutError",
    "PinnedVersionError",
    "SchemaError",
    "ServerError",
    "Source",
    "StorageError",
    "StreamError",
    "StreamingJoin",
    "TimeOverflowError",
    "TrainingSet",
    "Window",
    "align",
    "asof_join",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("featurestore")
    if name not in _HOME:
        raise AttributeError(f"module 'featurestore' has no attribute {name!r}")
    value = getattr(import_module(f"featurestore.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
