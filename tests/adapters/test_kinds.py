"""Each kind of adapter changes a layer as its paper says, and as lycoris-lora and PEFT do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import lycoris.modules as lycoris_modules
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import peft
import pytest
import torch
from mlx.utils import tree_flatten
from oracle import relative_l2

from stable_diffusion.adapters.changes import LowRank
from stable_diffusion.adapters.kinds import list_unknown, read_changes
from stable_diffusion.adapters.layer_parts import IncompleteError, ShapeError
from stable_diffusion.adapters.lora_layers import (
    AdaptedLinear,
    LoRALinear,
    add_changes,
    get_base,
    get_weight_shape,
    list_changes,
)
from stable_diffusion.layers import Conv3x3, GroupNorm, Linear, QuantizedLinear
from stable_diffusion.merged_layers import MergedLayers

MAX_ERROR = 2e-6
MIN_CHANGE = 0.01  # of a layer's output
RANK, ALPHA = 2, 3.0
N_IN, N_OUT = 64, 32
SQUARE = 64  # inputs and outputs of a layer whose rows and columns look the same

Tensors = dict[str, np.ndarray]
Weights = Callable[[np.ndarray], np.ndarray]


@dataclass
class FileChange:
    """The tensors of a file for one layer."""

    tensors: dict[str, mx.array]
    name: str = "layer"
    keys: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.keys = {part: f"{self.name}.{part}" for part in self.tensors} | self.keys

    def compute_ratio(self, rank: int) -> float:
        return float(self.tensors["alpha"].item()) / rank if "alpha" in self.tensors else 1.0


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([*shape, seed]).normal(size=shape)


def to_file(tensors: Tensors | dict[str, torch.Tensor]) -> FileChange:
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    arrays = {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in arrays.items()}
    return FileChange({name: mx.array(value) for name, value in arrays.items()})


def make_layer(kind: str) -> nn.Module:
    """Return a layer with random weights."""
    layers: dict[str, Callable[[], nn.Module]] = {
        "linear": lambda: Linear(N_IN, N_OUT),
        "1x1": lambda: Linear(N_IN, N_OUT),
        "square": lambda: Linear(SQUARE, SQUARE, bias=False),
        "quantized": lambda: Linear(N_IN, N_OUT).to_quantized(32, 8),
        "conv": lambda: Conv3x3(N_IN, N_OUT),
        "stride": lambda: Conv3x3(N_IN, N_OUT, stride=2),
    }
    mx.random.seed(len(kind))
    return layers[kind]()


def get_weight(layer: nn.Module) -> np.ndarray:
    """Return the weight of a layer in PyTorch's order of axes, in float64."""
    if isinstance(layer, QuantizedLinear):
        packed = layer.weight, layer.scales, layer.biases
        return np.array(mx.dequantize(*packed, layer.group_size, layer.bits)).astype(np.float64)
    weight = np.array(layer.weight).astype(np.float64)
    return weight.transpose(0, 3, 1, 2) if weight.ndim == 4 else weight


def run_in_float64(
    layer: nn.Module, weight: np.ndarray, bias: np.ndarray | None, x: mx.array
) -> np.ndarray:
    """Return what a layer computes with another weight, by PyTorch in float64."""
    inputs = torch.from_numpy(np.array(x).astype(np.float64))
    wide, offset = torch.from_numpy(weight), None if bias is None else torch.from_numpy(bias)
    if not isinstance(layer, Conv3x3):
        return torch.nn.functional.linear(inputs, wide, offset).numpy()
    pictures = inputs.permute(0, 3, 1, 2)
    y = torch.nn.functional.conv2d(pictures, wide, offset, stride=layer.stride[0], padding=1)
    return y.permute(0, 2, 3, 1).numpy()


def make_input(layer: nn.Module) -> mx.array:
    shape = get_weight_shape(layer)
    x = draw(2, 5, 5, shape[-1]) if len(shape) == 4 else draw(2, 5, shape[-1])
    return mx.array(x.astype(np.float32))


def adapt(layer: nn.Module, *files: FileChange, scale: float = 1.0) -> nn.Module:
    for file in files:
        changes = read_changes(file, get_weight_shape(layer), scale, mx.float32)
        layer = add_changes(layer, changes)
    return layer


