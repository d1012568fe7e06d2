"""What a GPU keeps between steps and batches makes no wrong picture and is freed."""

import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from gpu import as_on, without_fusing
from mlx.utils import tree_flatten, tree_map
from oracle import psnr
from ours import pictures, same
from parity import random_normal
from safetensors.numpy import save_file

from stable_diffusion import StableDiffusion
from stable_diffusion.denoising import Denoising
from stable_diffusion.device.backend import Backend
from stable_diffusion.layers import Conv3x3

SAME = 50  # dB at least between equal pictures
HALF = 45  # dB at least between pictures in half and in single precision
OTHER = 47  # dB at most between pictures of different weights


@pytest.fixture
def metal() -> Iterator[None]:
    """Let everything run as on Metal, compiled without fusing."""
    with as_on(Backend.METAL), without_fusing():
        yield


def begin(sd: StableDiffusion, seed: int = 7, text: str = "a fire", **options) -> Denoising:
    """Begin a small picture; `options` are those of `generate_latents`."""
    options = {"num_steps": 2, "cfg_weight": 3.0, "latent_size": (4, 4), **options}
    return sd.generate_latents(text, seed=seed, **options)


def finish(latents: Denoising) -> mx.array:
    """Evaluate the steps, and return the last latents."""
    for x_t in latents:
        mx.eval(x_t)
    return x_t


def write_lora(file: Path, seed: int) -> Path:
    """Write a LoRA of linear layers and convolutions of sd-1, and of its text encoder."""
    unet, block = "unet", "attentions.0.transformer_blocks.0"
    layers = {
        f"{unet}.down_blocks.0.{block}.attn1.to_q": ((32,), 32),
        f"{unet}.down_blocks.0.{block}.attn2.to_k": ((32,), 32),
        f"{unet}.down_blocks.0.resnets.0.conv1": ((32, 3, 3), 32),
        f"{unet}.down_blocks.0.downsamplers.0.conv": ((32, 3, 3), 32),
        f"{unet}.up_blocks.0.upsamplers.0.conv": ((64, 3, 3), 64),
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": ((32,), 32),
    }
    random, tensors = np.random.default_rng(seed), {}
    for name, (inputs, n_outputs) in layers.items():
        down = random.normal(size=(2, *inputs))
        up = random.normal(size=(n_outputs, 2, *[1] * (len(inputs) - 1)))
        tensors[f"{name}.lora_A.weight"] = down.astype(np.float32) / 2
        tensors[f"{name}.lora_B.weight"] = up.astype(np.float32) / 2
    save_file(tensors, file)
    return file


Change = Callable[[StableDiffusion], object]


def list_changes(folder: Path) -> dict[str, Change]:
    """Return the ways to change the weights of a pipeline, by name, in the order to do them."""
    first, second = (write_lora(folder / f"{seed}.safetensors", seed) for seed in (1, 2))

    def assign(sd: StableDiffusion) -> None:
        """Assign a weight to a layer."""
        layer = sd.unet.conv_in
        layer.weight = layer.weight[::-1]

    def update(sd: StableDiffusion) -> None:
        """Scale every weight of some layers, as a training step does."""
        block = sd.unet.down_blocks[0].attentions[0]
        block.update(tree_map(lambda weight: weight * 1.5, block.parameters()))

    def replace(sd: StableDiffusion) -> None:
        """Put a new layer with the same shapes into the network."""
        old = sd.unet.conv_out
        new = Conv3x3(*reversed(old.weight.shape[::3]))
        new.weight, new.bias = -old.weight, old.bias
        sd.unet.conv_out = new

    def change_factor(sd: StableDiffusion) -> None:
        """Change a number that is no array."""
        sd.unet.conv_norm_out.eps = 1.0

    def assign_vae(sd: StableDiffusion) -> None:
        """Assign a weight to a layer of the decoder."""
        layer = sd.autoencoder.decoder.conv_in
        layer.weight = layer.weight[::-1]

    return {
        "a LoRA": lambda sd: sd.load_lora(first, 1.5),
        "a second LoRA": lambda sd: sd.load_lora(second, -1.5),
        "unloaded": lambda sd: sd.unload_lora(),
        "assigned": assign,
        "updated": update,
        "replaced": replace,
        "a number": change_factor,
        "a weight of the decoder": assign_vae,
        "another LoRA": lambda sd: sd.load_lora(second, 1.5),
        "quantized": lambda sd: nn.quantize(sd.unet, 32, 2),
        "unloaded again": lambda sd: sd.unload_lora(),
    }


