"""The files of a run: their names, writing them, and how to go on after an interruption."""
