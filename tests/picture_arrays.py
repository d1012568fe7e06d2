"""What the tests of pictures share: a picture, and how arrays are compared with it."""

import os

import numpy as np

from stable_diffusion.images.reading import read_picture

WIDTH, HEIGHT = 96, 80


def make_picture() -> np.ndarray:
    """Return uint8 [HEIGHT, WIDTH, 3], in which no two directions or channels are alike."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 2, y * 3, 255 - x - y], axis=-1).astype(np.uint8)


RGB = make_picture()
RGB.setflags(write=False)


def read_image(path: os.PathLike | str) -> np.ndarray:
    """Return the picture in a file at its own size."""
    return read_picture(path)[0]


def scale(rgb: np.ndarray) -> np.ndarray:
    """Return bytes as floats in [-1, 1]."""
    return rgb.astype(np.float32) / 127.5 - 1


def blend_with_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return colours [H, W, 3] of an opacity [H, W] on white, as floats in [-1, 1]."""
    opacity = alpha[..., None] / 255
    return (2 * (colours / 255 * opacity + (1 - opacity)) - 1).astype(np.float32)


def assert_close(image: np.ndarray, expected: np.ndarray, atol: float = 1e-6) -> None:
    """Check that two pictures of floats are equal within `atol`."""
    assert image.dtype == np.float32 and image.shape == expected.shape
    np.testing.assert_allclose(image, expected, rtol=0, atol=atol)
