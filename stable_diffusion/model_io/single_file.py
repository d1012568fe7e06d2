"""A whole model, or a VAE, in one file: the original layout as `model_io` reads models."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..config.known_models import PACKAGE
from ..utils.wording import join_names
from .layouts import Layout
from .original_layout import (
    CLIP_ROOT,
    FAMILIES,
    UNET_ROOT,
    VAE_ROOT,
    XL_CLIP_ROOT,
    Family,
    tell_text_encoder,
    tell_unet,
    tell_vae,
)
from .safetensors_file import Header
from .sources import PICKLES, Source
from .unsupported import refuse_keys

TOKENIZER = PACKAGE / "tiny" / "tokenizer"  # CLIP's vocabulary, the same for all
SUFFIXES = (".safetensors", ".ckpt")  # of names that mean a file, be it there or not

# What else such files have, and nobody needs: averaged copies of the weights, the noise schedule,
# the state of the training, and what programs that write such files add to the text encoders.
LEFTOVERS = (
    *("model_ema.", "loss.", "denoiser.", "global_step", "logvar", "lvlb_weights", "scale_factor"),
    *("alphas_cumprod", "betas", "log_one_minus_alphas_cumprod", "posterior_"),
    *("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "sqrt_recip", "v_pred", "ztsnr"),
    *("cond_stage_model.logit_scale", f"{CLIP_ROOT}text_projection."),
    *("conditioner.embedders.0.logit_scale", f"{XL_CLIP_ROOT}text_projection."),
)

# How files say what the UNet predicts (https://github.com/Stability-AI/ModelSpec).
SAID_PREDICTION = "modelspec.prediction_type"
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
SAID_ARCHITECTURE = "modelspec.architecture"
ARCHITECTURES = {
    "stable-diffusion-v2-512": "epsilon",
    "stable-diffusion-v2-768-v": "v_prediction",
}
# Keys without content by which SDXL fine-tunes say that they predict the velocity, and that their
# noise schedule ends in pure noise.
V_MARKER, ZERO_SNR_MARKER = "v_pred", "ztsnr"


class SingleFile(Source):
    """A file with all networks of a model, or with a VAE alone, as `model_io` reads models.

    `scaling_factor` is that of the VAE; None for a VAE alone, which does not say.
    """

    def __init__(self, header: Header, family: Family | None):
        super().__init__(header.name, header.file.parent)
        self.header = header
        self.family = family
        self.scaling_factor = None if family is None else family.scaling_factor
        self.layouts: dict[str, Layout] = {}  # by component
        self.configs: dict[str, dict[str, Any]] = {}  # the same, as diffusers writes them

    def add(self, component: str, config: dict[str, Any], layout: Layout) -> None:
        """Note what was told of a component."""
        self.configs[component] = config
        self.layouts[component] = layout

    def find(self, path: str) -> Path | None:
        """A file of the vocabulary, which is the package's own; there are no others."""
        folder, _, name = path.partition("/")
        has_folder = folder.startswith("tokenizer") and _text_encoder(folder) in self.layouts
        return TOKENIZER / name if has_folder and name in ("vocab.json", "merges.txt") else None

    def files(self) -> Collection[str]:
        """None but the file itself."""
        return ()

    def weights(self, component: str, float16: bool) -> list[Path]:
        """The file, where it has the component."""
        self._require(component)
        return [self.header.file]

    def config(self, path: str) -> tuple[dict[str, Any], str]:
        """What the config file would say, and what to call it in messages."""
        component = path.partition("/")[0]
        if component == "scheduler":
            return self._scheduler(), self.name
        self._require(component)
        config = self.configs[component]
        if component == "unet" and self._predicts() == "v_prediction":
            config = {**config, "sample_size": self.family.v_sample_size}
        return config, self.name

    def pad_token(self, folder: str) -> str:
        """What the tokenizer of a folder pads prompts with."""
        return self.family.text_towers[_text_encoder(folder)].pad_token

    def _require(self, component: str) -> None:
        if component not in self.layouts:
            what = {"unet": "no UNet", "vae": "no VAE: give one (--vae)"}.get(component)
            raise FileNotFoundError(f"{self.name} has {what or f'no {component}'}")

    def _predicts(self) -> str | None:
        """What the UNet predicts: as the user says, else the file, else the family."""
        if self.prediction_type is not None:
            return self.prediction_type
        if (said := self.header.metadata.get(SAID_PREDICTION)) is not None:
            if said not in PREDICTIONS:
                raise ValueError(f"{self.name}: {SAID_PREDICTION} = {said!r} is not supported")
            return PREDICTIONS[said]
        if V_MARKER in self.header.shapes:
            return "v_prediction"
        architecture = self.header.metadata.get(SAID_ARCHITECTURE)
        return ARCHITECTURES.get(architecture, self.family.prediction_type)

    def _scheduler(self) -> dict[str, Any]:
        if (prediction_type := self._predicts()) is None:
            raise ValueError(
                f"{self.name} does not say what this {self.family.name} model predicts: give the "
                "prediction type (--prediction-type), v_prediction for models of 768 pixels, "
                "epsilon for those of 512"
            )
        is_zero_snr = ZERO_SNR_MARKER in self.header.shapes
        return {
            "_class_name": "EulerDiscreteScheduler",
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "steps_offset": 1,
            "prediction_type": prediction_type,
            # Noise alone is what trailing spacing begins with (arXiv:2305.08891, section 3.3).
            "timestep_spacing": "trailing" if is_zero_snr else self.family.timestep_spacing,
            "rescale_betas_zero_snr": is_zero_snr,
        }