def test_changed_weights_are_seen(checkpoint, tmp_path):
    """Each change changes the picture, to that of the CPU, which keeps nothing between pictures."""
    folder = checkpoint("sd-1")
    with as_on(Backend.METAL):
        ours = StableDiffusion(folder)
    cpu = StableDiffusion(folder)
    options = {"num_steps": 1, "cfg_weight": 1.0}
    last = None
    for name, change in {"nothing": lambda sd: None, **list_changes(tmp_path)}.items():
        change(cpu)
        expected = pictures(cpu, begin(cpu, **options))
        with as_on(Backend.METAL), without_fusing():
            change(ours)
            picture = pictures(ours, begin(ours, **options))
        assert psnr(picture, expected) >= SAME, name
        assert last is None or psnr(expected, last) < OTHER, name
        last = expected


@pytest.fixture(scope="module")
def model(checkpoint) -> Callable[..., StableDiffusion]:
    """Return a function that loads a kind of model, once. Not to be changed."""
    loaded: dict[tuple[str, bool], StableDiffusion] = {}

    def load(kind: str = "sd-1", float16: bool = False) -> StableDiffusion:
        if (kind, float16) not in loaded:
            with as_on(Backend.METAL):
                loaded[kind, float16] = StableDiffusion(checkpoint(kind), float16=float16)
        return loaded[kind, float16]

    return load


@pytest.mark.usefixtures("metal")
def test_batches_at_the_same_time(model):
    """Each batch has its own text, size, guidance and noise; two models have their own weights."""
    starts = [
        lambda: begin(model("sd-1"), 1),
        lambda: begin(model("sd-1"), 2, "a house", cfg_weight=6.0),
        lambda: begin(model("sd-1"), 2, "a house", cfg_weight=6.0, guidance_rescale=0.7),
        lambda: begin(model("sd-1"), 3, cfg_weight=1.0),
        lambda: begin(model("sd-1"), 1, latent_size=(3, 5), n_images=2),
        lambda: begin(model("sd-2"), 1),
    ]
    expected = [finish(start()) for start in starts]
    batches = [start() for start in starts]
    for steps in zip(*batches, strict=True):  # a step of each in turn
        mx.eval(steps)
    for x_t, alone in zip(steps, expected, strict=True):
        assert mx.array_equal(x_t, alone).item()


@pytest.mark.usefixtures("metal")
def test_a_restart_makes_the_same_picture(model):
    """Restart at the end, and in the middle, with new noise in every step."""
    latents = begin(model(), sampler="euler-a")
    expected = finish(latents)
    latents.restart()
    next(latents)
    latents.restart()
    assert mx.array_equal(finish(latents), expected).item()


@pytest.mark.usefixtures("metal")
def test_float32_in_the_middle(checkpoint, model):
    sd = StableDiffusion(checkpoint("sd-1"), float16=True)
    latents = begin(sd)
    mx.eval(next(latents))
    sd.use_float32()
    latents.restart()
    expected = pictures(model(), begin(model()))
    assert psnr(pictures(sd, begin(sd)), expected) >= SAME
    # The text of the batch that had begun was embedded in half precision.
    assert psnr(pictures(sd, latents), expected) >= HALF


def fail_once(monkeypatch: pytest.MonkeyPatch, owner: type, error: BaseException) -> None:
    """Let the next call of a layer of the class raise an error after it has computed."""
    call = owner.__call__

    def fail(*arguments, **options):
        call(*arguments, **options)
        monkeypatch.setattr(owner, "__call__", call)
        raise error

    monkeypatch.setattr(owner, "__call__", fail)


