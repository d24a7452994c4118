"""A temporal feature store whose training data is provably right."""
