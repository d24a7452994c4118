"""Erasure: nothing of a subject stays in what the store owns, and a scan proves it."""
