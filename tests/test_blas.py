"""MLX multiplies matrices with a fast BLAS on a Linux CPU."""

import sys

import pytest
from ours import python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Macs have Accelerate")

PRODUCT = """
import stable_diffusion
import mlx.core as mx

x = mx.ones((64, 64))
print("libopenblas" in open("/proc/self/maps").read(), (x @ x)[0, 0].item())
"""


def test_products_go_to_the_blas_that_pip_brought(tmp_path):
    """Its plain-named copy serves them, and leaves no file behind."""
    done = python("-c", PRODUCT, TMPDIR=str(tmp_path))
    assert (done.stdout, done.stderr) == ("True 64.0\n", "")
    assert not list(tmp_path.iterdir())


def test_the_reference_blas_is_not_asked():
    code = (
        "import stable_diffusion, ctypes; everything = ctypes.CDLL(None);"
        "address = ctypes.cast(everything.cblas_sgemm, ctypes.c_void_p).value;"
        "spans = [line.split() for line in open('/proc/self/maps') if 'libopenblas' in line];"
        "bounds = [[int(n, 16) for n in span[0].split('-')] for span in spans];"
        "print(any(low <= address < high for low, high in bounds))"
    )
    assert python("-c", code).stdout == "True\n"


def test_products_are_right_beside_pytorch():
    code = (
        "import stable_diffusion, torch; import mlx.core as mx;"
        "a, b = torch.randn(700, 300), torch.randn(300, 500);"
        "ours = torch.tensor((mx.array(a.numpy()) @ mx.array(b.numpy())).tolist());"
        "exact = a.double() @ b.double();"
        "print((ours - exact).abs().max() < 1e-3, (a @ b - exact).abs().max() < 1e-3)"
    )
    assert python("-c", code).stdout.split() == ["tensor(True)", "tensor(True)"]


def test_import_order_warns_once():
    done = python("-c", "import mlx.core, stable_diffusion")
    assert done.returncode == 0
    assert done.stderr.count("import stable_diffusion first") == 1


def test_override():
    assert python("-c", "import stable_diffusion", STABLE_DIFFUSION_BLAS="none").stderr == ""
    done = python("-c", "import stable_diffusion", STABLE_DIFFUSION_BLAS="/no/such/library.so")
    assert "STABLE_DIFFUSION_BLAS=/no/such/library.so cannot be loaded" in done.stderr


def test_only_the_standard_library_is_imported_first():
    code = (
        "import runpy, sys; runpy.run_path('stable_diffusion/blas.py')['use_fast_blas']();"
        "print('mlx' in str(sorted(sys.modules)), 'numpy' in sys.modules)"
    )
    assert python("-c", code).stdout.split() == ["False", "False"]