def get_bias(layer: nn.Module) -> np.ndarray | None:
    bias = layer.get("bias")
    return None if bias is None else np.array(bias).astype(np.float64)


# --- formulas in float64: tensors for O, I, h, w, and the change of a weight with the scale s -----

Sample = tuple[Tensors, Callable[[np.ndarray, float], np.ndarray]]


def flat(tensor: np.ndarray) -> np.ndarray:
    return tensor.reshape(len(tensor), -1)


def sample_lora(o: int, i: int, *k: int) -> Sample:
    up, down = draw(o, RANK) * 0.1, draw(RANK, i, *k) * 0.1
    tensors = {"lora_up.weight": up.reshape(o, RANK, *[1] * len(k)), "lora_down.weight": down}
    tensors["alpha"] = np.array(ALPHA)
    return tensors, lambda w, s: w + s * ALPHA / RANK * (up @ flat(down)).reshape(w.shape)


def sample_tucker(o: int, i: int, *k: int) -> Sample:
    """The kernel is between two ranks, 2 and 3; alpha is divided by that of `lora_down`."""
    up, mid, down = draw(o, 2) * 0.1, draw(2, 3, *k), draw(3, i) * 0.1
    ones = [1] * len(k)
    tensors = {
        "lora_up.weight": up.reshape(o, 2, *ones),
        "lora_mid.weight": mid,
        "lora_down.weight": down.reshape(3, i, *ones),
        "alpha": np.array([ALPHA]),
    }
    return tensors, lambda w, s: w + s * ALPHA / 3 * np.einsum("or,rs...,si->oi...", up, mid, down)


def sample_loha(o: int, i: int, *k: int) -> Sample:
    n = int(np.prod(k))
    a, c = draw(o, RANK) * 0.3, draw(o, RANK, seed=1) * 0.3
    b, d = draw(RANK, i * n) * 0.3, draw(RANK, i * n, seed=1) * 0.3
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    tensors = dict(zip(names, (a, b, c, d), strict=True)) | {"alpha": np.array(ALPHA)}
    return tensors, lambda w, s: w + s * ALPHA / RANK * ((a @ b) * (c @ d)).reshape(w.shape)


def sample_loha_tucker(o: int, i: int, *k: int) -> Sample:
    a, c = draw(RANK, o) * 0.3, draw(RANK, o, seed=1) * 0.3
    b, d = draw(RANK, i) * 0.3, draw(RANK, i, seed=1) * 0.3
    t, u = draw(RANK, RANK, *k), draw(RANK, RANK, *k, seed=1)
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
    tensors = dict(zip(names, (a, b, c, d, t, u), strict=True))

    def change(w: np.ndarray, s: float) -> np.ndarray:
        rebuilt = [
            np.einsum("rs...,ro,si->oi...", core, left, right)
            for core, left, right in ((t, a, b), (u, c, d))
        ]
        return w + s * rebuilt[0] * rebuilt[1]

    return tensors, change


