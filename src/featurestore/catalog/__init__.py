"""What exists, what it means and what it depends on, at every version since the first `apply`."""