def open_single_file(name: str, file: Path) -> SingleFile:
    """Tell the model that a file holds.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is a pickle, damaged, or holds something else; the message says what.
    """
    header = _open(name, file)
    refuse_keys(name, header.shapes)
    if not header.has(UNET_ROOT):
        why = f"no keys begin with {UNET_ROOT} (of a model in diffusers' layout, give the folder)"
        if header.has("decoder.conv_in."):
            why = "it is a VAE (--vae)"
        raise ValueError(f"{name} is no Stable Diffusion checkpoint in one file: {why}")
    for family in FAMILIES:
        if any(header.has(tower.root) for tower in family.text_towers.values()):
            break
    else:
        raise ValueError(f"{name} has no text encoder of SD 1.x, 2.x or XL")

    model = SingleFile(header, family)
    for component, tower in family.text_towers.items():
        model.add(component, *tell_text_encoder(header, tower))
    model.add("unet", *tell_unet(header, family, model.configs))
    if header.has(VAE_ROOT):
        config, layout = tell_vae(header, VAE_ROOT)
        model.add("vae", {**config, "scaling_factor": family.scaling_factor}, layout)
    roots = tuple(layout.root for layout in model.layouts.values())
    if strays := [key for key in header.shapes if not key.startswith((*roots, *LEFTOVERS))]:
        raise ValueError(f"{name}, told to be {family.name}: not expected: {join_names(strays)}")
    return model


def open_vae_file(name: str, file: Path) -> SingleFile:
    """Tell the VAE that a file holds, alone or within a model.

    Raises: as `open_single_file`.
    """
    header = _open(name, file)
    if header.has(UNET_ROOT):
        return open_single_file(name, file)
    root = VAE_ROOT if header.has(VAE_ROOT) else ""
    if not header.has(f"{root}decoder.conv_in."):
        refuse_keys(name, header.shapes)
        raise ValueError(f"{name} holds no VAE")
    vae = SingleFile(header, family=None)
    vae.add("vae", *tell_vae(header, root))
    return vae


def _text_encoder(tokenizer: str) -> str:
    """The text encoder that a tokenizer is for: they are numbered alike."""
    return tokenizer.replace("tokenizer", "text_encoder")


def _open(name: str, file: Path) -> Header:
    if not file.exists():
        raise FileNotFoundError(f"there is no file {name}")
    if file.suffix in PICKLES:
        raise ValueError(
            f"{name} is a pickle, and pickles are never loaded: convert it in diffusers, "
            "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER), and give the "
            "folder (SDXL: StableDiffusionXLPipeline)"
        )
    return Header(name, file)
