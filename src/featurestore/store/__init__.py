"""The facade: one class, in layers of what is opened, read of the past, read now, and written."""

from featurestore.store.feature_store import FeatureStore

__all__ = ["FeatureStore"]
