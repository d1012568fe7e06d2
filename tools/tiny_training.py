"""What the trainings of `train_tiny` share: pace, averages, checkpoints; and the VAE's training."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from tools.shapes import SIZE, Scene, complete, held_out, render, sample

SAVE_EVERY = 120.0  # seconds between checkpoints
REPORT_EVERY = 15.0  # seconds between progress lines
CORES = torch.get_num_threads()  # OMP_NUM_THREADS, or all
CORES_BUSY = Path("/proc/stat")  # Linux only; on other systems torch uses all cores


def _others_seconds() -> float:
    """Return the processor seconds that other processes have used since the machine started."""
    if not CORES_BUSY.exists():
        return 0.0
    ticks = [int(n) for n in CORES_BUSY.read_text().split("\n", 1)[0].split()[1:]]
    idle = ticks[3] + ticks[4]
    return (sum(ticks[:8]) - idle) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:2])


def training_scenes(rng: np.random.Generator) -> Iterator[tuple[Scene, Scene]]:
    """Yield endless pairs (what a prompt asks for, the complete scene), none of them held out."""
    while True:
        asked = sample(rng)
        scene = complete(asked, rng)
        if not held_out(scene):
            yield asked, scene


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """Convert [B, H, W, 3] uint8 to [B, 3, H, W] float32 in [-1, 1], channels last in memory."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


class Average:
    """An exponential moving average of a module's parameters (Karras et al. 2023, Sec. 3.1)."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = [p.detach().clone() for p in module.parameters()]

    def update(self, module: torch.nn.Module, step: int) -> None:
        """Move towards `module`; the window grows with `step` so that the start is forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [p.detach() for p in module.parameters()]
        torch._foreach_lerp_(self.shadow, current, 1 - decay)

    def copy_to(self, module: torch.nn.Module) -> None:
        """Give `module` the averaged parameters."""
        with torch.no_grad():
            for parameter, average in zip(module.parameters(), self.shadow, strict=True):
                parameter.copy_(average)


