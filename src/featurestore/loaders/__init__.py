"""The training read path: deterministic batches from one immutable dataset version."""
