"""The incremental path, under its own name."""

from featurestore.materialize.training_set import materialize_incremental

__all__ = ["materialize_incremental"]
