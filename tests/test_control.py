"""`control.py`: pictures that steer what is drawn, as in diffusers, and its arguments."""

import mlx.core as mx
import numpy as np
import pytest
from controls import make_controlnet, make_picture, make_union, save, their_pictures, to_pil
from gpu import as_on, without_fusing
from oracle import psnr, relative_l2
from ours import pictures
from PIL import Image

from stable_diffusion import StableDiffusion
from stable_diffusion.active_control import add_residuals
from stable_diffusion.control import Control, LoadedControl, activate, resize
from stable_diffusion.device.backend import Backend
from stable_diffusion.model_io.loaders import load_model_config
from stable_diffusion.overflow import evaluate_steps
from stable_diffusion.pipeline import pipeline_class
from stable_diffusion.prediction import NetworkInputs, make_predict
from stable_diffusion.quantize import find_quantization
from stable_diffusion.unet import Residuals
from stable_diffusion.utils.size import Size

PROMPT = "a photo of a café, at night"
SAME, OTHER = 50, 35  # dB: at least between equal pictures, at most between others
SIZE = (8, 8)  # latents
PICTURE, OTHER_PICTURE = make_picture(1), make_picture(2)


@pytest.fixture(scope="module")
def loaded(checkpoint, oracle, tmp_path_factory):
    """Return a function that returns a pipeline of a kind and two ControlNets of it and diffusers.

    They are made once, and are not to be changed.
    """
    made = {}

    def load(kind: str):
        if kind not in made:
            folder = checkpoint(kind)
            sd = pipeline_class(load_model_config(folder))(folder)
            theirs = [make_controlnet(oracle(kind), i) for i in range(2)]
            folders = [save(each, tmp_path_factory.mktemp("control")) for each in theirs]
            made[kind] = sd, [sd.load_control(each) for each in folders], theirs
        return made[kind]

    return load


def generate(sd: StableDiffusion, *controls: Control, **options) -> np.ndarray:
    """Return two pictures of the prompt, uint8 [2, H, W, 3]."""
    options = {"num_steps": 4, "seed": 7, "latent_size": SIZE, **options}
    return pictures(sd, sd.generate_latents(PROMPT, 2, controls=controls, **options))


@pytest.mark.parametrize(("kind", "guidance"), [("sd-1", 6.0), ("sdxl", 1.0)])
def test_pictures_equal_diffusers(loaded, oracle, kind, guidance):
    """Two control networks do, each in its own part of the steps."""
    sd, networks, theirs = loaded(kind)
    controls = (
        Control(networks[0], PICTURE, 0.8, 0.3, 0.8),
        Control(networks[1], OTHER_PICTURE, 0.5),
    )
    ours = generate(sd, *controls, cfg_weight=guidance)
    expected = their_pictures(
        oracle(kind),
        "ControlNetPipeline",
        theirs,
        seeds=[7, 8],
        prompt=PROMPT,
        image=[to_pil(PICTURE), to_pil(OTHER_PICTURE)],
        controlnet_conditioning_scale=[0.8, 0.5],
        control_guidance_start=[0.3, 0.0],
        control_guidance_end=[0.8, 1.0],
        num_inference_steps=4,
        guidance_scale=guidance,
    )
    assert psnr(ours, expected) >= SAME
    for others in (controls[:1], controls[1:]):
        assert psnr(generate(sd, *others, cfg_weight=guidance), expected) <= OTHER


def test_a_pooled_network_steers_the_prompt_only(loaded, oracle, tmp_path):
    """The prediction for the negative prompt is that without it, as in diffusers."""
    sd, _, _ = loaded("sd-1")
    theirs = make_controlnet(oracle("sd-1"), 3, global_pool_conditions=True)
    network = sd.load_control(save(theirs, tmp_path))
    ours = generate(sd, Control(network, PICTURE), cfg_weight=6, num_steps=2)
    expected = their_pictures(
        oracle("sd-1"),
        "ControlNetPipeline",
        theirs,
        seeds=[7, 8],
        prompt=PROMPT,
        image=to_pil(PICTURE),
        num_inference_steps=2,
        guidance_scale=6.0,
    )
    assert psnr(ours, expected) >= SAME
    assert psnr(generate(sd, cfg_weight=6, num_steps=2), expected) <= OTHER


