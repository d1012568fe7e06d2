"""A whole model, or a VAE, in one file of the original layout, as a source of files.

Such a file has no configs: they are made from the names and shapes of its tensors.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..config.known_models import PACKAGE
from ..utils.wording import join_names
from .detect_networks import detect_text_encoder, detect_vae
from .detect_unet import detect_added_embedding, detect_unet
from .layouts import Layout
from .original_layout import CLIP_ROOT, FAMILIES, UNET_ROOT, VAE_ROOT, XL_CLIP_ROOT, Family
from .safetensors_file import Header
from .sources import PICKLES, Source
from .unsupported import refuse_keys

TOKENIZER = PACKAGE / "tiny" / "tokenizer"  # CLIP's vocabulary, which is the same for all models
SUFFIXES = (".safetensors", ".ckpt")  # a name that ends so means a file, even if there is none

# Starts of further keys that such files have and that are not needed: averaged copies of the
# weights, the noise schedule, the state of the training, and what programs that write such files
# add to the text encoders.
LEFTOVERS = (
    *("model_ema.", "loss.", "denoiser.", "global_step", "logvar", "lvlb_weights", "scale_factor"),
    *("alphas_cumprod", "betas", "log_one_minus_alphas_cumprod", "posterior_"),
    *("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "sqrt_recip", "v_pred", "ztsnr"),
    *("cond_stage_model.logit_scale", f"{CLIP_ROOT}text_projection."),
    *("conditioner.embedders.0.logit_scale", f"{XL_CLIP_ROOT}text_projection."),
)

# Metadata that say what the UNet predicts (https://github.com/Stability-AI/ModelSpec).
PREDICTION_KEY = "modelspec.prediction_type"
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
ARCHITECTURE_KEY = "modelspec.architecture"
ARCHITECTURES = {
    "stable-diffusion-v2-512": "epsilon",
    "stable-diffusion-v2-768-v": "v_prediction",
}
# Empty tensors with which SDXL fine-tunes say that they predict the velocity, and that their noise
# schedule ends in pure noise.
V_MARKER, ZERO_SNR_MARKER = "v_pred", "ztsnr"


class Component(NamedTuple):
    """A network in a single file."""

    config: dict[str, Any]  # as diffusers would write it
    layout: Layout


class SingleFile(Source):
    """A file with all networks of a model (the VAE may be missing).

    Args:
        header: of the file.
        family: the family that the model belongs to.
        components: its networks, by component.
    """

    def __init__(self, header: Header, family: Family, components: Mapping[str, Component]):
        super().__init__(header.name, header.file.parent)
        self.header = header
        self.family = family
        self.components = components

    def find(self, path: str) -> Path | None:
        """Return a file of the vocabulary, which is this package's own; there are no others."""
        folder, _, name = path.partition("/")
        has_folder = folder.startswith("tokenizer") and _text_encoder_of(folder) in self.components
        return TOKENIZER / name if has_folder and name in ("vocab.json", "merges.txt") else None

    def files(self) -> Collection[str]:
        return ()  # there are no others

    def config(self, path: str) -> tuple[Any, str]:
        """Return what a config file would say, and the name of the single file."""
        component = path.partition("/")[0]
        if component == "scheduler":
            return self._make_scheduler_config(), self.name
        config = self._require_component(component).config
        if component == "unet" and self._find_prediction_type() == "v_prediction":
            return config | {"sample_size": self.family.v_sample_size}, self.name
        return dict(config), self.name

    def weights(self, component: str, float16: bool) -> list[Path]:
        """Return the single file, if it has the component."""
        self._require_component(component)
        return [self.header.file]

    def is_native(self, file: Path) -> bool:
        return False

    def layout(self, component: str) -> Layout:
        return self._require_component(component).layout

    def pad_token(self, folder: str) -> str:
        return self.family.text_towers[_text_encoder_of(folder)].pad_token

    def scaling_factor(self) -> float | None:
        return self.family.scaling_factor  # also if the file has no VAE

    def _require_component(self, component: str) -> Component:
        """Return a network of the file.

        Raises:
            FileNotFoundError: if the file does not have it.
        """
        if component not in self.components:
            hints = {"unet": "no UNet", "vae": "no VAE: give one (--vae)"}
            raise FileNotFoundError(f"{self.name} has {hints.get(component, f'no {component}')}")
        return self.components[component]

    def _find_prediction_type(self) -> str | None:
        """Return what the UNet predicts: what the user says, or the file, or the family."""
        if self.prediction_type is not None:
            return self.prediction_type
        stated = find_stated_prediction(self.header)
        return self.family.prediction_type if stated is None else stated

    def _make_scheduler_config(self) -> dict[str, Any]:
        """Return the noise schedule that all models of Stable Diffusion share.

        Raises:
            ValueError: if nothing says what the UNet predicts.
        """
        if (prediction_type := self._find_prediction_type()) is None:
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
            # Trailing spacing begins with pure noise (arXiv:2305.08891, section 3.3).
            "timestep_spacing": "trailing" if is_zero_snr else self.family.timestep_spacing,
            "rescale_betas_zero_snr": is_zero_snr,
        }


