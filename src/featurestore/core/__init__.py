"""Words and time: the vocabulary that every room shares. Touches no file, socket, clock or environment."""
