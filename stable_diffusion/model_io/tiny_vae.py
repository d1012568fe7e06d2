"""Files of a tiny VAE (TAESD): its config and the names of its tensors, from keys and shapes.

Both halves are in one file, under the names of diffusers or with `taesd_` before them (ComfyUI).
Or each is in a file of its own, whose keys begin with the number of a layer.
"""

import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..autoencoder_tiny import AutoencoderTiny
from ..config.autoencoder_tiny import CLASS_NAME, TINY_VAES, AutoencoderTinyConfig, VaeConfig
from .layouts import Layout
from .safetensors_file import Header
from .sources import Source
from .weights import load_weights

DECODER, ENCODER = "decoder", "encoder"
# A key of both halves in one file: the half, the number of a layer, and its parameter. The original
# files count one more layer at the start of the decoder, without weights, than diffusers does.
KEY = re.compile(r"(?:taesd_)?(decoder|encoder)\.(layers\.)?(\d{1,3})\.(.+)")
HALF_KEY = re.compile(r"(\d{1,3})\.((?:conv\.[024]\.)?(?:weight|bias))")
# The files of the halves as they are published, for SD 1 and 2 and for SDXL.
TINY_DECODERS, TINY_ENCODERS = (
    tuple(f"{name}_{half}.safetensors" for name in ("taesd", "taesdxl"))
    for half in (DECODER, ENCODER)
)
# How ComfyUI scales the latents of other models before it decodes them; those here are scaled.
UNUSED = ("vae_scale", "vae_shift")

# Tiny VAEs by a part of their names, the longest first, and whose latents they take.
FAMILIES = {
    "taesdxl": "SDXL",
    "tinyvae-xl": "SDXL",
    "taesd3": "SD 3",
    "taef1": "FLUX.1",
    "taef2": "FLUX.2",
    "taesd": "SD 1 and 2",
    "tinyvae": "SD 1 and 2",
    "taehv": "HunyuanVideo",
    "taew2": "Wan 2",
}
OTHERS = {16: "SD 3 and FLUX.1", 32: "FLUX.2"}  # by the number of channels of their latents


@dataclass(frozen=True)
class Half:
    """The encoder or decoder in a file.

    Attributes:
        names: this package's name of each tensor in the half, by key.
        shapes: of its tensors in the file, by this package's name.
    """

    header: Header
    names: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def layout(self) -> Layout:
        """Return how the file names the tensors of this half."""
        return Layout(self.names)

    def size(self, name: str, axis: int) -> int:
        """Return the length of a tensor along an axis.

        Raises:
            ValueError: if there is no such tensor, or no such axis.
        """
        shape = self.shapes.get(name, ())
        if len(shape) <= axis:
            found = f"{name} of its half is {list(shape) if shape else 'missing'}"
            raise ValueError(
                f"{self.header.name}: the architecture of this tiny VAE is not clear: {found}"
            )
        return shape[axis]

    def count_blocks(self) -> list[int]:
        """Return the number of residual blocks of each level.

        Blocks that follow each other belong to one level.
        """
        named = (name.split(".") for name in self.shapes)
        blocks = sorted({int(parts[1]) for parts in named if parts[2] == "conv"})
        counts = [1] if blocks else []
        for previous, block in pairwise(blocks):
            if block == previous + 1:
                counts[-1] += 1
            else:
                counts.append(1)
        return counts


def has_tiny_vae(header: Header, root: str = "") -> bool:
    """Return whether a file has a tiny VAE, both halves in one, behind `root`."""
    # The first layer: 0 in diffusers, 1 in the original.
    firsts = (f"{DECODER}.layers.0.weight", f"{DECODER}.1.weight", f"taesd_{DECODER}.1.weight")
    return any(root + first in header.shapes for first in firsts)


def detect_tiny_vae(header: Header, root: str = "") -> tuple[dict[str, Any], Layout]:
    """Return the config of a tiny VAE, both halves in one file, and how its tensors are named.

    Args:
        root: the start of its keys.

    Raises:
        ValueError: if a tensor that shows the architecture is missing.
    """
    names: dict[str, dict[str, str]] = {DECODER: {}, ENCODER: {}}
    for key in header.shapes:
        path = key.removeprefix(root)
        match = KEY.fullmatch(path)
        if key.startswith(root) and match is not None:
            half, is_numbered_by_diffusers, number, rest = match.groups()
            shift = 0 if is_numbered_by_diffusers or half == ENCODER else 1
            names[half][path] = f"layers.{int(number) - shift}.{rest}"
    decoder = _make_half(header, names[DECODER], root)
    encoder = _make_half(header, names[ENCODER], root) if names[ENCODER] else None
    renames = {
        path: f"{half}.{name}" for half, found in names.items() for path, name in found.items()
    }
    return make_config(decoder, encoder, ""), Layout(renames, root=root, unused=UNUSED)


def _make_half(header: Header, names: Mapping[str, str], root: str = "") -> Half:
    shapes = {name: header.shapes[root + path] for path, name in names.items()}
    return Half(header, names, shapes)


def make_config(decoder: Half, encoder: Half | None, missing: str) -> dict[str, Any]:
    """Return the config of a tiny VAE, as diffusers would write it.

    Args:
        missing: the file in which the encoder would be, if there is none.

    Raises:
        ValueError: if a tensor that shows the architecture is missing.
    """
    counts = decoder.count_blocks()
    width = decoder.size("layers.0.weight", 0)
    config = {
        "_class_name": CLASS_NAME,
        "latent_channels": decoder.size("layers.0.weight", 1),
        "num_decoder_blocks": counts,
        "decoder_block_out_channels": [width] * len(counts),
        "scaling_factor": 1.0,
    }
    if encoder is None:
        return config | {
            "num_encoder_blocks": counts[::-1],
            "encoder_block_out_channels": [width] * len(counts),
            "_missing_encoder": missing,
        }
    counts = encoder.count_blocks()
    width = encoder.size("layers.0.weight", 0)
    return config | {
        "num_encoder_blocks": counts,
        "encoder_block_out_channels": [width] * len(counts),
    }