def test_the_steps_of_a_range():
    """They are those of diffusers: step i of n, unless i/n < start or (i + 1)/n > end."""
    for n_steps in (1, 3, 4, 7, 50):
        for start, end in [(0, 1), (0, 0.5), (0.3, 0.8), (0.25, 0.75), (1 / 3, 2 / 3)]:
            control = _fake(start=start, end=end)
            theirs = [not (i / n_steps < start or (i + 1) / n_steps > end) for i in range(n_steps)]
            assert [control.is_active(i, n_steps) for i in range(n_steps)] == theirs


class FakeLoaded(LoadedControl):
    """A control network that is never computed."""

    def __init__(self, types: tuple[str, ...] = ()):
        self.name, self.types, self._network = "fake", types, object()


def _fake(types: tuple[str, ...] = (), network: LoadedControl | None = None, **options) -> Control:
    """Return a control whose network is never computed."""
    return Control(network or FakeLoaded(types), mx.zeros((8, 8, 3)), **options)


def test_the_types_of_a_union_that_are_active_together():
    """They are given to it together, each with its own scale; other networks alone."""
    union, plain = FakeLoaded(("openpose", "depth")), FakeLoaded()
    controls = [
        _fake(network=union, type="depth", end=0.5, scale=0.3),
        _fake(network=plain),
        _fake(network=union, type=0, scale=0.6),
        _fake(network=plain, start=0.5),
    ]
    active = activate(controls, Size(8, 8), 4)
    found = [(each.network, each.types, each.scales, sorted(each.steps)) for each in active]
    assert found == [
        (union.network, [1, 0], [0.3, 0.6], [0, 1]),
        (union.network, [0], [0.6], [2, 3]),
        (plain.network, [], [1.0], [0, 1, 2, 3]),
        (plain.network, [], [1.0], [2, 3]),
    ]


def test_steps_without_control_compute_no_control_network(loaded, monkeypatch):
    sd, networks, _ = loaded("sd-1")
    network = networks[0].network
    calls = []
    call = type(network).__call__
    monkeypatch.setattr(
        type(network), "__call__", lambda *args: (calls.append(args[2].item()), call(*args))[1]
    )
    latents = sd.generate_latents(
        PROMPT, num_steps=4, latent_size=SIZE, controls=[Control(networks[0], PICTURE, end=0.5)]
    )
    mx.eval(list(latents))
    assert len(calls) == 2 and calls[0] > calls[1] > 400
    message = "has no effect: none of 1 step lies within its range, 0 to 0.5"
    with pytest.warns(UserWarning, match=message):
        sd.generate_latents(
            PROMPT, num_steps=1, latent_size=SIZE, controls=[Control(networks[0], PICTURE, end=0.5)]
        )


@pytest.mark.parametrize("size", [(48, 40), (64, 64), (100, 31), (8, 200)])
def test_pictures_are_resized_as_by_pillow(size):
    """The filter is Pillow's Lanczos, for floats."""
    picture = make_picture(3, (40, 56))
    width, height = size
    channels = [
        np.asarray(
            Image.fromarray(picture[..., i]).resize((width, height), Image.Resampling.LANCZOS)
        )
        for i in range(3)
    ]
    ours = np.array(resize(mx.array(picture), Size(width, height)))
    assert np.abs(ours - np.stack(channels, -1).clip(0, 1)).max() < 1e-5


