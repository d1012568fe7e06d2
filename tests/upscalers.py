"""The network of ESRGAN in PyTorch, after Wang et al. 2018 (arXiv:1809.00219), and its files."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

SLOPE = RESIDUAL = 0.2
UNSHUFFLE = {4: 1, 2: 2, 1: 4}  # pixels along each side that become channels, by the scale


class Dense(nn.Module):
    def __init__(self, channels: int, growth: int):
        super().__init__()
        widths = [(channels + i * growth, growth) for i in range(4)]
        for i, (n_in, n_out) in enumerate([*widths, (channels + 4 * growth, channels)], 1):
            setattr(self, f"conv{i}", nn.Conv2d(n_in, n_out, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [x]
        for i in range(1, 5):
            y = getattr(self, f"conv{i}")(torch.cat(features, 1))
            features.append(functional.leaky_relu(y, SLOPE))
        return x + RESIDUAL * self.conv5(torch.cat(features, 1))


class Block(nn.Module):
    def __init__(self, channels: int, growth: int):
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (Dense(channels, growth) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + RESIDUAL * self.rdb3(self.rdb2(self.rdb1(x)))


class Upscaler(nn.Module):
    """Random weights; its parameters have BasicSR's names."""

    def __init__(self, scale: int, n_blocks: int = 2, channels: int = 8, growth: int = 4):
        super().__init__()
        torch.manual_seed(scale)
        self.unshuffle = UNSHUFFLE[scale]
        self.conv_first = nn.Conv2d(3 * self.unshuffle**2, channels, 3, padding=1)
        self.body = nn.Sequential(*(Block(channels, growth) for _ in range(n_blocks)))
        for name in ("conv_body", "conv_up1", "conv_up2", "conv_hr"):
            setattr(self, name, nn.Conv2d(channels, channels, 3, padding=1))
        self.conv_last = nn.Conv2d(channels, 3, 3, padding=1)
        for parameter in self.parameters():
            parameter.data *= 2  # so that the pictures have contrast

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.conv_first(functional.pixel_unshuffle(x, self.unshuffle))
        x = first + self.conv_body(self.body(first))
        for conv in (self.conv_up1, self.conv_up2):
            x = functional.leaky_relu(conv(functional.interpolate(x, scale_factor=2)), SLOPE)
        return self.conv_last(functional.leaky_relu(self.conv_hr(x), SLOPE))

    @torch.no_grad()
    def enlarge(self, pictures: np.ndarray) -> np.ndarray:
        """Return [B, H, W, 3] in [0, 1] enlarged, in float64."""
        x = torch.from_numpy(pictures).double().permute(0, 3, 1, 2)
        return self.double()(x).permute(0, 2, 3, 1).numpy()


def rename_old(key: str) -> str:
    """Return the name of the first ESRGAN for one of BasicSR."""
    outer = {"conv_body": "trunk_conv", "conv_up1": "upconv1", "conv_up2": "upconv2"}
    outer["conv_hr"] = "HRconv"
    first, _, rest = key.partition(".")
    if first == "body":
        return f"RRDB_trunk.{rest.replace('rdb', 'RDB')}"
    return f"{outer.get(first, first)}.{rest}"


def rename_sequential(key: str) -> str:
    """Return the name in `nn.Sequential` for one of BasicSR, of a network of two blocks."""
    numbers = {"conv_first": "0", "conv_body": "1.sub.2", "conv_up1": "3", "conv_up2": "6"}
    numbers |= {"conv_hr": "8", "conv_last": "10"}
    first, _, rest = key.partition(".")
    if first == "body":
        block, dense, conv, kind = rest.split(".")
        return f"model.1.sub.{block}.{dense.upper()}.{conv}.0.{kind}"
    return f"model.{numbers[first]}.{rest}"


RENAMES = {
    "params_ema": lambda key: f"params_ema.{key}",
    "params": lambda key: f"params.{key}",
    "new": lambda key: key,
    "trunk": rename_old,
    "sequential": rename_sequential,
}


def write_upscaler(file: Path, scale: int = 2, names: str = "new", **changes) -> Upscaler:
    """Write an upscaler, and return it; `changes` replace tensors, or leave them out if None."""
    network = Upscaler(scale)
    tensors = {RENAMES[names](key): value for key, value in network.float().state_dict().items()}
    tensors |= changes
    save_file({k: v.contiguous() for k, v in tensors.items() if v is not None}, file)
    return network