class Training:
    """One network's training loop: learning rate, average, progress lines, checkpoints.

    The rate warms up over 2% of the steps, stays, and falls linearly over the last 30%: until
    then the number of steps may be changed on resuming.
    """

    def __init__(
        self, name: str, modules: torch.nn.Module, steps: int, rate: float, work: Path
    ) -> None:
        self.name, self.modules, self.steps, self.rate = name, modules, steps, rate
        self.path, self.step, self.log = work / f"{name}.pt", 0, []
        self.optimizer = torch.optim.AdamW(
            modules.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.average = Average(modules, decay=0.999)
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            modules.load_state_dict(state["modules"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average.shadow = state["average"]
            self.step = state["step"]
        self._started, self._first = time.monotonic(), self.step
        self._saved = self._reported = self._started
        self._others, self._looked = _others_seconds(), self._started
        torch.set_num_threads(1)  # until the number of free cores is known

    def __iter__(self) -> Iterator[int]:
        """Yield the remaining step numbers; save checkpoints at intervals and at the end."""
        while self.step < self.steps:
            progress = self.step / self.steps
            scale = min(1.0, (self.step + 1) / (0.02 * self.steps + 1), (1 - progress) / 0.3)
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * scale
            if self.step % 8 == 0:
                self._share_cores()
            yield self.step
            self.step += 1
            if time.monotonic() - self._saved > SAVE_EVERY:
                self.save()
        self.save()

    def _share_cores(self) -> None:
        """Leave busy cores to other programs: threads that wait for one another lose far more."""
        now = time.monotonic()
        if now - self._looked < 1 or not CORES_BUSY.exists():
            return
        others = _others_seconds()
        free = CORES - (others - self._others) / (now - self._looked)
        torch.set_num_threads(max(1, min(CORES, round(free))))
        self._others, self._looked = others, now

    def descend(self, loss: torch.Tensor, batch: int, report: str = "") -> None:
        """Take one step of AdamW on `loss` with clipped gradients, and update the average."""
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.modules, self.step)
        self.log.append(loss.item())
        now = time.monotonic()
        if now - self._reported > REPORT_EVERY or self.step + 1 == self.steps:
            self._reported = now
            done = self.step + 1 - self._first
            pace = done / (now - self._started)  # steps a second
            left = (self.steps - self.step - 1) / pace
            print(
                f"{self.name} {self.step + 1}/{self.steps} loss {np.mean(self.log):.4f} {report} "
                f"{pace * batch:.0f} samples/s, {left / 60:.1f} min left",
                flush=True,
            )
            self.log.clear()

    def save(self) -> None:
        """Write the checkpoint and then rename it, so that a killed run leaves the one before."""
        self._saved = time.monotonic()
        state = {
            "modules": self.modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.shadow,
            "step": self.step,
        }
        torch.save(state, self.path.with_suffix(".part"))
        self.path.with_suffix(".part").rename(self.path)


def crops(pictures: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Cut a window of `size` pixels from each picture, around a random pixel of a shape."""
    windows = []
    for picture in pictures:
        drawn = np.argwhere((picture != picture[0, 0]).any(-1))  # a corner is always background
        corner = drawn[rng.integers(len(drawn))] - rng.integers(0, size, 2)
        y, x = np.clip(corner, 0, len(picture) - size)
        windows.append(picture[y : y + size, x : x + size])
    return np.stack(windows)  # [B, size, size, 3]


def reconstruction(vae: AutoencoderKL, latents: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the L1 and squared error of pixels, and the L1 of their x and y differences.

    The differences make edges crisp (a gradient loss, as in arXiv:1511.05440). L1 alone stalls
    where every pixel is its background's colour.
    """
    error = vae.decode(latents).sample - target  # [B, 3, H, W]
    edges = error.diff(dim=3).abs().mean() + error.diff(dim=2).abs().mean()
    return error.abs().mean() + error.square().mean() + edges


def vae_batch(rng: np.random.Generator, scenes: Iterator, whole: bool) -> torch.Tensor:
    """Return 16 whole pictures, or 32 windows of 32 pixels: mostly shape, at half the cost."""
    pictures = np.stack([render(next(scenes)[1], rng) for _ in range(16 if whole else 32)])
    return to_tensor(pictures if whole else crops(pictures, SIZE // 2, rng))


def train_vae(vae: AutoencoderKL, steps: int, work: Path, seed: int) -> None:
    """Train on `reconstruction` with a slight KL; the average of the weights stays in `vae`.

    The first 90% of the steps see windows, the rest whole pictures.
    """
    vae.to(memory_format=torch.channels_last).train()
    training = Training("vae", vae, steps, 2e-3, work)
    rng = np.random.default_rng([seed, 1, training.step])
    torch.manual_seed(seed + training.step)
    scenes = training_scenes(rng)
    for step in training:
        target = vae_batch(rng, scenes, whole=step >= 0.9 * steps)
        posterior = vae.encode(target).latent_dist
        kl = posterior.kl().mean() / target[0].numel()  # nats a value
        loss = reconstruction(vae, posterior.sample(), target) + 0.01 * kl
        training.descend(loss, len(target), f"KL {kl.item():.3f}")
    training.average.copy_to(vae)
    vae.eval().requires_grad_(False)


def _is_hard(scene: Scene) -> bool:
    """Return whether a scene has a shape with points hardly wider than a pixel."""
    return any(item.size == "small" and item.shape in ("star", "cross") for item in scene.items)


def train_decoder(vae: AutoencoderKL, steps: int, work: Path, seed: int) -> None:
    """Train the decoder further for a fixed encoder, on latents that are a little wrong.

    A UNet's latents are never quite the encoder's, and guidance makes them too large. So the
    decoder sees latents with 15% noise that are up to 35% too large. Small stars and crosses, which
    it finds hardest, are shown more often than the rest.
    """
    decoder = torch.nn.ModuleList([vae.decoder, vae.post_quant_conv])
    decoder.train().requires_grad_(True)
    training = Training("decoder", decoder, steps, 1e-3, work)
    rng = np.random.default_rng([seed, 5, training.step])
    torch.manual_seed(seed + training.step)
    scenes = (pair for pair in training_scenes(rng) if _is_hard(pair[1]) or rng.random() < 0.3)
    for step in training:
        target = vae_batch(rng, scenes, whole=step % 4 == 0 or step >= 0.85 * steps)
        with torch.no_grad():
            latents = vae.encode(target).latent_dist.mean
            latents *= 1 + 0.35 * torch.rand(len(latents), 1, 1, 1)
            latents += 0.15 / vae.config.scaling_factor * torch.randn_like(latents)
        training.descend(reconstruction(vae, latents, target), len(target))
    training.average.copy_to(decoder)
    vae.eval().requires_grad_(False)
