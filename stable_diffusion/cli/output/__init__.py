"""The files of a run: their names, and writing them."""
