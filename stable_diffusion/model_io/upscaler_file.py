"""Files of upscalers of the ESRGAN family: their sizes and the names of their tensors.

The names are those of BasicSR (`body.0.rdb1.conv1`), of the first ESRGAN
(`RRDB_trunk.0.RDB1.conv1`), or numbers of parts (`model.1.sub.0.RDB1.conv1.0`).
"""

import re
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..config.upscaler import UpscalerConfig
from ..rrdbnet import RRDBNet
from .layouts import Layout
from .original_layout import UNET_ROOT
from .safetensors_file import Header
from .sources import CONVERT_PICKLE, PICKLES
from .unsupported import refuse_keys
from .weights import load_weights

ROOTS = ("params_ema.", "params.", "")  # the first that a file has; it may have the first two
# The key of the first layer of each block, and the names of all its layers, by their numbers.
SEQUENTIAL = "model.1.sub.{}.RDB1.conv1.0.weight"
TRUNK = "RRDB_trunk.{}.RDB1.conv1.weight"
FIRST_LAYERS = {
    "body.{}.rdb1.conv1.weight": "body.{}.rdb{}.conv{}",
    TRUNK: "RRDB_trunk.{}.RDB{}.conv{}",
    SEQUENTIAL: "model.1.sub.{}.RDB{}.conv{}.0",
}
NEW_NAMES = {
    **{name: name for name in ("conv_first", "conv_body", "conv_hr", "conv_last")},
    **{"conv_up1": "conv_up.0", "conv_up2": "conv_up.1"},
}
OLD_NAMES = {
    **{"conv_first": "conv_first", "trunk_conv": "conv_body", "HRconv": "conv_hr"},
    **{"upconv1": "conv_up.0", "upconv2": "conv_up.1", "conv_last": "conv_last"},
}
STARTS = ("conv_first.", "model.0.", "model.1.sub.")  # keys of upscalers in general
NUMBERED = re.compile(r"model\.(\d{1,2})\.weight")  # of the layers before and after the blocks

# Other networks that enlarge pictures, by a part of a key that only they have; the first counts.
OTHER_UPSCALERS = {
    r"\.conv1x1\.": "ESRGAN+",
    r"residual_group\.td$": "ATD",
    r"\.hf_blocks\.": "CRAFT",
    r"overlap_attn\.": "HAT",
    r"layers\.\d+\.blocks\.\d+\.gamma$": "RGT",
    r"before_RG\.": "DAT",
    r"\.stripe_attn\.": "GRL",
    r"\.cpb_mlp\.": "Swin2SR",
    r"layers\.\d+\.swin1\.": "DRCT",
    r"\.residual_group\.": "SwinIR",
    r"residual_layer\.\d+\.": "OmniSR",
    r"^m_head\.0\.": "SCUNet",
    r"\.c1_r\.": "SPAN",
    r"\.channel?_mixer\.": "PLKSR",  # its first version spells it so
    r"^gblocks\.": "MoSR",
    r"\.safm\.": "SAFMN",
    r"\.conv_du\.": "RCAN",
    r"unet1\.conv1\.conv\.": "Real-CUGAN",
    r"stylegan_decoder\.": "GFPGAN, which restores faces",
    r"^position_emb$": "CodeFormer, which restores faces",
    r"^quantize\.embedding\.": "RestoreFormer, which restores faces",
    r"^(params(_ema)?\.)?body\.0\.weight$": "the compact network of Real-ESRGAN (SRVGGNet)",
}


@dataclass(frozen=True)
class UpscalerFile:
    """An upscaler whose weights are not read yet.

    Attributes:
        header: of its file.
        config: the sizes of the network.
        layout: how the file names the tensors.
    """

    header: Header
    config: UpscalerConfig
    layout: Layout

    @property
    def scale(self) -> int:
        """Return how many times larger each side of a picture becomes."""
        return self.config.scale

    def load(self) -> RRDBNet:
        """Return the network, in float32, because half precision may overflow.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if tensors are missing, not expected, or of another shape.
        """
        network = RRDBNet(self.config)
        load_weights(network, [self.header.file], self.layout, mx.float32)
        return network


