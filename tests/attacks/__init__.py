"""Attacks on the program, by class: `tests/fuzz.py` runs many cases, `test_attacks.py` a few."""

import importlib
import pkgutil


def load() -> None:
    """Import all modules of attacks, so that they register."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
