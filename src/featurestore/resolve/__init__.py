"""Definitions and rows in, feature values out: one implementation for training, streams and serving.

Materializer, historical retrieval, labels and the online store all call `resolve_view`; there is
nowhere else to put a rule about time, which is why training and serving cannot disagree.
"""