def test_residuals_are_summed():
    """A T2I-Adapter has inner residuals alone, a ControlNet the others."""
    one = Residuals([mx.array([1.0]), mx.array([2.0])], mx.array([3.0]), [])
    other = Residuals([], None, [mx.array([4.0])])
    for first, second in ((one, other), (other, one)):
        down, mid, inner = add_residuals(first, second)
        assert [each.item() for each in (*down, mid, *inner)] == [1, 2, 3, 4]
    down, mid, inner = add_residuals(one, one)
    assert [each.item() for each in (*down, mid, *inner)] == [2, 4, 6]


def test_a_gpu_computes_the_same(loaded):
    """There the networks are compiled, with the weights as arguments."""
    sd, networks, _ = loaded("sd-1")
    controls = [Control(networks[0], PICTURE, end=0.7), Control(networks[1], OTHER_PICTURE, 0.5)]
    options = {"cfg_weight": 5.0, "num_steps": 3, "seed": 1, "latent_size": SIZE}
    begin = lambda: sd.generate_latents(PROMPT, controls=controls, **options)  # noqa: E731
    expected = evaluate_steps(begin())
    with as_on(Backend.METAL), without_fusing():
        latents = begin()
        for _ in range(2):
            assert mx.allclose(evaluate_steps(latents), expected, atol=1e-3).item()
            latents.restart()


def test_gradients(loaded):
    """The gradient of a prediction with respect to the latents is right, by finite differences."""
    sd, networks, _ = loaded("sd-1")
    (active,) = activate([Control(networks[0], PICTURE)], Size(64, 64), 1)
    embeddings = mx.random.normal((2, 77, sd.unet.config.cross_attention_dim), key=mx.random.key(0))
    inputs = NetworkInputs(controls=[active])
    predict = make_predict(sd.unet, embeddings, None, 3.0, 0.0, mx.float32, inputs)
    x, direction = mx.random.normal((2, 1, 8, 8, 4), key=mx.random.key(1))
    function = lambda x: predict(x, mx.array(300), 0).square().mean()  # noqa: E731
    slope = (mx.grad(function)(x) * direction).sum().item()
    step = 1e-2
    expected = (function(x + step * direction) - function(x - step * direction)).item() / 2 / step
    assert slope == pytest.approx(expected, rel=2e-2)


def test_precision_and_freeing(checkpoint, oracle, tmp_path):
    """`use_float32` and `quantize` reach control networks; unloaded ones are refused."""
    folder = save(make_controlnet(oracle("sd-1")), tmp_path)
    sd = StableDiffusion(checkpoint("sd-1"), float16=True)
    loaded = sd.load_control(folder)
    control = Control(loaded, PICTURE)
    begin = lambda: sd.generate_latents(  # noqa: E731
        PROMPT, num_steps=2, seed=1, latent_size=SIZE, controls=[control]
    )
    half, latents = evaluate_steps(begin()), begin()
    sd.use_float32()
    latents.restart()
    single = evaluate_steps(latents)
    assert 0 < relative_l2(half, single) < 0.1
    assert loaded.network.conv_in.weight.dtype == mx.float32
    sd.quantize(unet_bits=8)
    quantization = find_quantization(loaded.network)
    assert quantization.bits == 8 and quantization.convolution_group_size == 64
    loaded.use_float32()
    assert find_quantization(loaded.network) == quantization
    assert 0 < relative_l2(evaluate_steps(begin()), single) < 0.1
    sd.unload_controls()
    assert sd.controls == ()
    with pytest.raises(ValueError, match=r"controls\[0\]: the network .* has been unloaded"):
        begin()
    latents.close()
    with pytest.raises(ValueError, match="has been unloaded: load it again"):
        list(latents.restart() or latents)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"network": "canny"}, TypeError, "network must be what load_control returns, got 'canny'"),
        ({"image": "a.png"}, TypeError, r"image must be \[H, W, 3\] floats in \[0, 1\].*'a.png'"),
        ({"image": Image.new("RGB", (8, 8))}, TypeError, "give np.asarray"),
        ({"image": np.zeros((8, 8, 3), np.uint8)}, ValueError, "got numbers of uint8"),
        ({"image": np.zeros((8, 8))}, ValueError, r"got the shape \[8, 8\]"),
        ({"image": np.zeros((0, 8, 3))}, ValueError, r"got the shape \[0, 8, 3\]"),
        ({"image": np.full((8, 8, 3), -1.0)}, ValueError, "got values from -1 to -1"),
        ({"image": np.full((8, 8, 3), np.nan)}, ValueError, "not finite"),
        ({"scale": "1"}, TypeError, "scale must be a number, got '1'"),
        ({"scale": np.inf}, ValueError, "scale must be a finite number, got inf"),
        ({"start": -0.1}, ValueError, r"start must be in \[0, 1\], got -0.1"),
        ({"end": 1.5}, ValueError, r"end must be in \[0, 1\], got 1.5"),
        ({"start": 0.5, "end": 0.5}, ValueError, "start must be below end, got 0.5 and 0.5"),
        ({"type": "canny"}, ValueError, "fake takes no type, as it is not a union"),
    ],
)
def test_wrong_controls(change, error, message):
    arguments = {"network": FakeLoaded(), "image": mx.zeros((8, 8, 3)), **change}
    with pytest.raises(error, match=message):
        Control(**arguments)