def kron(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.kron(a.reshape(*a.shape, *[1] * (b.ndim - 2)), b)


def sample_lokr(o: int, i: int, *k: int) -> Sample:
    """Neither matrix is a product of others, so alpha has no effect."""
    a, b = draw(4, 8) * 0.3, draw(o // 4, i // 8, *k) * 0.3
    return {"lokr_w1": a, "lokr_w2": b, "alpha": np.array(ALPHA)}, lambda w, s: w + s * kron(a, b)


def sample_lokr_factorized(o: int, i: int, *k: int) -> Sample:
    n = int(np.prod(k))
    a, b = (draw(4, RANK), draw(RANK, 8)), (draw(o // 4, 3) * 0.1, draw(3, i // 8 * n) * 0.1)
    names = ("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b")
    tensors = dict(zip(names, (*a, *b), strict=True)) | {"alpha": np.array(ALPHA)}

    def change(w: np.ndarray, s: float) -> np.ndarray:
        second = (b[0] @ b[1]).reshape(o // 4, i // 8, *k)
        return w + s * ALPHA / 3 * kron(a[0] @ a[1], second)

    return tensors, change


def sample_lokr_tucker(o: int, i: int, *k: int) -> Sample:
    a, core = draw(4, 8) * 0.3, draw(RANK, RANK, *k)
    left, right = draw(RANK, o // 4) * 0.3, draw(RANK, i // 8) * 0.3
    tensors = {"lokr_w1": a, "lokr_w2_a": left, "lokr_w2_b": right, "lokr_t2": core}
    tensors["alpha"] = np.array(ALPHA)

    def change(w: np.ndarray, s: float) -> np.ndarray:
        second = np.einsum("rs...,ro,si->oi...", core, left, right)
        return w + s * ALPHA / RANK * kron(a, second)

    return tensors, change


def sample_glora(o: int, i: int, *k: int, is_old: bool = False) -> Sample:
    a1, a2 = draw(i, RANK) * 0.1, draw(RANK, i) * 0.1
    b1, b2 = draw(o, RANK) * 0.1, draw(RANK, i, *k) * 0.1
    order = (a2, a1, b2, b1) if is_old else (a1, a2, b1, b2)
    names = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")
    tensors = dict(zip(names, order, strict=True)) | {"alpha": np.array(ALPHA)}

    def change(w: np.ndarray, s: float) -> np.ndarray:
        ratio = s * ALPHA / RANK
        product = np.einsum("oi...,ij->oj...", w, a1 @ a2)
        return w + ratio * (product + (b1 @ flat(b2)).reshape(w.shape))

    return tensors, change


def sample_ia3(o: int, i: int, *k: int, on_input: bool = False) -> Sample:
    v = draw(i if on_input else o) * 0.3
    tensors = {"weight": v.reshape(1, -1, *k and (1, 1)), "on_input": np.array(int(on_input))}
    axis = 1 if on_input else 0

    def change(w: np.ndarray, s: float) -> np.ndarray:
        return w * (1 + s * v).reshape([-1 if n == axis else 1 for n in range(w.ndim)])

    return tensors, change


def sample_difference(o: int, i: int, *k: int) -> Sample:
    difference = draw(o, i, *k) * 0.1
    return {"diff": difference}, lambda w, s: w + s * difference


def sample_scalar(o: int, i: int, *k: int) -> Sample:
    tensors, change = sample_lora(o, i, *k)
    return tensors | {"scalar": np.array(0.5)}, lambda w, s: change(w, 0.5 * s)


def sample_lokr_scalar(o: int, i: int, *k: int) -> Sample:
    tensors, change = sample_lokr(o, i, *k)
    return tensors | {"scalar": np.array([0.5])}, lambda w, s: change(w, 0.5 * s)


def sample_sparse(o: int, i: int, *k: int) -> Sample:
    """A LoRA that was extracted from a model, and its largest differences; one is there twice."""
    tensors, change = sample_lora(o, i, *k)
    rows, columns = np.array([0, 3, 3, o - 1]), np.array([1, 5, 5, i * int(np.prod(k)) - 1])
    dense = np.zeros((o, i * int(np.prod(k))))
    np.add.at(dense, (rows, columns), [1.0, 2.0, 3.0, 4.0])
    tensors["bias_indices"] = np.stack([rows, columns])
    tensors["bias_values"] = np.array([1.0, 2.0, 3.0, 4.0])
    tensors["bias_size"] = np.array(dense.shape)
    return tensors, lambda w, s: change(w, s) + s * ALPHA / RANK * dense.reshape(w.shape)


def sample_dora(
    o: int, i: int, *k: int, of: Callable[..., Sample] = sample_lora, on_input: bool = False
) -> Sample:
    """Formula 5 of arXiv:2402.09353; between the scales 0 and 1 the weight is between both."""
    tensors, change = of(o, i, *k)
    magnitude = np.abs(draw(*((1, i) if on_input else (o, 1)), *[1] * len(k))) + 0.5
    axes = tuple(n for n in range(2 + len(k)) if n != (1 if on_input else 0))

    def decompose(w: np.ndarray, s: float) -> np.ndarray:
        v = change(w, 1)
        return w + s * (magnitude * v / np.sqrt((v**2).sum(axes, keepdims=True)) - w)

    return tensors | {"dora_scale": magnitude}, decompose


SAMPLES: dict[str, Callable[..., Sample]] = {
    "LoRA": sample_lora,
    "LoCon in Tucker form": sample_tucker,
    "LoHa": sample_loha,
    "LoHa in Tucker form": sample_loha_tucker,
    "LoKr": sample_lokr,
    "LoKr, both factorized": sample_lokr_factorized,
    "LoKr in Tucker form": sample_lokr_tucker,
    "GLoRA": sample_glora,
    "GLoRA, old": lambda *shape: sample_glora(*shape, is_old=True),
    "(IA)³": sample_ia3,
    "(IA)³ of the input": lambda *shape: sample_ia3(*shape, on_input=True),
    "difference": sample_difference,
    "scalar": sample_scalar,
    "LoKr with a scalar": sample_lokr_scalar,
    "sparse": sample_sparse,
    "DoRA": sample_dora,
    "DoRA by column": lambda *shape: sample_dora(*shape, on_input=True),
    "DoRA of LoHa": lambda *shape: sample_dora(*shape, of=sample_loha),
    "DoRA of LoKr by column": lambda *shape: sample_dora(*shape, of=sample_lokr, on_input=True),
}


def sample(name: str, layer: nn.Module, kind: str) -> Sample:
    o, *kernel, i = get_weight_shape(layer)
    return SAMPLES[name](o, i, *((1, 1) if kind == "1x1" else kernel))


def change_in_float64(change: Weights, weight: np.ndarray, kind: str) -> np.ndarray:
    """Return the changed weight; a file has that of a 1×1 convolution as [O, I, 1, 1]."""
    if kind != "1x1":
        return change(weight)
    return change(weight[:, :, None, None])[:, :, 0, 0]


@pytest.mark.parametrize("kind", ["linear", "1x1", "square", "quantized", "conv", "stride"])
@pytest.mark.parametrize("name", SAMPLES)
def test_formulas(name, kind):
    """At any scale; a merged layer computes the same, and the base stays as it is."""
    layer = make_layer(kind)
    tensors, change = sample(name, layer, kind)
    weight, x, plain = get_weight(layer), make_input(layer), dict(layer)
    for scale in (1.0, -0.7):
        adapted = adapt(layer, to_file(tensors), scale=scale)
        changed = change_in_float64(lambda w, s=scale: change(w, s), weight, kind)
        expected = run_in_float64(layer, changed, get_bias(layer), x)
        assert relative_l2(adapted(x), expected) <= MAX_ERROR
        merged = adapted.merge() if hasattr(adapted, "merge") else adapted
        assert relative_l2(merged(x), expected) <= MAX_ERROR
        assert relative_l2(layer(x), expected) > MIN_CHANGE
    assert get_base(adapted) is layer
    assert all(layer[key] is value for key, value in plain.items())


@pytest.mark.parametrize("kind", ["linear", "quantized", "conv"])
def test_stacks(kind):
    """Files change the layer one after another, whatever kinds they are."""
    names = ["LoRA", *SAMPLES, "LoRA", "LoRA"]
    layer = make_layer(kind)
    samples = [sample(name, layer, kind) for name in names]
    weight, x = get_weight(layer), make_input(layer)
    for _, change in samples:
        weight = change(weight, 0.3)
    adapted = adapt(layer, *(to_file(tensors) for tensors, _ in samples), scale=0.3)
    expected = run_in_float64(layer, weight, get_bias(layer), x)
    assert relative_l2(adapted(x), expected) <= MAX_ERROR
    n_lora = sum(isinstance(change, LowRank) for change in adapted.changes)
    assert n_lora < sum("lora_up.weight" in tensors for tensors, _ in samples)  # joined


def test_merged_low_rank_changes():
    """They are added to a copy of the weight, also those of later files; quantized layers stay."""
    layer, x = make_layer("linear"), make_input(make_layer("linear"))
    changes = list_changes(adapt(layer, to_file(sample("LoRA", layer, "linear")[0])))
    beside = add_changes(add_changes(layer, changes), changes)
    merged = add_changes(add_changes(layer, changes, merged=True), changes)
    assert isinstance(beside, LoRALinear) and isinstance(merged, AdaptedLinear)
    assert relative_l2(merged(x), beside(x)) <= MAX_ERROR
    assert type(merged.merge()) is Linear and get_base(merged) is layer
    assert isinstance(add_changes(make_layer("quantized"), changes, merged=True), LoRALinear)


@pytest.mark.parametrize("kind", ["linear", "square", "quantized", "conv"])
def test_biases(kind):
    """Of files with differences, and of PEFT's `lora_bias`; a layer without one gets one."""
    layer = make_layer(kind)
    lora, change = sample("LoRA", layer, kind)
    bias = get_bias(layer)
    bias = np.zeros(get_weight_shape(layer)[0]) if bias is None else bias
    difference, up, down = draw(len(bias)), draw(len(bias), seed=1), draw(RANK, seed=2)
    weight, x = get_weight(layer), make_input(layer)
    only = adapt(layer, to_file({"diff_b": difference}), scale=0.5)
    expected = run_in_float64(layer, weight, bias + 0.5 * difference, x)
    assert relative_l2(only(x), expected) <= MAX_ERROR
    file = to_file(lora | {"lora_up.bias": up, "lora_down.bias": down})
    added = 0.5 * ALPHA / RANK * (up + flat(lora["lora_up.weight"]) @ down)
    expected = run_in_float64(layer, change(weight, 0.5), bias + added, x)
    assert relative_l2(adapt(layer, file, scale=0.5)(x), expected) <= MAX_ERROR


@pytest.mark.parametrize("make", [lambda: GroupNorm(4, 8, 1e-5), lambda: nn.LayerNorm(8)])
@pytest.mark.parametrize("names", [("w_norm", "b_norm"), ("diff", "diff_b")])
def test_norms(make, names):
    norm, x = make(), mx.array(draw(2, 3, 3, 8).astype(np.float32))
    norm.weight = 1 + mx.random.normal((8,))
    changes = dict(zip(names, (draw(8), draw(8, seed=1)), strict=True))
    adapted = adapt(norm, to_file(changes), scale=0.5)
    expected = make()
    expected.weight = norm.weight + 0.5 * mx.array(changes[names[0]].astype(np.float32))
    expected.bias = norm.bias + 0.5 * mx.array(changes[names[1]].astype(np.float32))
    assert relative_l2(adapted(x), expected(x)) <= MAX_ERROR
    assert relative_l2(adapted.weight, expected.weight) <= MAX_ERROR  # which kernels read
    linear = Linear(8, 8)
    assert relative_l2(linear(x, norm=adapted), linear(expected(x))) <= MAX_ERROR
    assert relative_l2(norm(x), expected(x)) > MIN_CHANGE


LYCORIS: dict[str, tuple[str, dict[str, object]]] = {
    "LoCon": ("LoConModule", {}),
    "LoCon in Tucker form": ("LoConModule", {"use_tucker": True}),
    "LoHa": ("LohaModule", {}),
    "LoHa in Tucker form": ("LohaModule", {"use_tucker": True}),
    "LoKr": ("LokrModule", {"factor": 4}),
    "LoKr, factorized": ("LokrModule", {"factor": 4, "decompose_both": True, "lora_dim": 1}),
    "LoKr, full": ("LokrModule", {"factor": 4, "full_matrix": True}),
    "LoKr in Tucker form": ("LokrModule", {"factor": 4, "use_tucker": True}),
    "GLoRA": ("GLoRAModule", {}),
    "(IA)³": ("IA3Module", {}),
    "(IA)³ of the input": ("IA3Module", {"train_on_input": True}),
    "full": ("FullModule", {}),
    "DoRA": ("LoConModule", {"weight_decompose": True}),
    "DoRA by column": ("LoConModule", {"weight_decompose": True, "wd_on_out": False}),
    "DoRA of LoHa": ("LohaModule", {"weight_decompose": True}),
    "DoRA of LoKr by column": (
        "LokrModule",
        {"weight_decompose": True, "wd_on_out": False, "factor": 4},
    ),
}


def make_torch_layer(layer: nn.Module) -> torch.nn.Module:
    """Return a layer of PyTorch with the same weights, in float64."""
    weight = torch.from_numpy(get_weight(layer).copy())
    if weight.ndim == 4:
        theirs: torch.nn.Module = torch.nn.Conv2d(N_IN, N_OUT, 3, padding=1)
    else:
        theirs = torch.nn.Linear(*reversed(weight.shape))
    theirs.weight.data, theirs.bias.data = weight, torch.from_numpy(get_bias(layer))
    return theirs.double()


@torch.no_grad()
def run_torch(module: torch.nn.Module, x: mx.array) -> np.ndarray:
    inputs = torch.from_numpy(np.array(x).astype(np.float64))
    if inputs.ndim == 4:
        return module(inputs.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    return module(inputs).numpy()


def randomize(parameters: Sequence[torch.nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = parameter.data.double() + noise * 0.3


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("name", LYCORIS)
def test_lycoris(name, kind):
    """A file as lycoris-lora writes it changes a layer as the package's module does."""
    torch.manual_seed(0)
    layer, (module, options) = make_layer(kind), LYCORIS[name]
    theirs = make_torch_layer(layer)
    arguments = {"lora_dim": RANK, "alpha": ALPHA} | options
    adapter = getattr(lycoris_modules, module)("layer", theirs, **arguments).double()
    if name == "full":  # whose file has differences only after this
        adapter.apply_to()
    randomize([*adapter.parameters()])
    file = to_file({k: v.detach().numpy() for k, v in adapter.state_dict().items()})
    x = make_input(layer)
    expected = run_torch(adapter if name != "full" else theirs, x)
    assert relative_l2(adapt(layer, file)(x), expected) <= MAX_ERROR
    assert relative_l2(layer(x), expected) > MIN_CHANGE


PEFT = {
    "LoRA with a bias": peft.LoraConfig(r=RANK, lora_alpha=3, lora_bias=True),
    "DoRA": peft.LoraConfig(r=RANK, lora_alpha=3, use_dora=True),
    "LoHa": peft.LoHaConfig(r=RANK, alpha=3),
    "LoHa in Tucker form": peft.LoHaConfig(r=RANK, alpha=3, use_effective_conv2d=True),
    "LoKr": peft.LoKrConfig(r=RANK, alpha=3, decompose_both=True),
    "LoKr in Tucker form": peft.LoKrConfig(r=RANK, alpha=3, use_effective_conv2d=True),
}
PEFT_PARTS = {"lora_A": "lora_down", "lora_B": "lora_up", "lora_magnitude_vector": "dora_scale"}


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("name", PEFT)
def test_peft(name, kind):
    """PEFT writes the norms of rows as [1, O, 1, 1] for a convolution."""
    torch.manual_seed(0)
    layer, config = make_layer(kind), PEFT[name]
    config.target_modules = ["0"]
    theirs = peft.get_peft_model(torch.nn.Sequential(make_torch_layer(layer)), config).double()
    learned = {k: v for k, v in theirs.named_parameters() if ".base_layer" not in k}
    randomize([*learned.values()])
    change, keys = {"alpha": np.array(ALPHA)}, {}
    for key, value in learned.items():
        part, end = key.removeprefix("base_model.model.0.").replace(".default", ""), ""
        for old, new in PEFT_PARTS.items():
            part = part.replace(old, new)
        end = part.removesuffix(".weight") if part.startswith("dora_scale") else part
        change[end], keys[end] = value.detach().numpy(), key
    file = to_file(change)
    file.keys |= keys
    x = make_input(layer)
    expected = run_torch(theirs, x)
    assert relative_l2(adapt(layer, file)(x), expected) <= MAX_ERROR
    assert relative_l2(layer(x), expected) > MIN_CHANGE


def test_norms_of_a_square_convolution():
    """PEFT's norms of rows and LyCORIS's of columns have the same shape: the key tells."""
    conv, x = Conv3x3(8, 8), mx.array(draw(1, 4, 4, 8).astype(np.float32))
    tensors, by_column = sample_dora(8, 8, 3, 3, on_input=True)
    weight, bias = get_weight(conv), get_bias(conv)
    expected = run_in_float64(conv, by_column(weight, 1), bias, x)
    assert relative_l2(adapt(conv, to_file(tensors))(x), expected) <= MAX_ERROR
    file = to_file(tensors)
    file.keys["dora_scale"] = "layer.lora_magnitude_vector"
    v = weight + ALPHA / RANK * np.einsum(
        "or,ri...->oi...", flat(tensors["lora_up.weight"]), tensors["lora_down.weight"]
    )
    magnitude = tensors["dora_scale"].reshape(8, 1, 1, 1)
    by_row = magnitude * v / np.sqrt((v**2).sum((1, 2, 3), keepdims=True))
    expected = run_in_float64(conv, by_row, bias, x)
    assert relative_l2(adapt(conv, file)(x), expected) <= MAX_ERROR


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision(dtype):
    """Files in half precision are exact; a layer in half precision stays so."""
    layer = make_layer("linear")
    tensors, change = sample("DoRA of LoHa", layer, "linear")
    file = to_file(tensors)
    file.tensors = {name: value.astype(dtype) for name, value in file.tensors.items()}
    wide = {name: np.array(x.astype(mx.float32)) for name, x in file.tensors.items()}
    x = make_input(layer)
    assert mx.array_equal(adapt(layer, file)(x), adapt(layer, to_file(wide))(x))
    half = make_layer("linear")
    half.set_dtype(mx.float16)
    changes = read_changes(file, (N_OUT, N_IN), 1.0, mx.float16)
    merged = add_changes(half, changes).merge()
    assert merged.weight.dtype == merged.bias.dtype == mx.float16
    expected = change(get_weight(layer), 1)
    assert relative_l2(merged.weight.astype(mx.float32), expected) <= 5e-3


def test_zeros_stay_finite():
    """A row of zeros has no direction, so DoRA keeps it, and its gradient is finite."""
    layer = Linear(4, 4)
    layer.weight = mx.zeros((4, 4))
    tensors, _ = sample_dora(4, 4)
    tensors["lora_up.weight"][0] = 0
    adapted, x = adapt(layer, to_file(tensors)), mx.ones((1, 4))
    assert mx.isfinite(adapted(x)).all().item()
    _, gradients = nn.value_and_grad(adapted, lambda: adapted(x).sum())()
    assert all(mx.isfinite(each).all().item() for _, each in tree_flatten(gradients))


@pytest.mark.parametrize("kind", ["linear", "quantized", "conv"])
@pytest.mark.parametrize("name", ["LoHa", "LoKr, both factorized", "GLoRA", "DoRA"])
def test_adapters_learn(name, kind):
    """Their factors have the gradients of differences."""
    layer = make_layer(kind)
    adapted = adapt(layer, to_file(sample(name, layer, kind)[0]), scale=0.5)
    adapted = add_changes(
        adapted, read_changes(to_file({"diff_b": draw(N_OUT)}), (N_OUT, 1), 1, mx.float32)
    )
    layer.freeze()
    x = make_input(layer)

    def loss() -> mx.array:
        return mx.square(adapted(x)).mean()

    gradients = dict(tree_flatten(nn.value_and_grad(adapted, loss)()[1]))
    factors = dict(tree_flatten(adapted.trainable_parameters()))
    assert gradients.keys() == factors.keys() and len(factors) >= 3
    for key, factor in factors.items():
        direction = mx.random.normal(factor.shape)
        values = []
        for step in (1e-2, -1e-2):
            adapted.load_weights([(key, factor + step * direction)], strict=False)
            values.append(loss().item())
        adapted.load_weights([(key, factor)], strict=False)
        slope = (gradients[key] * direction).sum().item()
        assert slope == pytest.approx((values[0] - values[1]) / 2e-2, rel=0.02, abs=1e-4), key


def test_quantized_layers_are_prepared_once():
    """Its weight stays quantized, and the norms of DoRA are kept until something changes."""
    network, kept = nn.Module(), MergedLayers()
    layer = make_layer("quantized")
    network.layer = adapt(layer, to_file(sample("DoRA", layer, "linear")[0]), scale=0.5)
    first = kept.put_into(network).layer
    assert kept.put_into(network).layer is first
    assert first.product.weight is layer.weight
    (change,) = network.layer.changes
    change.magnitude = 2 * change.magnitude
    second, x = kept.put_into(network).layer, make_input(layer)
    assert mx.array_equal(second(x), network.layer(x)) and not mx.allclose(second(x), first(x))
    network.layer.base = Linear(N_IN, N_OUT)
    assert type(kept.put_into(network).layer) is Linear


ONES: Tensors = {"lora_down.weight": np.ones((2, 64)), "lora_up.weight": np.ones((64, 2))}
HADA = {
    f"hada_w{i}_{side}": np.ones(s) for i in (1, 2) for side, s in (("a", (64, 2)), ("b", (2, 64)))
}
LOKR = {"lokr_w1": np.ones((4, 8)), "lokr_w2": np.ones((16, 8))}


@pytest.mark.parametrize(
    "tensors",
    [
        {"alpha": np.ones(())},
        {"dora_scale": np.ones((64, 1))},
        {"dora_scale": np.ones((64, 1)), "diff_b": np.ones(64)},
        {"lora_up.weight": np.ones((64, 2))},
        {"lora_up.bias": np.ones(64)},
        {"bias": np.ones((64, 64))},
        {n: x for n, x in HADA.items() if n != "hada_w2_b"},
        HADA | {"hada_t1": np.ones((2, 2))},
        {"lokr_w1": np.ones((4, 8))},
        {"lokr_w1_a": np.ones((4, 2)), "lokr_w2": np.ones((16, 8))},
        {"weight": np.ones(64)},
        ONES | {"bias_values": np.ones(1), "bias_size": np.array([64, 64])},
    ],
)
def test_counterparts_that_are_missing(tensors):
    tensors = {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in tensors.items()}
    with pytest.raises((IncompleteError, ShapeError)):
        read_changes(to_file(tensors), (64, 64), 1.0, mx.float32)


@pytest.mark.parametrize(
    "tensors",
    [
        ONES | {"lora_up.weight": np.ones((64, 3))},
        ONES | {"lora_down.weight": np.ones((2, 8, 8))},
        ONES | {"lora_down.weight": np.ones((2, 64), np.int32)},
        ONES | {"lora_up.bias": np.ones(63)},
        ONES | {"lora_mid.weight": np.ones((3, 2))},
        ONES | {"scalar": np.ones(2)},
        ONES | {"alpha": np.ones(2)},
        ONES | {"alpha": np.array(1j, np.complex64)},
        ONES | {"scalar": np.array(1j, np.complex64)},
        ONES | {"dora_scale": np.ones(63)},
        ONES | {"dora_scale": np.ones(())},
        ONES | {"bias": np.ones(64)},
        ONES
        | {
            "bias_indices": np.array([[64], [0]]),
            "bias_values": np.ones(1),
            "bias_size": np.array([64, 64]),
        },
        HADA | {"hada_w2_a": np.ones((64, 3))},
        HADA | {"hada_t1": np.ones((2, 3)), "hada_t2": np.ones((2, 2))},
        LOKR | {"lokr_w1": np.ones((5, 8))},
        LOKR | {"lokr_w2": np.ones((16, 9))},
        LOKR | {"lokr_w2": np.ones((0, 8))},
        sample_glora(64, 64)[0] | {"b1.weight": np.ones((64, 3))},
        {"weight": np.ones(63), "on_input": np.array(1)},
        {"weight": np.ones(64), "on_input": np.array([0, 1])},
        {"diff": np.ones((64, 63))},
        {"diff": np.ones((64, 64, 3, 3))},
        {"w_norm": np.ones(64)},
        {"diff_b": np.ones(())},
    ],
)
def test_shapes_that_do_not_fit(tensors):
    with pytest.raises(ShapeError):
        read_changes(to_file(tensors), (64, 64), 1.0, mx.float32)
    if "w_norm" not in tensors:
        with pytest.raises((ShapeError, IncompleteError)):
            read_changes(to_file(tensors), (64,), 1.0, mx.float32)


def test_numbers_that_cannot_be_used():
    for name in ("alpha", "scalar"):
        tensors = ONES | {name: np.array(np.nan)}
        with pytest.raises(ValueError, match="the alpha of layer is not a finite number"):
            read_changes(to_file(tensors), (64, 64), 1.0, mx.float32)


def test_tensors_of_no_kind_are_listed():
    assert list_unknown(to_file(ONES | {"lokr_t1": np.ones(1), "alpha": np.ones(1)})) == [
        "layer.lokr_t1"
    ]
