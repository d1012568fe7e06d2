"""What may be wrong with a result, and the warning and the error that say so."""

from collections.abc import Sequence
from enum import StrEnum

from .utils.wording import join_names


class Fault(StrEnum):
    """What is wrong with a result."""

    NOT_FINITE = "not finite numbers"
    CONSTANT = "constant"


class RecomputeWarning(UserWarning):
    """A faulty result is computed again.

    Attributes:
        what: the result, such as "latents".
        fault: what is wrong with it.
        gives_up_float16: whether the model is loaded again to compute in float32; then
            `StableDiffusion(..., float16=False)` from the start saves time.
        gives_up_vae_float16: whether only the VAE is; then `vae_float16=False` saves time.
    """

    def __init__(
        self,
        what: str,
        fault: Fault,
        gives_up_float16: bool = False,
        gives_up_vae_float16: bool = False,
    ):
        if gives_up_float16 or gives_up_vae_float16:
            how = " in half precision: computing them again in float32"
        else:
            how = ": computing them again"
        super().__init__(f"the {what} are {fault}{how}")
        self.what = what
        self.fault = fault
        self.gives_up_float16 = gives_up_float16
        self.gives_up_vae_float16 = gives_up_vae_float16


class FaultyResultError(ValueError):
    """A result is faulty, even when computed again.

    Attributes:
        what: the result, such as "latents".
        fault: what is wrong with it. If it is constant, there may be too little memory: smaller or
            fewer pictures or a quantized model need less.
        damaged: the weights that are not finite, as "FILE: KEY". If there are none, the model
            overflows even in float32: less guidance, a smaller scale of LoRAs or another sampler
            may help.
    """

    def __init__(self, what: str, fault: Fault, damaged: Sequence[str] = ()):
        if fault is Fault.CONSTANT:
            message = f"the {what} are constant, even when computed again"
        elif damaged:
            message = (
                f"the {what} are not finite numbers, because these weights are not: "
                f"{join_names(damaged)}; get the file again"
            )
        else:
            message = (
                f"the {what} are not finite numbers, though all weights are: the model overflows"
            )
        super().__init__(message)
        self.what = what
        self.fault = fault
        self.damaged = tuple(damaged)