@pytest.mark.usefixtures("metal")
def test_an_error_in_a_step(checkpoint, model, monkeypatch):
    """Afterwards the network has its weights, and makes the right picture."""
    expected = finish(begin(model()))
    sd = StableDiffusion(checkpoint("sd-1"))
    latents = begin(sd)
    fail_once(monkeypatch, Conv3x3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        finish(latents)
    mx.eval(sd.unet.parameters())
    assert same(sd.unet, model().unet)
    latents.restart()
    for again in (latents, begin(sd)):
        assert mx.array_equal(finish(again), expected).item()


@pytest.mark.usefixtures("metal")
def test_pictures_leave_the_networks_as_they_were(checkpoint, model):
    sd = model()
    with closing(begin(sd)) as latents:
        x_t = next(latents)
    mx.eval(sd.decode(x_t))
    fresh = StableDiffusion(checkpoint("sd-1"))
    for used, new in ((sd.unet, fresh.unet), (sd.autoencoder, fresh.autoencoder)):
        assert same(used, new)
        assert vars(used).keys() == vars(new).keys()
        twin = copy.deepcopy(used)
        assert same(twin, new)
        assert all(a is not b for a, b in zip(twin.modules(), used.modules(), strict=True))


@pytest.mark.usefixtures("metal")
def test_a_copy_of_a_network_has_its_own_weights(checkpoint):
    sd = StableDiffusion(checkpoint("sd-1"))
    original = sd.unet
    expected = finish(begin(sd))
    sd.unet = copy.deepcopy(original)
    assert mx.array_equal(finish(begin(sd)), expected).item()
    sd.unet.conv_in.weight = -sd.unet.conv_in.weight
    assert not mx.allclose(finish(begin(sd)), expected, atol=0.1).item()
    sd.unet = original
    assert mx.array_equal(finish(begin(sd)), expected).item()


@pytest.mark.usefixtures("metal")
@pytest.mark.parametrize("ended", ["finished", "closed", "left"])
def test_networks_are_freed_at_once(checkpoint, ended):
    """They are freed with the last reference, without Python's garbage collector."""
    sd = StableDiffusion(checkpoint("sd-1"))
    latents = begin(sd)
    x_t = next(latents)
    mx.eval(sd.decode(x_t))
    if ended == "finished":
        finish(latents)
    elif ended == "closed":
        latents.close()
    else:
        del latents
    gc.disable()
    try:
        networks = [weakref.ref(network) for network in (sd.unet, sd.autoencoder)]
        del sd.unet, sd.autoencoder
        if ended != "left":
            del latents  # a restart needs the pipeline, but it has no networks
        assert [network() for network in networks] == [None, None]
    finally:
        gc.enable()


@pytest.mark.usefixtures("metal")
def test_threads_share_a_pipeline(checkpoint):
    """Two threads begin at the same moment with a network that no one has used."""
    sd = StableDiffusion(checkpoint("sd-1"))
    expected = [finish(begin(sd, seed)) for seed in (1, 2)]
    sd = StableDiffusion(checkpoint("sd-1"))
    sd.ensure_models_are_loaded()
    gate, found = threading.Barrier(2), {}

    def work(seed: int) -> None:
        gate.wait()
        with mx.stream(mx.new_stream(mx.cpu)):
            found[seed] = finish(begin(sd, seed))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, x_t in zip((1, 2), expected, strict=True):
        assert mx.array_equal(found[seed], x_t).item()


@pytest.mark.usefixtures("metal")
def test_gradients_after_pictures(model):
    """A user differentiates through networks that have been compiled for pictures."""
    sd = model()
    x_t = finish(begin(sd))
    mx.eval(sd.decode(x_t))
    loss = lambda z: sd.decode(z).square().sum()  # noqa: E731
    gradient = mx.grad(loss)(x_t)
    step = 1e-2 * gradient / mx.linalg.norm(gradient)
    slope = ((loss(x_t + step) - loss(x_t - step)) / 2).item()
    assert slope == pytest.approx((gradient * step).sum().item(), rel=1e-2)
    text = mx.array(random_normal(1, 77, 32))

    def find_gradients() -> list[mx.array]:
        loss = lambda: sd.unet(x_t, mx.array([9.0]), text).square().sum()  # noqa: E731
        return [g for _, g in tree_flatten(nn.value_and_grad(sd.unet, loss)()[1])]

    gradients = find_gradients()
    with as_on(Backend.CPU):
        expected = find_gradients()
    for ours, theirs in zip(gradients, expected, strict=True):
        assert mx.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * mx.abs(theirs).max().item()).item()


@pytest.mark.usefixtures("metal")
def test_functions_of_users_are_compiled(model):
    sd = model()
    x_t = finish(begin(sd))
    plain = sd.decode(x_t)
    compiled = mx.compile(lambda z: sd.decode(z))
    for _ in range(2):
        assert mx.allclose(compiled(x_t), plain, atol=1e-5).item()
    assert compiled(x_t[:, :2]).shape == (1, 16, 32, 3)
