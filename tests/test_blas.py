"""MLX multiplies matrices with a fast BLAS on a Linux CPU."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Macs have Accelerate")

RATES = """
import stable_diffusion, time
import mlx.core as mx, numpy as np

def rate(multiply, n=1536):
    multiply()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        multiply()
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times) / 1e9

a = np.random.default_rng(0).standard_normal((1536, 1536), dtype=np.float32)
x = mx.array(a)
print(rate(lambda: mx.eval(x @ x)), rate(lambda: a @ a))
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    import os

    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_rate():
    """45 times lies between a real BLAS and the reference one, so 8 tells them apart in noise."""
    ours, numpys = map(float, python(RATES).stdout.split())
    assert ours > numpys / 8


def test_import_order_warns_once():
    done = python("import mlx.core, stable_diffusion")
    assert done.returncode == 0
    assert done.stderr.count("import stable_diffusion first") == 1


def test_override():
    assert python("import stable_diffusion", STABLE_DIFFUSION_BLAS="none").stderr == ""
    done = python("import stable_diffusion", STABLE_DIFFUSION_BLAS="/no/such/library.so")
    assert "STABLE_DIFFUSION_BLAS=/no/such/library.so cannot be loaded" in done.stderr


def test_only_the_standard_library_is_imported_first():
    code = (
        "import runpy, sys; runpy.run_path('stable_diffusion/blas.py')['use_fast_blas']();"
        "print('mlx' in str(sorted(sys.modules)), 'numpy' in sys.modules)"
    )
    assert python(code).stdout.split() == ["False", "False"]
