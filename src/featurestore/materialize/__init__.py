"""The write path: from definitions to immutable dataset versions."""