def test_views_of_arrays():
    """A picture may be mirrored by NumPy, which does not copy it."""
    for view in (PICTURE[::-1], PICTURE[:, ::-2], np.asfortranarray(PICTURE)):
        assert np.array_equal(np.array(Control(FakeLoaded(), view).image), view)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (None, ValueError, "type must say what the picture shows: openpose, depth"),
        ("dept", ValueError, "type must be one of openpose, depth, got 'dept': did you mean depth"),
        ("tile", ValueError, r"fake has 2 types \(openpose, depth\), got type 'tile'"),
        (2, ValueError, "fake has 2 types .* got type 2"),
        (-1, ValueError, "fake has 2 types .* got type -1"),
        (True, TypeError, "type must be an integer, got True"),
    ],
)
def test_wrong_types_of_a_union(value, error, message):
    with pytest.raises(error, match=message):
        _fake(("openpose", "depth"), type=value)


@pytest.mark.parametrize(
    ("controls", "error", "message"),
    [
        (_fake(), TypeError, r"must be a list of Control, got one alone: give \[control\]"),
        ("canny", TypeError, "must be a list of Control, got 'canny'"),
        (["canny"], TypeError, "got a list with 'canny', a str in it"),
        ([_fake()], ValueError, r"controls\[0\]: the network fake is of another pipeline"),
    ],
)
def test_wrong_lists_of_controls(controls, error, message):
    sd = StableDiffusion("tiny")
    with pytest.raises(error, match=message):
        sd.generate_latents("a ring", controls=controls)


def test_a_union_equals_diffusers(loaded, oracle, tmp_path):
    """Two pictures of different types are given to it together, each with a scale."""
    sd, _, _ = loaded("sdxl")
    theirs = make_union(oracle("sdxl"))
    union = sd.load_control(save(theirs, tmp_path))
    controls = (
        Control(union, PICTURE, 0.8, type="canny"),
        Control(union, OTHER_PICTURE, 0.5, type=6),
    )
    ours = generate(sd, *controls, cfg_weight=4, num_steps=2)
    expected = their_pictures(
        oracle("sdxl"),
        "ControlNetUnionPipeline",
        theirs,
        seeds=[7, 8],
        prompt=PROMPT,
        control_image=[to_pil(PICTURE), to_pil(OTHER_PICTURE)],
        control_mode=[3, 6],
        controlnet_conditioning_scale=[0.8, 0.5],
        num_inference_steps=2,
        guidance_scale=4.0,
    )
    assert psnr(ours, expected) >= SAME
    assert psnr(generate(sd, controls[0], cfg_weight=4, num_steps=2), expected) <= OTHER
