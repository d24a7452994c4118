"""Definitions times rows gives feature values: one implementation for training, streams and serving."""
