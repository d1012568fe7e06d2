"""The scheduler config of a model: its noise schedule, and what its UNet predicts."""

import math
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Self

from ..utils.strict_json import require, require_in, require_known
from .strict_config import Config

# How the timesteps are spaced (arXiv:2305.08891, table 2).
SPACINGS = ("trailing", "leading", "linspace")
# The noise levels that diffusers has, by the option that selects them, and those that it lacks.
LEVEL_OPTIONS = MappingProxyType(
    {
        "karras": "use_karras_sigmas",
        "exponential": "use_exponential_sigmas",
        "beta": "use_beta_sigmas",
    }
)
OWN_SCHEDULES = ("sgm-uniform", "simple", "ays")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
MAX_TIMESTEPS = 100_000  # during training; all known models have 1,000


@dataclass(frozen=True)
class DiffusionConfig(Config):
    """`scheduler/scheduler_config.json`, as diffusers' schedulers read it in `from_config`.

    The fields are the keys that the samplers of this package read, whichever scheduler wrote the
    file. Its other options do not concern these samplers and are ignored.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    steps_offset: int = 0
    prediction_type: str = "epsilon"
    # The default is not diffusers' `linspace`: "trailing" is better at few steps (arXiv:2305.08891,
    # section 3.3), and the linear schedule of the original MLX example amounts to it.
    timestep_spacing: str = "trailing"
    rescale_betas_zero_snr: bool = False  # the last timestep is pure noise (same paper)
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    own_schedule: str = ""  # one of OWN_SCHEDULES, chosen by the caller; "" in all files
    is_xl: bool = False  # whether the model is SDXL, which "ays" has other levels for
    set_alpha_to_one: bool = True  # ddim: the last step leaves no noise
    original_inference_steps: int = 50  # lcm: steps of the distillation
    timestep_scaling: float = 10.0  # lcm
    # These three distinguish the DPM-Solvers.
    algorithm_type: str = "dpmsolver++"
    solver_order: int = 2
    solver_type: str = "midpoint"
    _class_name: str = "EulerDiscreteScheduler"

    # Options that would change the noise levels or x_0.
    FIXED = MappingProxyType(
        {
            "interpolation_type": "linear",
            "timestep_type": "discrete",
            "final_sigmas_type": "zero",
            "trained_betas": None,
            "sigma_min": None,
            "sigma_max": None,
            "use_lu_lambdas": False,
            "use_flow_sigmas": False,
            "thresholding": False,
        }
    )

    @classmethod
    def _has_no_effect(cls, key: str, value: Any) -> bool:
        return key not in cls.FIXED or super()._has_no_effect(key, value)

    def __post_init__(self) -> None:
        require_in("num_train_timesteps", self.num_train_timesteps, 2, MAX_TIMESTEPS)
        require_in("beta_start", self.beta_start, 1e-6, 1)  # 1 - beta loses smaller ones in float32
        require(
            0 < self.beta_start <= self.beta_end < 1,
            f"beta_start = {self.beta_start} and beta_end = {self.beta_end} must be in (0, 1), "
            "and beta_start must not be the larger one",
        )
        # The last ᾱ, if every beta were as large as the last one: float32 must be able to hold it.
        log_alpha_bar = self.num_train_timesteps * math.log1p(-self.beta_end)
        require(
            log_alpha_bar > -80,
            f"beta_end = {self.beta_end} is too large: nothing of the picture is left",
        )
        require_in("steps_offset", self.steps_offset, 0, self.num_train_timesteps)
        require_in("timestep_scaling", self.timestep_scaling, 1e-4, 1e4)
        require_known("beta_schedule", self.beta_schedule, ("linear", "scaled_linear"))
        require_known("prediction_type", self.prediction_type, PREDICTION_TYPES)
        require_known("timestep_spacing", self.timestep_spacing, SPACINGS)
        require_known("own_schedule", self.own_schedule, ("", *OWN_SCHEDULES))
        levels = [option for option in LEVEL_OPTIONS.values() if getattr(self, option)]
        require(len(levels) <= 1, f"{' and '.join(levels)} exclude each other")
        require_in("original_inference_steps", self.original_inference_steps, 1, MAX_TIMESTEPS)

    @property
    def schedule(self) -> str:
        """Return the name of the schedule that the fields select."""
        for name, option in LEVEL_OPTIONS.items():
            if getattr(self, option):
                return name
        return self.own_schedule or self.timestep_spacing

    def with_schedule(self, name: str) -> Self:
        """Return the config with another schedule, one of those that `schedule` returns.

        A schedule of noise levels keeps the spacing, which says how the first latents are made and
        for some samplers where the levels end.
        """
        options: dict[str, Any] = dict.fromkeys(LEVEL_OPTIONS.values(), False)
        options["own_schedule"] = name if name in OWN_SCHEDULES else ""
        if name in LEVEL_OPTIONS:
            options[LEVEL_OPTIONS[name]] = True
        elif name in SPACINGS:
            options["timestep_spacing"] = name
        return replace(self, **options)

    @property
    def sampler(self) -> str:
        """Return the sampler that the model was published with, or else "euler"."""
        if self._class_name == "DPMSolverMultistepScheduler":
            solver = (self.algorithm_type, self.solver_order, self.solver_type)
            return "dpm++2m" if solver == ("dpmsolver++", 2, "midpoint") else "euler"
        samplers = {"EulerAncestralDiscreteScheduler": "euler-a", "LCMScheduler": "lcm"}
        return samplers.get(self._class_name, "euler")
