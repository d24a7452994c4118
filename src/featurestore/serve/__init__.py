"""The inference read path: the training value, live."""
