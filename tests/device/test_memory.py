"""Memory is saved if there is little, or on request, and the picture stays the same."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

import txt2image
from stable_diffusion import StableDiffusion, vae_strips
from stable_diffusion.device import memory


@pytest.fixture
def calls(monkeypatch) -> list[bool]:
    """Return a list that gets an item for each picture that is decoded in strips."""
    made = []
    in_strips = vae_strips._decode_picture
    monkeypatch.setattr(
        vae_strips, "_decode_picture", lambda *args: made.append(True) or in_strips(*args)
    )
    return made


def draw(folder: Path, *options: str) -> np.ndarray:
    arguments = ["a red circle", "--model=tiny", "--steps=2", "--n_images=1", "--seed=1"]
    assert txt2image.main([*arguments, "--output", str(folder / "o.png"), *options]) == 0
    return np.asarray(Image.open(folder / "o.png")).astype(int)


@pytest.fixture(scope="module")
def usual(tmp_path_factory) -> np.ndarray:
    """Return the picture that is made without saving memory."""
    return draw(tmp_path_factory.mktemp("usual"), "--no-low-memory")


@pytest.mark.parametrize(
    ("memory_size", "options", "in_strips"),
    [
        (16e9, [], False),
        (8e9, [], True),
        (8e9, ["--no-low-memory"], False),
        (16e9, ["--low-memory"], True),
        (16e9, ["--tiled"], True),
    ],
)
def test_strips_where_memory_is_short(
    usual, calls, monkeypatch, tmp_path, memory_size, options, in_strips
):
    monkeypatch.setattr(memory, "read_total_memory", lambda: memory_size)
    picture = draw(tmp_path, *options)
    assert bool(calls) is in_strips
    assert abs(picture - usual).max() <= 1


def test_the_memory_there_is():
    assert 1e9 < memory.read_total_memory() < 1e14


def test_weights_are_read_one_by_one():
    """Quantizing keeps the float32 weights of one layer at a time only."""
    sd = StableDiffusion("tiny")
    sd.quantize()
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    sd.ensure_models_are_loaded()
    kept, peak = mx.get_active_memory() - before, mx.get_peak_memory() - before
    largest = sd.text_encoder.token_embedding.weight.nbytes
    assert kept > largest
    assert peak < kept + 1.5 * largest
