"""MLX multiplies matrices with a fast BLAS on a Linux CPU."""

import platform
import sys

import pytest
from ours import python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Macs have Accelerate")

# MKL's own parts are loaded by the first call that reaches it.
PRODUCT = """
import stable_diffusion
import mlx.core as mx

def parts():
    maps = open("/proc/self/maps").read()
    return [name for name in ("libmkl_core", "libmkl_tbb") if name in maps]

x = mx.ones((64, 64))
print(parts())
mx.eval(x @ x)
print(parts(), (x @ x)[0, 0].item())
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="pip brings MKL to x86-64 only")
def test_products_go_to_the_blas_that_pip_brought():
    """Threaded by TBB: MKL's OpenMP and PyTorch's spoil each other's results."""
    assert python("-c", PRODUCT).stdout.splitlines() == ["[]", "['libmkl_core', 'libmkl_tbb'] 64.0"]


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