class VaeFile(Source):
    """A file with a VAE alone, which does not say how it scales latents."""

    def __init__(self, header: Header, vae: Component):
        super().__init__(header.name, header.file.parent)
        self.header = header
        self.vae = vae

    def find(self, path: str) -> Path | None:
        return None

    def files(self) -> Collection[str]:
        return ()

    def config(self, path: str) -> tuple[Any, str]:
        """Return what the VAE's config file would say, and the name of the single file."""
        self._require_vae(path.partition("/")[0])
        return dict(self.vae.config), self.name

    def weights(self, component: str, float16: bool) -> list[Path]:
        """Return the single file."""
        self._require_vae(component)
        return [self.header.file]

    def is_native(self, file: Path) -> bool:
        return False

    def layout(self, component: str) -> Layout:
        self._require_vae(component)
        return self.vae.layout

    def scaling_factor(self) -> float | None:
        return None

    def _require_vae(self, component: str) -> None:
        if component != "vae":
            raise FileNotFoundError(f"{self.name} has no {component}: it is a VAE (--vae)")


def find_stated_prediction(header: Header) -> str | None:
    """Return what the UNet predicts, as the metadata or a marker of its file say; else None.

    Raises:
        ValueError: if they say something that is not supported.
    """
    if (stated := header.metadata.get(PREDICTION_KEY)) is not None:
        if stated not in PREDICTIONS:
            raise ValueError(f"{header.name}: {PREDICTION_KEY} = {stated!r} is not supported")
        return PREDICTIONS[stated]
    if V_MARKER in header.shapes:
        return "v_prediction"
    return ARCHITECTURES.get(header.metadata.get(ARCHITECTURE_KEY, ""))


def open_single_file(name: str, file: Path) -> SingleFile:
    """Detect the model that a file holds.

    Args:
        name: the file's name in messages.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is a pickle, damaged, or holds something else; the message says what.
    """
    header = open_header(name, file)
    refuse_keys(name, header.shapes)
    if not header.has(UNET_ROOT):
        why = f"no keys begin with {UNET_ROOT} (of a model in diffusers' layout, give the folder)"
        if header.has("decoder.conv_in."):
            why = "it is a VAE (--vae)"
        raise ValueError(f"{name} is not a Stable Diffusion checkpoint in one file: {why}")

    family = _detect_family(header)
    components = {
        component: Component(*detect_text_encoder(header, tower))
        for component, tower in family.text_towers.items()
    }
    components["unet"] = _detect_unet(header, family, components.get("text_encoder_2"))
    if header.has(VAE_ROOT):
        config, layout = detect_vae(header, VAE_ROOT)
        config["scaling_factor"] = family.scaling_factor
        components["vae"] = Component(config, layout)

    expected = (*(component.layout.root for component in components.values()), *LEFTOVERS)
    if strays := [key for key in header.shapes if not key.startswith(expected)]:
        raise ValueError(f"{name}, recognized as {family.name}: not expected: {join_names(strays)}")
    return SingleFile(header, family, components)


def open_vae_file(name: str, file: Path) -> Source:
    """Detect the VAE that a file holds, alone or within a model.

    Raises:
        OSError, ValueError: as `open_single_file` does.
    """
    header = open_header(name, file)
    if header.has(UNET_ROOT):
        return open_single_file(name, file)
    root = VAE_ROOT if header.has(VAE_ROOT) else ""
    if not header.has(f"{root}decoder.conv_in."):
        refuse_keys(name, header.shapes)
        raise ValueError(f"{name} holds no VAE")
    return VaeFile(header, Component(*detect_vae(header, root)))


def _detect_family(header: Header) -> Family:
    """Return the family of a model, by its text encoders.

    Raises:
        ValueError: if it has none of a known family.
    """
    for family in FAMILIES:
        if any(header.has(tower.root) for tower in family.text_towers.values()):
            return family
    raise ValueError(f"{header.name} has no text encoder of SD 1.x, 2.x or XL")


def _detect_unet(header: Header, family: Family, second: Component | None) -> Component:
    """Return the UNet of a model whose second text encoder, if it has one, is `second`.

    Raises:
        ValueError: as `detect_unet` does.
    """
    config, layout = detect_unet(header, UNET_ROOT)
    config["sample_size"] = family.sample_size
    if family.heads is not None:
        config["num_attention_heads"] = family.heads
    if second is not None:
        config |= detect_added_embedding(header, layout, second.config["projection_dim"])
    return Component(config, layout)


def _text_encoder_of(tokenizer: str) -> str:
    """Return the text encoder that a tokenizer is for: both have the same number."""
    return tokenizer.replace("tokenizer", "text_encoder")


def open_header(name: str, file: Path) -> Header:
    """Read the header of a file that must not be a pickle."""
    if not file.exists():
        raise FileNotFoundError(f"there is no file {name}")
    if file.suffix in PICKLES:
        raise ValueError(
            f"{name} is a pickle, and pickles are never loaded: convert it in diffusers, "
            "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER), and give the "
            "folder (SDXL: StableDiffusionXLPipeline)"
        )
    return Header(name, file)
