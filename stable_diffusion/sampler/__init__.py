"""Samplers: from noise to a picture, step by step down a schedule of noise levels."""

from .sampler import Sampler
from .simple_euler import SimpleEulerAncestralSampler, SimpleEulerSampler

__all__ = ["Sampler", "SimpleEulerAncestralSampler", "SimpleEulerSampler"]
