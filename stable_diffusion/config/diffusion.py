"""What a model's scheduler config says, and the samplers and schedules that there are for it."""

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ..utils.strict_json import require, require_in, require_known
from .strict_config import Config

SPACINGS = ("trailing", "leading", "linspace")  # of timesteps (arXiv:2305.08891, table 2)
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
MAX_TIMESTEPS = 100_000  # of the training; all known models have 1,000


@dataclass(frozen=True)
class DiffusionConfig(Config):
    """`scheduler/scheduler_config.json`, as diffusers' schedulers read it `from_config`.

    Whatever scheduler the file is of, these are the keys that those of `SAMPLERS` share with it;
    its own further options do not reach them, and so are passed over.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    steps_offset: int = 0
    prediction_type: str = "epsilon"
    # Where the file is silent: what the original's linear schedule amounts to, and better at few
    # steps than diffusers' `linspace` (arXiv:2305.08891, section 3.3).
    timestep_spacing: str = "trailing"
    rescale_betas_zero_snr: bool = False  # to end in noise alone (arXiv:2305.08891)
    use_karras_sigmas: bool = False
    set_alpha_to_one: bool = True  # ddim: whether its last step leaves no noise
    original_inference_steps: int = 50  # lcm: of the distillation
    timestep_scaling: float = 10.0  # lcm
    algorithm_type: str = "dpmsolver++"  # this and the next two tell which DPM-Solver it is
    solver_order: int = 2
    solver_type: str = "midpoint"
    _class_name: str = "EulerDiscreteScheduler"

    # Options that change the noise levels, or x_0.
    FIXED = MappingProxyType(
        {
            "interpolation_type": "linear",
            "timestep_type": "discrete",
            "final_sigmas_type": "zero",
            "trained_betas": None,
            "sigma_min": None,
            "sigma_max": None,
            "use_exponential_sigmas": False,
            "use_beta_sigmas": False,
            "use_lu_lambdas": False,
            "use_flow_sigmas": False,
            "thresholding": False,
        }
    )

    @classmethod
    def _is_without_effect(cls, key: str, value: Any) -> bool:
        return key not in cls.FIXED or super()._is_without_effect(key, value)

    def __post_init__(self) -> None:
        require_in("num_train_timesteps", self.num_train_timesteps, 2, MAX_TIMESTEPS)
        require_in("beta_start", self.beta_start, 1e-6, 1)  # smaller ones are lost beside 1
        require(
            0 < self.beta_start <= self.beta_end < 1,
            f"beta_start = {self.beta_start} and beta_end = {self.beta_end} are no betas",
        )
        # All of them as large as the last: less of x_0 than that is no number in float32.
        log_alpha_bar = self.num_train_timesteps * math.log1p(-self.beta_end)
        require(log_alpha_bar > -80, f"beta_end = {self.beta_end} leaves nothing of pictures")
        require_in("steps_offset", self.steps_offset, 0, self.num_train_timesteps)
        require_in("timestep_scaling", self.timestep_scaling, 1e-4, 1e4)
        require_known("beta_schedule", self.beta_schedule, ("linear", "scaled_linear"))
        require_known("prediction_type", self.prediction_type, PREDICTION_TYPES)
        require_known("timestep_spacing", self.timestep_spacing, SPACINGS)
        require_in("original_inference_steps", self.original_inference_steps, 1, MAX_TIMESTEPS)

    @property
    def sampler(self) -> str:
        """The sampler that the model was published with, or what comes nearest: Euler."""
        if self._class_name == "DPMSolverMultistepScheduler":
            solver = (self.algorithm_type, self.solver_order, self.solver_type)
            return "dpm++2m" if solver == ("dpmsolver++", 2, "midpoint") else "euler"
        own = {"EulerAncestralDiscreteScheduler": "euler-a", "LCMScheduler": "lcm"}
        return own.get(self._class_name, "euler")
