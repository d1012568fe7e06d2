"""The parts of `benchmarks/device.py`, which tries this program on the device of a machine."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
import stable_diffusion  # noqa: F401  (before anything that imports mlx, for its BLAS)