def open_upscaler(name: str, file: Path) -> UpscalerFile:
    """Return the upscaler in a file, of which only the header is read.

    Args:
        name: the file's name in messages.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is a pickle, damaged, or holds something else; the message says what.
    """
    if file.suffix.lower() in PICKLES:
        raise ValueError(
            f"{name} is a pickle, and pickles are never loaded: take a .safetensors file, or, if "
            f"you trust it, {CONVERT_PICKLE}"
        )
    header = Header(name, file)
    _refuse_other_upscalers(header)
    root = next(root for root in ROOTS if header.has(root))
    renames = _name_layers(header, root)
    keys = {ours: f"{root}{theirs}.weight" for theirs, ours in renames.items()}
    try:
        config = UpscalerConfig(
            in_channels=header.size(keys["conv_first"], 1),
            num_block=sum(ours.endswith(".rdb1.conv1") for ours in keys),
            num_feat=header.size(keys["conv_first"], 0),
            num_grow_ch=header.size(keys["body.0.rdb1.conv1"], 0),
            num_upsample=sum(ours.startswith("conv_up.") for ours in keys),
        )
    except ValueError as error:
        raise ValueError(f"{name}: the upscaler is not supported: {error}") from None
    return UpscalerFile(header, config, Layout(renames, root=root))


def _refuse_other_upscalers(header: Header) -> None:
    """Check that a file has the network of ESRGAN.

    Raises:
        ValueError: if it has not; the message says what it is, if that is known.
    """
    lines = "\n".join(header.shapes)
    for pattern, what in OTHER_UPSCALERS.items():
        if re.search(pattern, lines, re.MULTILINE):
            raise ValueError(
                f"{header.name} is an upscaler of another kind, {what}: only those of the ESRGAN "
                "family (RRDBNet) are run"
            )
    if any(f"{root}{key}".format(0) in header.shapes for root in ROOTS for key in FIRST_LAYERS):
        return
    if header.has(UNET_ROOT):
        raise ValueError(f"{header.name} is a model that draws (--model), not an upscaler")
    if not any(header.has(f"{root}{start}") for root in ROOTS for start in STARTS):
        refuse_keys(header.name, header.shapes)
    raise ValueError(f"{header.name} is not an upscaler of the ESRGAN family (RRDBNet)")


def _name_layers(header: Header, root: str) -> dict[str, str]:
    """Return this package's name of each layer of an upscaler by the file's, without its root."""
    first = next(key for key in FIRST_LAYERS if f"{root}{key}".format(0) in header.shapes)
    n_blocks = header.count(f"{root}{first}")
    renames = {
        FIRST_LAYERS[first].format(i, dense, layer): f"body.{i}.rdb{dense}.conv{layer}"
        for i in range(n_blocks)
        for dense in range(1, 4)
        for layer in range(1, 6)
    }
    if first == SEQUENTIAL:
        return renames | _name_numbered_layers(header, root, n_blocks)
    return renames | (OLD_NAMES if first == TRUNK else NEW_NAMES)


def _name_numbered_layers(header: Header, root: str, n_blocks: int) -> dict[str, str]:
    """Return the names of the layers around the blocks if the file numbers them.

    Raises:
        ValueError: if there are fewer than any upscaler has.
    """
    matches = map(NUMBERED.fullmatch, (key.removeprefix(root) for key in header.shapes))
    numbers = sorted(int(match[1]) for match in matches if match is not None)
    if len(numbers) < 3:
        raise ValueError(f"{header.name}: the upscaler's first or last layers are missing")
    first, *doubled, high, last = (f"model.{number}" for number in numbers)
    return {
        **{first: "conv_first", f"model.1.sub.{n_blocks}": "conv_body"},
        **{name: f"conv_up.{i}" for i, name in enumerate(doubled)},
        **{high: "conv_hr", last: "conv_last"},
    }
