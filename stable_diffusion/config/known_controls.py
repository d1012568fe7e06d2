"""The control models that have a short name, by the family of the models that they steer."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

from ..utils.wording import did_you_mean
from .known_models import OPEN_RAIL_XL, PACKAGE

SD_1, SD_2, SDXL = "SD 1.x", "SD 2.x", "SDXL"
TINY = "tiny"  # the model in this package


@dataclass(frozen=True)
class KnownControl:
    """A control model with a short name.

    Attributes:
        repo: on the Hugging Face Hub; None for the one in this package.
        picture: what a control picture for it shows, in a few words.
        licence: of the control model.
        file: in the repository; "" if the repository is a folder of diffusers. Of the one in this
            package, the folder.
    """

    repo: str | None
    picture: str
    licence: str
    file: str = ""

    @property
    def location(self) -> str:
        """Return what the short name stands for: a repository, a file of one, or a folder."""
        if self.repo is None:
            return str(PACKAGE / self.file)
        return f"{self.repo}/{self.file}" if self.file else self.repo


OPEN_RAIL_M, APACHE = "CreativeML Open RAIL-M", "Apache 2.0"
OTHER = "other (see the repository's page)"

EDGES = "edges, white on black (Canny)"
DEPTH = "depth, near is white"
POSE = "a skeleton in OpenPose's colours"
TILE = "the picture itself, small or blurred"
LINES = "line art, white on black"
SOFT_EDGES = "soft edges, white on black (HED, PiDiNet)"
SCRIBBLE = "a scribble, white on black"
NORMALS = "normals (BAE's colours)"
SEGMENTS = "segments in ADE20K's colours"
MANY = "any of its types (openpose, depth, canny, …)"


def _v11(name: str, picture: str) -> KnownControl:
    """Return a ControlNet 1.1 of SD 1.x by its authors."""
    return KnownControl(f"lllyasviel/control_{name}", picture, OPEN_RAIL_M)


def _sd21(name: str, picture: str) -> KnownControl:
    """Return a ControlNet of SD 2.1, one of the files of a repository."""
    file = f"control_v11p_sd21_{name}.safetensors"
    return KnownControl("thibaud/controlnet-sd21", picture, OTHER, file)


def _xl(name: str, picture: str) -> KnownControl:
    return KnownControl(f"xinsir/controlnet-{name}-sdxl-1.0", picture, APACHE)


def _small_xl(name: str, picture: str) -> KnownControl:
    return KnownControl(f"diffusers/controlnet-{name}", picture, OPEN_RAIL_XL)


def _adapter_xl(name: str, picture: str) -> KnownControl:
    return KnownControl(f"TencentARC/t2i-adapter-{name}-sdxl-1.0", picture, APACHE)


KNOWN_CONTROLS: Mapping[str, Mapping[str, KnownControl]] = {
    SD_1: {
        "canny": _v11("v11p_sd15_canny", EDGES),
        "depth": _v11("v11f1p_sd15_depth", DEPTH),
        "openpose": _v11("v11p_sd15_openpose", POSE),
        "tile": _v11("v11f1e_sd15_tile", TILE),
        "lineart": _v11("v11p_sd15_lineart", LINES),
        "lineart-anime": _v11("v11p_sd15s2_lineart_anime", LINES),
        "softedge": _v11("v11p_sd15_softedge", SOFT_EDGES),
        "scribble": _v11("v11p_sd15_scribble", SCRIBBLE),
        "normal": _v11("v11p_sd15_normalbae", NORMALS),
        "seg": _v11("v11p_sd15_seg", SEGMENTS),
        "mlsd": _v11("v11p_sd15_mlsd", "straight lines, white on black (M-LSD)"),
        "inpaint": _v11("v11p_sd15_inpaint", "the picture, black where it is repainted"),
        "ip2p": _v11("v11e_sd15_ip2p", "the picture that the prompt, an instruction, changes"),
        "shuffle": _v11("v11e_sd15_shuffle", "a picture whose content is shuffled"),
    },
    SD_2: {
        "canny": _sd21("canny", EDGES),
        "depth": _sd21("depth", DEPTH),
        "openpose": _sd21("openposev2", POSE),
        "lineart": _sd21("lineart", LINES),
        "softedge": _sd21("hed", SOFT_EDGES),
        "scribble": _sd21("scribble", SCRIBBLE),
        "normal": _sd21("normalbae", NORMALS),
        "seg": _sd21("ade20k", SEGMENTS),
    },
    SDXL: {
        "canny": _xl("canny", EDGES),
        "depth": _xl("depth", DEPTH),
        "openpose": _xl("openpose", POSE),
        "tile": _xl("tile", TILE),
        "scribble": _xl("scribble", SCRIBBLE),
        "union": _xl("union", MANY),
        "union-promax": KnownControl(
            "xinsir/controlnet-union-sdxl-1.0",
            MANY,
            APACHE,
            "diffusion_pytorch_model_promax.safetensors",
        ),
        "canny-mid": _small_xl("canny-sdxl-1.0-mid", EDGES),
        "canny-small": _small_xl("canny-sdxl-1.0-small", EDGES),
        "depth-mid": _small_xl("depth-sdxl-1.0-mid", DEPTH),
        "depth-small": _small_xl("depth-sdxl-1.0-small", DEPTH),
        "t2i-canny": _adapter_xl("canny", EDGES),
        "t2i-depth": _adapter_xl("depth-midas", DEPTH),
        "t2i-lineart": _adapter_xl("lineart", LINES),
        "t2i-openpose": _adapter_xl("openpose", POSE),
        "t2i-sketch": _adapter_xl("sketch", SCRIBBLE),
    },
    TINY: {
        "outline": KnownControl(
            None, "outlines, white on black", "MIT", "tiny/controlnet"
        ),
    },
}


def find_control(name: str, family: str) -> KnownControl | None:
    """Return the control model that a short name means for a family, or None."""
    return KNOWN_CONTROLS.get(family, {}).get(name)


def is_short_name(name: str) -> bool:
    """Return whether a name is a short name of any family."""
    return any(name in controls for controls in KNOWN_CONTROLS.values())


def explain_short_name(name: str, family: str) -> str:
    """Return why a word is no short name for a family, and the ones that there are, for a message.

    Args:
        name: a word that names no file or folder.
    """
    known = KNOWN_CONTROLS.get(family, {})
    listed = f"short names for {family}: {', '.join(known)}" if known else ""
    listed = listed or f"there are no short names for {family}: give a file or folder"
    others = [each for each, controls in KNOWN_CONTROLS.items() if name in controls]
    if others:
        return f"{name} is a control model for {' and '.join(others)}, not for {family} ({listed})"
    spellings = dict.fromkeys(chain.from_iterable(KNOWN_CONTROLS.values()))
    suggestion = did_you_mean(name, known or spellings) if known else ""
    return f"there is no control model {name} ({listed}){suggestion}"
