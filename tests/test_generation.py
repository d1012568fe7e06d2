"""Which sampler the options of a generator choose."""

import mlx.core as mx
import numpy as np
import pytest

from stable_diffusion.generation import Arguments, check_generation, find_sampler
from stable_diffusion.model_io.loaders import load_model_config
from stable_diffusion.sampler.sampler import Sampler

CONFIG = load_model_config("tiny")
OWN = Sampler.for_model(CONFIG.diffusion, "ddim", "leading")
CHOSEN = (999, 499)


def test_options_change_the_sampler_of_the_object():
    """What they do not say stays: its schedule beside eta, its eta and timesteps."""
    assert find_sampler(CONFIG, OWN, {}, None) is OWN
    given_once = Sampler.for_model(CONFIG.diffusion, "ddim", eta=0.1)
    assert find_sampler(CONFIG, given_once, {}, None) is given_once
    with_eta = find_sampler(CONFIG, OWN, {"eta": 0.5}, None)
    assert (with_eta.name, with_eta.schedule_name, with_eta.eta) == ("ddim", "leading", 0.5)
    spaced = find_sampler(CONFIG, OWN, {"schedule": "linspace"}, None)
    assert (spaced.schedule_name, spaced.eta) == ("linspace", None)
    spaced = find_sampler(CONFIG, with_eta, {"schedule": "linspace"}, None)
    assert (spaced.schedule_name, spaced.eta) == ("linspace", 0.5)
    given = {"sampler": with_eta, "schedule": "linspace"}
    assert find_sampler(CONFIG, OWN, given, None).eta == 0.5
    euler = find_sampler(CONFIG, OWN, {"sampler": "euler", "timesteps": [*CHOSEN]}, None)
    assert find_sampler(CONFIG, OWN, {"sampler": euler}, None) is euler
    assert find_sampler(CONFIG, euler, {"schedule": "karras"}, None).timesteps is None


@pytest.mark.parametrize("kind", [list, tuple, np.array, mx.array])
def test_timesteps_of_every_kind_of_sequence(kind):
    options = {"sampler": "euler", "timesteps": kind([*CHOSEN])}
    sampler = find_sampler(CONFIG, OWN, options, None)
    assert sampler.timesteps == CHOSEN and all(type(t) is int for t in sampler.timesteps)
    generation = check_generation(Arguments("a", 1, None, None, "", 1, options), CONFIG, OWN)
    assert generation.num_steps == 2


def test_a_strength_below_one_of_the_timesteps(recwarn):
    options = {"sampler": "euler", "timesteps": CHOSEN}
    generation = check_generation(Arguments("a", 1, None, None, "", 1, options), CONFIG, OWN)
    assert [step.timestep for step in generation.cut_schedule(1.0).steps] == [*CHOSEN]
    assert [step.timestep for step in generation.cut_schedule(0.5).steps] == [499]
    assert not recwarn
    assert [step.timestep for step in generation.cut_schedule(0.4).steps] == [499]
    assert "2 timesteps at strength 0.4 are less than one" in str(recwarn.pop().message)
