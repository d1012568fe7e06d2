"""float32 products are not computed with less precision on a GPU, unless the user asks for it."""

import ctypes
import importlib

import pytest

import stable_diffusion

VARIABLE = "MLX_ENABLE_TF32"


@pytest.mark.parametrize(("given", "used"), [(None, b"0"), ("0", b"0"), ("1", b"1")])
def test_tf32_is_off_unless_it_is_asked_for(monkeypatch, given, used):
    """MLX, which is written in C++, sees the variable."""
    monkeypatch.delenv(VARIABLE, raising=False)
    if given is not None:
        monkeypatch.setenv(VARIABLE, given)
    importlib.reload(stable_diffusion)
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    assert getenv(VARIABLE.encode()) == used
