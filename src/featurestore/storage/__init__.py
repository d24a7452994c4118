"""Bytes and commits: Delta tables, Arrow IPC shards, manifests. Knows no features."""
