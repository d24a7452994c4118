"""The main path on generated or real ticks, checked at every step."""