class TinyVaeFiles(Source):
    """A tiny VAE whose halves are in two files, or whose decoder is in a file alone.

    Args:
        halves: by name; there is always a decoder.
        missing: the file in which the encoder would be, if there is none.
    """

    def __init__(self, halves: Mapping[str, Half], missing: str):
        decoder = halves[DECODER]
        super().__init__(decoder.header.name, decoder.header.file.parent)
        self.halves = halves
        self.content = make_config(decoder, halves.get(ENCODER), missing)

    def find(self, path: str) -> Path | None:
        return None

    def files(self) -> Collection[str]:
        return ()

    def config(self, path: str) -> tuple[Any, str]:
        """Return what the VAE's config file would say, and the name of the decoder's file."""
        self._require_vae(path.partition("/")[0])
        return dict(self.content), self.name

    def weights(self, component: str, float16: bool) -> list[Path]:
        """Return the files of the halves."""
        self._require_vae(component)
        return [half.header.file for half in self.halves.values()]

    def is_native(self, file: Path) -> bool:
        return False

    def layout(self, component: str) -> Layout:
        """Return a layout that takes every tensor; `load` has those that name them."""
        self._require_vae(component)
        return Layout({})

    def load(self, network: AutoencoderTiny, dtype: mx.Dtype) -> None:
        """Give a network the weights of the files, as `dtype`; see `load_weights`."""
        for name, half in self.halves.items():
            load_weights(getattr(network, name), [half.header.file], half.layout, dtype)

    def _require_vae(self, component: str) -> None:
        if component != "vae":
            raise FileNotFoundError(f"{self.name} has no {component}: it is a tiny VAE (--vae)")


def open_tiny_halves(header: Header) -> TinyVaeFiles | None:
    """Return the tiny VAE of which a file has one half, or None if the file is something else.

    The other half is looked for beside it under its usual name, as in taesd_decoder.safetensors and
    taesd_encoder.safetensors.

    Raises:
        OSError: if the file of the other half cannot be read.
        ValueError: if the decoder is missing, or the other half's file is something else.
    """
    given = _find_half(header)
    if given is None:
        return None
    other = ENCODER if given == DECODER else DECODER
    file = header.file
    name = file.name.replace(given, other)
    if name == file.name:
        name = f"{'taesdxl' if 'xl' in name.lower() else 'taesd'}_{other}.safetensors"
    halves = {given: _read_half(header, given)}
    beside = file.with_name(name)
    if beside.is_file():
        other_header = Header(str(beside), beside)
        if _find_half(other_header) != other:
            raise ValueError(f"{beside} is not the {other} that belongs to {header.name}")
        halves[other] = _read_half(other_header, other)
    elif other == DECODER:
        raise ValueError(
            f"{header.name} is the encoder of a tiny VAE: the decoder is needed too: put {name} "
            "beside it, and give that (--vae)"
        )
    return TinyVaeFiles({half: halves[half] for half in (DECODER, ENCODER) if half in halves}, name)


def _find_half(header: Header) -> str | None:
    """Return which half of a tiny VAE a file holds, or None if it holds something else."""
    if not header.shapes or not all(map(HALF_KEY.fullmatch, header.shapes)):
        return None
    if "0.weight" in header.shapes:
        return ENCODER
    return DECODER if "1.weight" in header.shapes else None


def _read_half(header: Header, half: str) -> Half:
    """Return a half whose keys begin with the number of a layer."""
    shift = 1 if half == DECODER else 0
    names = {}
    for key in header.shapes:
        number, _, rest = key.partition(".")
        names[key] = f"layers.{int(number) - shift}.{rest}"
    return _make_half(header, names)


def find_family(name: str) -> str | None:
    """Return whose latents a tiny VAE takes, by its file or folder, or None if it does not say."""
    for part in reversed(name.replace("\\", "/").lower().split("/")[-2:]):
        for start, family in FAMILIES.items():
            if start in part:
                return family
    return None


def check_tiny_vae(name: str, config: VaeConfig, model: str, channels: int, is_xl: bool) -> None:
    """Check that a tiny VAE takes the latents of a model, as far as it says what it takes.

    Args:
        name: of the VAE.
        model: the name of the model.
        channels: of the model's latents.
        is_xl: whether the model is of SDXL.

    Raises:
        ValueError: if it takes other latents.
    """
    if not isinstance(config, AutoencoderTinyConfig):
        return
    family = find_family(name)
    suitable = "SDXL" if is_xl else "SD 1 and 2"
    advice = f"take {TINY_VAES['taesd'][is_xl]}"
    n = config.latent_channels
    if n != channels and n in OTHERS:
        made_for = OTHERS[n] if family in (None, "SDXL", "SD 1 and 2") else family
        raise ValueError(
            f"{name} is a tiny VAE of {made_for}, whose latents have {n} channels; those of "
            f"{model} have {channels}: {advice}"
        )
    if family not in (None, suitable):
        warnings.warn(
            f"{name} is a tiny VAE of {family} by its name, but {model} is {suitable}: the colours "
            f"may be wrong: {advice}",
            stacklevel=2,
        )
