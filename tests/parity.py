"""Measure errors of our networks against diffusers in float64, and print a table for the docs.

PYTHONPATH=. python tests/parity.py
"""

import stable_diffusion  # noqa: F401  isort: skip  (before mlx, for its BLAS)

import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import mlx.core as mx
import numpy as np
import torch
from checkpoints import BETAS, write_checkpoint
from kinds import KINDS
from oracle import (
    Oracle,
    channels_first,
    channels_last,
    make_scheduler,
    relative_l2,
    scheduler_options,
    set_timesteps,
)

from stable_diffusion.config.diffusion import DiffusionConfig
from stable_diffusion.model_io import loaders
from stable_diffusion.sampler.noise import NoiseStream, draw_latents
from stable_diffusion.sampler.sampler import SAMPLERS, Sampler

UNET_SIZES = ((8, 8), (7, 13), (1, 2))  # in latents; some sides cannot be halved evenly
SIMPLE_SAMPLERS = ("euler", "euler-a", "ddim", "dpm++2m")  # all their combinations are cheap
# (sampler, schedule, steps, prediction type) of all that diffusers has, too.
TRAJECTORIES = [
    (*what, prediction_type)
    for what in (
        *((name, kind, 20) for name in SIMPLE_SAMPLERS for kind in SAMPLERS[name].schedules),
        *(("lcm", None, steps) for steps in (4, 8)),
    )
    for prediction_type in SAMPLERS[what[0]].prediction_types
]
# Whose schedulers have `rescale_betas_zero_snr`.
HAVE_ZERO_SNR = (*SIMPLE_SAMPLERS, "lcm", "dpm++2m-sde", "dpm++3m", "unipc", "ddpm", "tcd")
# The others, with each schedule and with each prediction type.
SOLVER_TRAJECTORIES = [
    (name, kind, 7, spec.prediction_types[i % len(spec.prediction_types)])
    for name, spec in SAMPLERS.items()
    if name not in (*SIMPLE_SAMPLERS, "lcm")
    for i, kind in enumerate(spec.schedules or (None,) * 3)
]
LAST_TIMESTEP = 999
POOLED_WIDTH = 24  # of the tiny SDXL checkpoints
TIME_IDS = np.array([[512, 640, 0, 16, 512, 640], [64, 64, 8, 0, 64, 64]], dtype=np.float32)


def random_normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def random_tokens() -> np.ndarray:
    """Return ids [3, 77]: a short prompt padded with the end token, one with `!`, a full one."""
    ids = np.random.default_rng(1).integers(1, 49406, (3, 77))
    ids[:, 0] = 49406
    ids[0, 9:], ids[1, 21:], ids[2, -1] = 49407, 0, 49407
    ids[1, 20] = 49407
    return ids


@torch.no_grad()
def text_errors(oracle: Oracle) -> Iterator[float]:
    """Return the errors of all hidden states and the pooled output of each text encoder."""
    tokens = random_tokens()
    for name in ("text_encoder", "text_encoder_2"):
        theirs = getattr(oracle.exact, name, None)
        if theirs is None:
            continue
        expected = theirs(torch.from_numpy(tokens), output_hidden_states=True)
        ours = loaders.load_text_encoder(oracle.folder, model_key=name)(mx.array(tokens))
        yield relative_l2(ours.last_hidden_state, expected.last_hidden_state)
        for state, expected_state in zip(ours.hidden_states, expected.hidden_states, strict=True):
            yield relative_l2(state, expected_state)
        pooled = expected.text_embeds if name == "text_encoder_2" else expected.pooler_output
        yield relative_l2(ours.pooled_output, pooled)


@torch.no_grad()
def unet_error(oracle: Oracle, size: tuple[int, int]) -> float:
    """Return the error for two latents, each at its own time."""
    theirs = oracle.exact.unet
    x = random_normal(2, *size, theirs.config.in_channels)
    text = random_normal(2, 77, theirs.config.cross_attention_dim)
    times = np.array([999, 3.5], dtype=np.float32)
    text_time, added = None, {}
    if theirs.config.addition_embed_type == "text_time":
        pooled = random_normal(2, POOLED_WIDTH)
        text_time = (mx.array(pooled), mx.array(TIME_IDS))
        added = {
            "text_embeds": torch.from_numpy(pooled).double(),
            "time_ids": torch.from_numpy(TIME_IDS).double(),
        }
    expected = theirs(
        channels_first(x),
        torch.from_numpy(times),
        torch.from_numpy(text).double(),
        added_cond_kwargs=added,
    ).sample
    unet = loaders.load_unet(oracle.folder)
    ours = unet(mx.array(x), mx.array(times), encoder_x=mx.array(text), text_time=text_time)
    return relative_l2(ours, channels_last(expected))


@torch.no_grad()
def decode_error(oracle: Oracle) -> float:
    theirs = oracle.exact.vae
    z = random_normal(2, 5, 6, theirs.config.latent_channels)
    expected = theirs.decode(channels_first(z) / theirs.config.scaling_factor).sample
    ours = loaders.load_autoencoder(oracle.folder).decode(mx.array(z))
    return relative_l2(ours, channels_last(expected))


@torch.no_grad()
def encode_errors(oracle: Oracle) -> tuple[float, float]:
    """Return the errors of the mean and the variance of the scaled latents."""
    theirs = oracle.exact.vae
    x = random_normal(2, 64, 96, 3).clip(-1, 1)
    expected = theirs.encode(channels_first(x)).latent_dist
    scale = theirs.config.scaling_factor
    mean, logvar = loaders.load_autoencoder(oracle.folder).encode(mx.array(x))
    return (
        relative_l2(mean, channels_last(expected.mean * scale)),
        relative_l2(mx.exp(logvar), channels_last(expected.var * scale**2)),
    )


