"""Shipped tests: the oracle, strategies, and conformance suites for every seam."""
