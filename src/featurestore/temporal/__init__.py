"""Pure point-in-time kernels: arrays in, arrays out. The only room that compares times."""