def trajectory_error(
    name: str,
    prediction_type: str,
    schedule: str | None,
    num_steps: int = 20,
    *,
    is_exact: bool = False,
    timesteps: list[int] | None = None,
    skip: int = 0,
    eta: float | None = None,
    **options,
) -> float:
    """Worst of all steps; in place of a network stands a function that both sides compute alike.

    `is_exact` has diffusers compute in float64, which it does for no noise but the first. `skip`
    leaves out the first steps, as image to image does.
    """
    num_steps = num_steps if timesteps is None else len(timesteps)
    options = {
        **BETAS,
        "steps_offset": 1,
        "prediction_type": prediction_type,
        "timestep_spacing": "trailing",
        **options,
    }
    sampler = Sampler.for_model(DiffusionConfig(**options), name, schedule, timesteps, eta)
    steps = sampler.schedule(num_steps).last(num_steps - skip)
    theirs = make_scheduler(name, {**options, **scheduler_options(name, schedule)})
    skipped = skip * theirs.order
    set_timesteps(theirs, schedule, num_steps, timesteps)
    if hasattr(theirs, "set_begin_index"):  # which it mistakes if two steps have one timestep
        theirs.set_begin_index(skipped)
    streams, generator = [NoiseStream(3)], torch.Generator().manual_seed(3)
    shape = (8, 8, 4)
    draw = lambda *_: torch.randn(1, 4, 8, 8, generator=generator)  # noqa: E731
    theirs.noise_sampler = draw  # of dpm++sde, in place of a Brownian tree
    dtype = torch.float64 if is_exact else torch.float32
    if is_exact:
        theirs.sigmas = theirs.sigmas.double()

    x, history = mx.array(draw_latents(streams, shape)), None
    if skip == 0:
        x = x * steps.initial_sigma
        expected = draw().type(dtype) * theirs.init_noise_sigma
    else:
        expected = draw().type(dtype) * scale_of(name, theirs, skipped - 1)
    arguments = {"generator": generator} if sampler.needs_noise and name != "dpm++sde" else {}
    if eta is not None:
        arguments["eta"] = eta
    worst = 0.0
    for i, (step, t) in enumerate(
        zip(steps.steps, theirs.timesteps[skipped:], strict=True), skipped
    ):
        worst = max(worst, abs(step.timestep - float(t)) / LAST_TIMESTEP)
        seen = theirs.scale_model_input(expected, t)
        prediction = np.tanh(channels_last(seen.double()) * 2 + float(t) / 1000)
        needs_noise = sampler.needs_noise and step.adds_noise
        fresh = mx.array(draw_latents(streams, shape)) if needs_noise else None
        x, history = sampler.step(x, mx.array(prediction.astype(np.float32)), step, history, fresh)
        with mock.patch.object(torch.Tensor, "to", _as_it_is) if is_exact else nullcontext():
            expected = theirs.step(
                channels_first(prediction, dtype), t, expected, **arguments
            ).prev_sample
        scaled = expected / scale_of(name, theirs, i)
        worst = max(worst, relative_l2(x, channels_last(scaled)))
    return worst


# Their latents are x_0 and noise times sigma in diffusers, and not of constant variance.
SIGMA_SCALED = ("euler", "euler-a", "heun", "lms", "dpm2", "dpm2-a", "dpm++sde")


def scale_of(name: str, theirs, i: int) -> float:
    """Return how much larger diffusers' latents are than ours after the step i."""
    if name not in SIGMA_SCALED:
        return 1.0
    sigma = theirs.sigmas[i + 1]
    is_in_the_middle = i >= 0 and i % 2 == 0 and sigma > 0
    if is_in_the_middle and name == "dpm2":
        sigma = theirs.sigmas_interpol[i + 1]
    elif is_in_the_middle and name == "dpm2-a":
        sigma = theirs.sigmas_interpol[i]
    elif is_in_the_middle and name == "dpm++sde":
        sigma = (theirs.sigmas[i] * sigma) ** 0.5
    return float((sigma**2 + 1) ** 0.5)


def _as_it_is(x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    """Return a tensor unchanged, instead of `Tensor.to`: no cast to float32."""
    return x


def main() -> None:
    """Print the table, worst error of each component and kind."""
    print("| checkpoint | text | UNet | VAE decode | VAE encode |\n|---|---|---|---|---|")
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            oracle = Oracle(write_checkpoint(kind, Path(folder)))
            errors = (
                max(text_errors(oracle)),
                max(unet_error(oracle, size) for size in UNET_SIZES),
                decode_error(oracle),
                max(encode_errors(oracle)),
            )
        print(f"| {kind} | " + " | ".join(f"{error:.1e}" for error in errors) + " |")
    print("\nSampler trajectories (in brackets with zero terminal SNR):")
    for name, schedule, num_steps, predicts in (*TRAJECTORIES, *SOLVER_TRAJECTORIES):
        error = f"{trajectory_error(name, predicts, schedule, num_steps):.1e}"
        if predicts != "epsilon" and schedule != "ays" and name in HAVE_ZERO_SNR:
            options = {"rescale_betas_zero_snr": True, "is_exact": name == "euler"}
            error += f" ({trajectory_error(name, predicts, schedule, num_steps, **options):.1e})"
        print(f"{name}, {schedule or 'its own'}, {num_steps} steps, {predicts}: {error}")


if __name__ == "__main__":
    main()
