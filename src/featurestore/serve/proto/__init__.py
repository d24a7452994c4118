"""The wire messages: `.proto` files, and what `python -m featurestore.serve.proto.generate` makes of them."""
