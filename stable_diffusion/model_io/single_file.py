"""A whole model, or a VAE, in one file of the original layout, as a source of files.

Such a file has no configs: they are made from the names and shapes of its tensors.
"""

import warnings
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from ..config.known_models import PACKAGE
from ..utils.wording import join_names
from .detect_text_encoder import detect_family, detect_text_encoder
from .detect_unet import detect_added_embedding, detect_unet
from .detect_vae import detect_vae
from .layouts import Layout
from .network_file import Component, NetworkFile
from .original_layout import TEXT_ROOTS, UNET_ROOT, VAE_ROOT, XL_TEXT_ROOTS, Family
from .prediction_type import V_MARKER, ZERO_SNR_MARKER, find_prediction_type, has_zero_snr
from .safetensors_file import Header
from .sources import CONVERT_PICKLE, PICKLES, Source
from .tiny_vae import find_family, has_tiny_vae, open_tiny_halves
from .unsupported import refuse_keys

TOKENIZER = PACKAGE / "tiny" / "tokenizer"  # CLIP's vocabulary, which is the same for all models
ALL_TEXT_ROOTS = (*TEXT_ROOTS, *(root for roots in XL_TEXT_ROOTS for root in roots))
VAE_ROOTS = (VAE_ROOT, "vae.", "")  # starts of its keys: in whole models, in some files, alone
SUFFIXES = (".safetensors", ".ckpt")  # a name that ends so means a file, even if there is none


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

    @cached_property
    def _own_prediction_type(self) -> str:
        """Return what the UNet predicts, as the file says; a warning about it comes once."""
        in_channels = self.components["unet"].config["in_channels"]
        return find_prediction_type(self.header, self.family, in_channels)

    def _find_prediction_type(self) -> str:
        """Return what the UNet predicts: what the user says, or else the file."""
        return self._own_prediction_type if self.prediction_type is None else self.prediction_type

    def _make_scheduler_config(self) -> dict[str, Any]:
        """Return the noise schedule that all models of Stable Diffusion share."""
        prediction_type = self._find_prediction_type()
        is_zero_snr = has_zero_snr(self.header, prediction_type)
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
        if header.has("model_ema."):
            why = "it has the averaged weights of a UNet (EMA), but not the UNet itself"
        if _has_vae(header, "") or open_tiny_halves(header):
            why = "it is a VAE (--vae)"
        raise ValueError(f"{name} is not a Stable Diffusion checkpoint in one file: {why}")

    family, layouts = detect_family(header)
    components = {
        component: Component(*detect_text_encoder(header, tower, layouts[component]))
        for component, tower in family.text_towers.items()
    }
    components["unet"] = _detect_unet(header, family, components.get("text_encoder_2"))
    if header.has(VAE_ROOT):
        config, layout = detect_vae(header, VAE_ROOT)
        config.setdefault("scaling_factor", family.scaling_factor)  # a tiny VAE has its own
        components["vae"] = Component(config, layout)
    _warn_of_leftovers(header, [component.layout for component in components.values()])
    return SingleFile(header, family, components)


def open_vae_file(name: str, file: Path) -> Source:
    """Detect the VAE that a file holds, alone or within a model.

    Raises:
        OSError, ValueError: as `open_single_file` does.
    """
    if file.suffix in PICKLES and file.is_file() and find_family(name) is not None:
        raise ValueError(
            f"{name} is a pickle, and pickles are never loaded: take its .safetensors file, or, if "
            f"you trust it, {CONVERT_PICKLE}"
        )
    header = open_header(name, file)
    if header.has(UNET_ROOT) and any(map(header.has, ALL_TEXT_ROOTS)):
        return open_single_file(name, file)
    if (halves := open_tiny_halves(header)) is not None:
        return halves
    root = next((root for root in VAE_ROOTS if _has_vae(header, root)), None)
    if root is None:
        refuse_keys(name, header.shapes)
        raise ValueError(f"{name} holds no VAE")
    vae = Component(*detect_vae(header, root))
    _warn_of_leftovers(header, [vae.layout])
    return NetworkFile(header, "vae", vae)


def _has_vae(header: Header, root: str) -> bool:
    """Return whether a file has a VAE behind `root`."""
    return header.has(f"{root}decoder.conv_in.") or has_tiny_vae(header, root)


def _warn_of_leftovers(header: Header, layouts: Iterable[Layout]) -> None:
    """Warn of the tensors of a file that belong to no network, which are passed over."""
    roots = tuple(layout.root for layout in layouts)
    markers = (V_MARKER, ZERO_SNR_MARKER)
    leftovers = [key for key in header.shapes if not key.startswith((*roots, *markers))]
    leftovers += [key for key in header.shapes for layout in layouts if layout.is_leftover(key)]
    if n := len(leftovers):
        warnings.warn(
            f"{header.name}: no network needs {n} of its {len(header.shapes)} tensors, "
            f"passed over: {join_names(leftovers)}",
            stacklevel=3,
        )


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
