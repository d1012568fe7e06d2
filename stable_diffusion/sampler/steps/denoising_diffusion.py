"""Steps of DDPM and DDIM, and of the models that are distilled to few steps: LCM and TCD."""

from functools import lru_cache

import mlx.core as mx

from ...config.diffusion import DiffusionConfig
from ..schedule import CLEAN, Level, compute_alphas_bar
from .step_input import StepInput


def compute_posterior_variance(start: Level, end: Level) -> float:
    """Return the variance of latents at `end`, if those at `start` and x_0 are known.

    See Ho et al. 2020 (arXiv:2006.11239), formula 7.
    """
    return end.sigma**2 / start.sigma**2 * (1 - (start.alpha / end.alpha) ** 2)


def ddim_step(at: StepInput) -> mx.array:
    """Step by DDIM (Song et al. 2020, arXiv:2010.02502, formulas 12 and 16).

    eta is the share of the noise of DDPM, 0 to 1.
    """
    end = at.step.end
    if not at.eta:
        return end.mix(at.x_0, at.noise)
    fresh_sigma = at.eta * compute_posterior_variance(at.step.start, end) ** 0.5
    direction = max(end.sigma**2 - fresh_sigma**2, 0) ** 0.5
    return end.alpha * at.x_0 + direction * at.noise + fresh_sigma * at.require_fresh()


def ddpm_step(at: StepInput) -> mx.array:
    """Step by ancestral sampling (Ho et al. 2020, arXiv:2006.11239, formulas 6, 7 and 11)."""
    start, end = at.step.start, at.step.end
    is_large = at.config.variance_type == "fixed_large" and at.step.timestep > 0
    if end == CLEAN and not is_large:
        return at.x_0
    kept = start.alpha / end.alpha  # the square root of the product of α from end to start
    beta = 1 - kept**2
    of_x_0 = end.alpha * beta / start.sigma**2
    of_x = kept * end.sigma**2 / start.sigma**2
    variance = beta if is_large else compute_posterior_variance(start, end)
    return of_x_0 * at.x_0 + of_x * at.x + variance**0.5 * at.require_fresh()


def lcm_step(at: StepInput) -> mx.array:
    """Step by multistep consistency sampling (Luo et al. 2023, arXiv:2310.04378, algorithm 2)."""
    # The boundary condition of a consistency function: it is x itself at time 0 (appendix D).
    time, sigma_data = at.step.timestep * at.config.timestep_scaling, 0.5
    skip = sigma_data**2 / (time**2 + sigma_data**2)
    out = time / (time**2 + sigma_data**2) ** 0.5
    denoised = skip * at.x + out * at.x_0
    if not at.step.adds_noise:  # the last step
        return denoised
    return at.step.end.mix(denoised, at.require_fresh())


def tcd_step(at: StepInput) -> mx.array:
    """Step by strategic stochastic sampling (Zheng et al. 2024, arXiv:2402.19159, algorithm 4).

    eta, which the paper calls γ, is how far below the next timestep the step goes, and how much
    fresh noise comes back up to it: from 0, none, to 1.
    """
    end, next_timestep = at.step.end, at.step.next_timestep
    if not at.eta or next_timestep is None:  # the last step adds no noise
        return end.mix(at.x_0, at.noise)
    below = find_level(at.config, int((1 - at.eta) * next_timestep))
    kept = end.alpha / below.alpha
    return kept * below.mix(at.x_0, at.noise) + (1 - kept**2) ** 0.5 * at.require_fresh()


@lru_cache(maxsize=256)
def find_level(config: DiffusionConfig, timestep: int) -> Level:
    """Return the noise level of a timestep of the training."""
    return Level.from_alpha_bar(float(compute_alphas_bar(config)[timestep]))
