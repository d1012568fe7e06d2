"""Fitting pictures to sizes, conversion to bytes, and grids."""

import numpy as np
import pytest
from picture_arrays import HEIGHT, RGB, WIDTH, assert_close, scale
from PIL import Image

from stable_diffusion.images.arrays import find_similar_size, make_grid, round_size_down, to_uint8
from stable_diffusion.images.reading import load_image
from stable_diffusion.images.writing import save_image


@pytest.mark.parametrize(
    ("size", "expected"), [((64, 64), (64, 64)), ((127, 200), (64, 192)), ((640, 129), (640, 128))]
)
def test_sides_are_rounded_down_to_a_multiple(tmp_path, size, expected):
    Image.new("RGB", size, "navy").save(tmp_path / "a.png")
    image, original = load_image(tmp_path / "a.png")
    assert original == size
    assert image.shape == (expected[1], expected[0], 3)


def test_a_side_under_the_multiple(tmp_path):
    Image.new("RGB", (63, 200)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: each side .* at least 64 pixels, got 63x200"):
        load_image(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", multiple=21)[0].shape == (189, 63, 3)
    assert load_image(tmp_path / "a.png", size=(128, 64))[0].shape == (64, 128, 3)


@pytest.fixture
def load_fitted(tmp_path):
    """Return a function that brings the picture `RGB` to a size."""
    save_image(tmp_path / "a.png", RGB)
    return lambda size, fit: load_image(tmp_path / "a.png", size, fit=fit)[0]


@pytest.mark.parametrize("size", [(64, 64), (128, 64), (48, 160), (33, 57), (96, 80), (1, 90)])
def test_fit(load_fitted, size):
    """A cropped or padded picture of two gradients keeps their slopes and its middle."""
    image, (width, height) = scale(RGB), size
    centre = image[HEIGHT // 2 - 1 : HEIGHT // 2 + 1, WIDTH // 2 - 1 : WIDTH // 2 + 1].mean((0, 1))
    for fit in ("stretch", "crop", "pad"):
        assert load_fitted(size, fit).shape == (height, width, 3)
        if size == (WIDTH, HEIGHT):
            assert_close(load_fitted(size, fit), image)
    cropped = load_fitted(size, "crop")
    top, left = (height - 1) // 2, (width - 1) // 2
    middle = cropped[top : height // 2 + 1, left : width // 2 + 1].mean((0, 1))
    np.testing.assert_allclose(middle, centre, atol=0.02)
    if min(size) > 16:
        ratio = max(width / WIDTH, height / HEIGHT)
        inner = cropped[8:-8, 8:-8, 0]  # red grows by 2 levels a pixel, to the right
        np.testing.assert_allclose(np.diff(inner, axis=1), 2 / 127.5 / ratio, atol=0.004)


def test_pad_repeats_the_border(load_fitted):
    wide = load_fitted((2 * WIDTH + 1, HEIGHT), "pad")
    assert_close(wide[:, 48 : 48 + WIDTH], scale(RGB))
    assert (wide[:, :48] == wide[:, 48:49]).all() and (wide[:, 48 + WIDTH :] == wide[:, -1:]).all()
    tall = load_fitted((WIDTH // 2, HEIGHT), "pad")
    assert_close(tall[20:60], load_fitted((WIDTH // 2, HEIGHT // 2), "stretch"))
    assert (tall[:20] == tall[20]).all() and (tall[60:] == tall[59]).all()
    with pytest.raises(ValueError, match="fit must be one of stretch, crop, pad, got 'fill'"):
        load_fitted((64, 64), "fill")


@pytest.mark.parametrize(
    ("size", "n_pixels", "multiple", "expected"),
    [
        ((4032, 3024), 512 * 512, 64, (512, 384)),  # 4:3 to the pixel
        ((3024, 4032), 512 * 512, 64, (384, 512)),
        ((1920, 1080), 1024 * 1024, 64, (1344, 768)),
        ((6000, 4000), 512 * 512, 64, (576, 384)),
        ((3000, 3000), 768 * 768, 64, (768, 768)),
        ((4032, 3024), 64 * 64, 8, (64, 48)),
    ],
)
def test_similar_size(size, n_pixels, multiple, expected):
    assert find_similar_size(size, n_pixels, multiple) == expected


def test_similar_sizes_of_any_proportions():
    """Close to the number of pixels, and no side longer than an option may be."""
    for width in (64, 100, 777, 5000, 100_000):
        for height in (64, 129, 3001, 100_000):
            for side, multiple in ((64, 8), (512, 64), (1024, 64)):
                size = find_similar_size((width, height), side**2, multiple)
                assert size == round_size_down(size, multiple) and max(size) <= 16 * side
                assert 1 / 3 < size[0] * size[1] / side**2 < 3
                if max(width, height) < 10 * min(width, height):
                    assert 0.7 < size[0] / size[1] / (width / height) < 1.4


def test_to_uint8_rounds_and_clips():
    levels = np.arange(256, dtype=np.float32) / 255
    np.testing.assert_array_equal(to_uint8(levels), np.arange(256))
    np.testing.assert_array_equal(to_uint8(np.float32([-0.1, 1.1, 0.4999 / 255])), [0, 255, 0])
    assert to_uint8(np.float32([0.999]))[0] == 255  # without rounding it would be 254
    assert to_uint8(levels).dtype == np.uint8


def test_to_uint8_equals_diffusers():
    import torch
    from diffusers.image_processor import VaeImageProcessor

    pictures = np.random.default_rng(0).uniform(-0.2, 1.2, (2, 40, 48, 3)).astype(np.float32)
    decoded = torch.from_numpy(pictures * 2 - 1).permute(0, 3, 1, 2)
    expected = VaeImageProcessor().postprocess(decoded, output_type="pil")
    expected = np.stack([np.asarray(picture) for picture in expected])
    ours = to_uint8((pictures * 2 - 1) / 2 + 0.5)
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("n_rows", [1, 2, 3, 6])
def test_grid(n_rows):
    images = np.random.default_rng(0).integers(1, 256, (6, 10, 12, 3), dtype=np.uint8)
    grid = make_grid(images, n_rows)
    n_columns = 6 // n_rows
    assert grid.shape == (n_rows * 26, n_columns * 28, 3) and grid.dtype == np.uint8
    for i, image in enumerate(images):
        y, x = i // n_columns * 26 + 8, i % n_columns * 28 + 8
        np.testing.assert_array_equal(grid[y : y + 10, x : x + 12], image)
    assert np.count_nonzero(grid) == images.size  # the rest is black


def test_a_single_picture_has_no_border():
    np.testing.assert_array_equal(make_grid(RGB[None], 1), RGB)


@pytest.mark.parametrize("n_rows", [0, 4, -1, 12])
def test_rows_must_divide(n_rows):
    with pytest.raises(ValueError, match="n_rows must divide the 6 images"):
        make_grid(np.zeros((6, 4, 4, 3), np.uint8), n_rows)
