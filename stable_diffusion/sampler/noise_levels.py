"""The schedules that place noise levels, where the others space timesteps.

A level is a ratio sigma / alpha, which k-diffusion and diffusers call sigma.
"""

import math

import numpy as np

from ..config.diffusion import DiffusionConfig

RHO = 7.0  # how much denser the low levels are (Karras et al. 2022, arXiv:2206.00364, section D.1)
BETA_SHAPE = 0.6  # both parameters of the beta distribution (arXiv:2407.12173)
BETA_TERMS = 60  # of a power series whose terms at least halve: more than float64 has bits
BETA_ITERATIONS = 10  # of Newton's method, which doubles the number of correct digits each time

# "Align your steps" (Sabour et al. 2024, arXiv:2404.14507): the levels of 10 steps that were
# published for SD 1.5 and SDXL, and the one that the last step would end at if it left any noise.
AYS_RATIOS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
AYS_RATIOS_XL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
AYS_TIMESTEPS = 1000  # of the training of these models
AYS_MARGIN = 1.001  # of the highest level: the published ones are rounded


def place_levels(
    config: DiffusionConfig,
    num_steps: int,
    all_ratios: np.ndarray,
    highest: float,
    lowest: float,
) -> np.ndarray:
    """Return [num_steps] falling ratios, of the schedule that `config.schedule` names.

    Args:
        all_ratios: of every training timestep, rising.
        highest, lowest: the ratios to place the others between, for the schedules that do so.

    Raises:
        ValueError: if the schedule is not made for this model.
    """
    match config.schedule:
        case "karras":
            return space_karras(highest, lowest, num_steps)
        case "exponential":
            return space_exponential(highest, lowest, num_steps)
        case "beta":
            return space_beta(highest, lowest, num_steps)
        case "ays":
            require_ays(config, all_ratios)
            return space_ays(AYS_RATIOS_XL if config.is_xl else AYS_RATIOS, num_steps)
    return find_ratios(LEVEL_TIMESTEPS[config.schedule](len(all_ratios), num_steps), all_ratios)


def space_karras(highest: float, lowest: float, num_steps: int, rho: float = RHO) -> np.ndarray:
    """Return [num_steps] falling ratios, the low ones denser (Karras et al. 2022, equation 5)."""
    ramp = np.linspace(0, 1, num_steps)
    return (highest ** (1 / rho) * (1 - ramp) + lowest ** (1 / rho) * ramp) ** rho


def space_exponential(highest: float, lowest: float, num_steps: int) -> np.ndarray:
    """Return [num_steps] falling ratios, each the same part of the one before."""
    return np.exp(np.linspace(math.log(highest), math.log(lowest), num_steps))


def space_beta(highest: float, lowest: float, num_steps: int) -> np.ndarray:
    """Return [num_steps] falling ratios, denser at both ends (arXiv:2407.12173).

    They lie at quantiles of a beta distribution.
    """
    quantiles = invert_beta(1 - np.linspace(0, 1, num_steps), BETA_SHAPE)
    return lowest + quantiles * (highest - lowest)


def invert_beta(probability: np.ndarray, shape: float) -> np.ndarray:
    """Return the quantiles of the beta distribution whose two parameters are both `shape`.

    In the lower half the distribution function is a power series in x,
    I(x) = x^a Σ c_n x^n / (a + n) / B(a, a) with c_n = (1 - a)_n / n! (DLMF 8.17.7). It is convex
    as a function of x^a, so Newton's method converges from above. The distribution is symmetric.
    """
    lower = np.minimum(probability, 1 - probability)
    whole = math.gamma(shape) ** 2 / math.gamma(2 * shape)  # B(a, a)
    n = np.arange(BETA_TERMS)
    coefficients = np.cumprod(np.append(1.0, (n[1:] - shape) / n[1:])) / (shape + n)
    power = lower * whole * shape  # x^a, if the series ended after its first term
    for _ in range(BETA_ITERATIONS):
        x = power ** (1 / shape)
        value = power * np.polynomial.polynomial.polyval(x, coefficients) / whole
        slope = (1 - x) ** (shape - 1) / (shape * whole)
        power = np.maximum(power - (value - lower) / slope, 0.0)
    x = power ** (1 / shape)
    return np.where(probability > 0.5, 1 - x, x)


def space_ays(published: tuple[float, ...], num_steps: int) -> np.ndarray:
    """Return [num_steps] falling ratios along the published ones, their logarithms interpolated."""
    n = len(published) - 1
    positions = np.linspace(0, n, num_steps + 1)[:-1]  # the last step ends without noise
    return np.exp(np.interp(positions, np.arange(n + 1), np.log(published)))


def require_ays(config: DiffusionConfig, all_ratios: np.ndarray) -> None:
    """Check that a model has the noise levels that "align your steps" was made for.

    Raises:
        ValueError: if it does not have them.
    """
    reaches = all_ratios[0] <= AYS_RATIOS[-2] and AYS_RATIOS[0] <= all_ratios[-1] * AYS_MARGIN
    if config.rescale_betas_zero_snr or len(all_ratios) != AYS_TIMESTEPS or not reaches:
        what = "zero terminal SNR" if config.rescale_betas_zero_snr else "other noise levels"
        raise ValueError(
            f"schedule ays is made for the noise levels of SD 1.5 and SDXL, this model has {what}: "
            "use sgm-uniform"
        )


def space_sgm_uniform(n: int, num_steps: int) -> np.ndarray:
    """Return [num_steps] falling timesteps of n, in equal steps that would end at the first one."""
    return np.linspace(n - 1, 0, num_steps + 1)[:-1]


def space_simple(n: int, num_steps: int) -> np.ndarray:
    """Return [num_steps] falling whole timesteps of n, in equal steps from the last one."""
    return n - 1 - (np.arange(num_steps) * (n / num_steps)).astype(int)


# The schedules that are timesteps to those who made them, and noise levels to their samplers.
LEVEL_TIMESTEPS = {"sgm-uniform": space_sgm_uniform, "simple": space_simple}


def find_ratios(timesteps: np.ndarray, all_ratios: np.ndarray) -> np.ndarray:
    """Return the ratios at (fractional) timesteps, their logarithms interpolated."""
    return np.exp(np.interp(timesteps, np.arange(len(all_ratios)), np.log(all_ratios, dtype=float)))


def interpolate_timesteps(ratios: np.ndarray, all_ratios: np.ndarray) -> np.ndarray:
    """Return the (fractional) training timesteps that have these ratios."""
    return np.interp(np.log(ratios), np.log(all_ratios), np.arange(len(all_ratios)))
