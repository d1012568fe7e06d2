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

# The schedulers of diffusers for models that are trained on noise of discrete betas, and the
# sampler here that steps as each of them. None: "euler", because diffusers' training scripts write
# these into any model, or because there is none.
SAMPLERS_OF_CLASSES = {
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-a",
    "DDIMScheduler": None,
    "PNDMScheduler": None,
    "DDPMScheduler": None,
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
    "HeunDiscreteScheduler": "heun",
    "LMSDiscreteScheduler": "lms",
    "KDPM2DiscreteScheduler": "dpm2",
    "KDPM2AncestralDiscreteScheduler": "dpm2-a",
    "DPMSolverMultistepScheduler": None,  # one of three, see `DiffusionConfig.sampler`
    "DPMSolverSinglestepScheduler": None,
    "DPMSolverSDEScheduler": "dpm++sde",
    "UniPCMultistepScheduler": "unipc",
    "DEISMultistepScheduler": "deis",
    "SASolverScheduler": None,
}
# Other forms of them, which have the same options.
CLASS_VARIANTS = (
    *("DDIMInverseScheduler", "DDIMParallelScheduler", "DDPMParallelScheduler"),
    *("DPMSolverMultistepInverseScheduler", "FlaxDDIMScheduler", "FlaxDDPMScheduler"),
    *("FlaxDPMSolverMultistepScheduler", "FlaxEulerDiscreteScheduler"),
    *("FlaxLMSDiscreteScheduler", "FlaxPNDMScheduler"),
)
# The samplers of the DPM-Solvers: algorithm_type, solver_order, solver_type.
MULTISTEP_SAMPLERS = {
    ("dpmsolver++", 2, "midpoint"): "dpm++2m",
    ("dpmsolver++", 3, "midpoint"): "dpm++3m",
    ("sde-dpmsolver++", 2, "midpoint"): "dpm++2m-sde",
}
FIXED_VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large")  # of ddpm
SINGLESTEP_SAMPLERS = {("dpmsolver++", 2, "midpoint"): "dpm++2s"}


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
    # Whether the last step leaves no noise. None: ddim's leaves none, pndm's does.
    set_alpha_to_one: bool | None = None
    original_inference_steps: int = 50  # lcm: steps of the distillation
    timestep_scaling: float = 10.0  # lcm
    # These three distinguish the DPM-Solvers; unipc and deis have an order, too, and unipc a type.
    algorithm_type: str = "dpmsolver++"
    solver_order: int = 2
    solver_type: str = "midpoint"
    lower_order_final: bool = True  # solvers of order 3 and deis: in short runs
    predict_x0: bool = True  # unipc
    disable_corrector: tuple[int, ...] = ()  # unipc: steps that are not corrected
    skip_prk_steps: bool = True  # pndm: no Runge-Kutta steps; diffusers' default is false
    variance_type: str = "fixed_small"  # ddpm
    clip_sample: bool = False  # of models whose latents are in [-1, 1]
    _class_name: str = "EulerDiscreteScheduler"

    CLASS_NAMES = (*SAMPLERS_OF_CLASSES, *CLASS_VARIANTS)
    CLASSES = "schedulers for models that are trained on discrete noise levels: " + ", ".join(
        name.removesuffix("Scheduler") for name in SAMPLERS_OF_CLASSES
    )
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
            "solver_p": None,
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
        """Return the sampler that the model was published with, or else "euler".

        It is also "euler" if that sampler cannot run this model.
        """
        solver = (self.algorithm_type, self.solver_order, self.solver_type)
        if self._class_name == "DPMSolverMultistepScheduler":
            name = MULTISTEP_SAMPLERS.get(solver)
        elif self._class_name == "DPMSolverSinglestepScheduler":
            name = SINGLESTEP_SAMPLERS.get(solver)
        else:
            name = SAMPLERS_OF_CLASSES.get(self._class_name)
        return "euler" if name is None or self.find_fault(name) else name

    def find_fault(self, sampler: str) -> str | None:
        """Return the options with which this package cannot step as a sampler of diffusers does."""
        if sampler in ("unipc", "deis") and not 1 <= self.solver_order <= 3:
            return f"solver_order = {self.solver_order}, only 1, 2 or 3"
        if sampler == "unipc" and not self.predict_x0:
            return "predict_x0 = false"
        if sampler == "unipc" and self.disable_corrector:
            return f"disable_corrector = {list(self.disable_corrector)}"
        if sampler == "pndm" and not self.skip_prk_steps:
            return "skip_prk_steps = false"
        if sampler == "ddpm" and self.variance_type not in FIXED_VARIANCES:
            return f"variance_type = {self.variance_type!r}, only {', '.join(FIXED_VARIANCES)}"
        # diffusers' pipelines of SD 1 and 2 switch it off, and the one of SDXL does not.
        if sampler in ("ddpm", "heun") and self.clip_sample and self.is_xl:
            return "clip_sample = true"
        if sampler in ("dpm2", "dpm2-a", "dpm++sde") and self.prediction_type == "sample":
            return "prediction_type = 'sample'"
        return None
