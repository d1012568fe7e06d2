"""Noise equals the numbers of torch's CPU generator."""

import random

import numpy as np
import pytest
import torch

from stable_diffusion.sampler.noise import MAX_SEED, NoiseStream, draw_latents, make_noise_streams

TOLERANCE = 1e-6
SEEDS = [0, 1, 7, 2**31, 2**32 - 1, 2**32, 2**32 + 7, 2**63 + 5, 2**64 - 1, -1, -7, -(2**63)]


def make_torch_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_same_draws(seed: int, shapes: list[tuple[int, ...]]) -> None:
    ours, theirs = NoiseStream(seed), make_torch_generator(seed)
    for i, shape in enumerate(shapes):
        noise = ours.normal(shape)
        expected = torch.randn(shape, generator=theirs).numpy()
        assert noise.dtype == np.float32 and noise.shape == shape
        np.testing.assert_allclose(noise, expected, rtol=0, atol=TOLERANCE, err_msg=f"draw {i}")


@pytest.mark.parametrize("seed", SEEDS)
def test_every_seed_torch_takes(seed):
    assert_same_draws(seed, [(1, 4, 8, 8), (3,), (5, 7)])


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_seeds_torch_refuses(seed):
    with pytest.raises((RuntimeError, ValueError)):
        make_torch_generator(seed)
    with pytest.raises(ValueError, match="seed must be in"):
        NoiseStream(seed)


@pytest.mark.parametrize("seed", [2**32 + 5, 2**63, MAX_SEED - 1])
def test_the_largest_seeds_of_pictures(seed):
    """Each picture has torch's noise for its seed; seeds beyond the largest are refused."""
    first, streams = make_noise_streams(seed, 2)
    assert first == seed
    for i, stream in enumerate(streams):
        expected = torch.randn((4, 8, 8), generator=make_torch_generator(seed + i)).numpy()
        np.testing.assert_allclose(stream.normal((4, 8, 8)), expected, rtol=0, atol=TOLERANCE)
    for wrong, n in ((MAX_SEED, 2), (MAX_SEED + 1, 1), ([0, MAX_SEED + 1], 2), (-1, 1)):
        with pytest.raises(ValueError, match=r"from 0 to 2\^64 - 1 for each picture"):
            make_noise_streams(wrong, n)


@pytest.mark.parametrize("n", [*range(36), 47, 48, 49, 1000, 4099])
def test_every_length(n):
    assert_same_draws(3, [(n,), (n,), (2,)])


@pytest.mark.parametrize(
    "lengths",
    [(1, 16, 1), (3, 17, 1, 1), (1, 1, 1), (15, 15, 16, 15), (5, 0, 5), (1, 31, 32, 2, 100, 1)],
)
def test_short_and_long_draws_in_turn(lengths):
    """Long draws keep the spare number of a short draw."""
    assert_same_draws(11, [(n,) for n in lengths])


def test_random_interleavings():
    rng = random.Random(0)
    for seed in range(100):
        lengths = [rng.choice([rng.randrange(16), rng.randrange(16, 80)]) for _ in range(20)]
        assert_same_draws(seed, [(n,) for n in lengths])


def test_scalar_shape():
    assert_same_draws(5, [(), (), (4, 4)])


def test_streams_are_independent():
    a, b = NoiseStream(1), NoiseStream(1)
    first = a.normal((4, 4))
    NoiseStream(2).normal((9,))
    np.testing.assert_array_equal(b.normal((4, 4)), first)
    assert np.abs(NoiseStream(2).normal((4, 4)) - first).max() > 0.1


def test_latents_equal_diffusers_draw_for_a_list_of_generators():
    from diffusers.utils.torch_utils import randn_tensor

    seeds, (height, width, channels) = [7, 8, 9], (5, 6, 4)
    generators = [make_torch_generator(seed) for seed in seeds]
    streams = [NoiseStream(seed) for seed in seeds]
    for _ in range(2):  # the initial noise, then an ancestral step's
        expected = randn_tensor((3, channels, height, width), generator=generators)
        noise = draw_latents(streams, (height, width, channels))
        assert noise.shape == (3, height, width, channels) and noise.dtype == np.float32
        assert noise.flags.c_contiguous
        expected = expected.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(noise, expected, rtol=0, atol=TOLERANCE)


def test_large_draws():
    assert_same_draws(123, [(1, 4, 128, 128)] * 4)
