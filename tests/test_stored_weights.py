"""Quantized layers are computed from the tensors of the file, unless their weights were changed."""

import copy
import gc
import os
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from stable_diffusion import stored_weights
from stable_diffusion.device import cpu_kernels
from stable_diffusion.layers import Linear, QuantizedLinear
from stable_diffusion.model_io.layouts import Layout
from stable_diffusion.model_io.weights import load_weights, read_weights
from stable_diffusion.quantize import quantize_as

pytestmark = [
    pytest.mark.skipif(not cpu_kernels.is_used(), reason="only a Linux CPU needs it"),
    pytest.mark.usefixtures("all_cores"),
]

WIDTH = 256
ROUNDING = 2**15  # MLX rounds the sizes of buffers; the tensors of a file are much larger
LAYOUT = Layout({}, fused={"both.weight": ("q.weight", "k.weight")}, transposed={"t.weight"})


class Network(nn.Module):
    """Layers whose weights are a tensor, a part of one, a transposed one, and a 1×1 convolution."""

    def __init__(self):
        super().__init__()
        self.q, self.k = Linear(WIDTH, WIDTH), Linear(WIDTH, WIDTH, bias=False)
        self.t, self.conv = Linear(WIDTH, 2 * WIDTH), Linear(WIDTH, 24)

    def __call__(self, x: mx.array) -> mx.array:
        return self.conv(self.k(self.q(x)))


@pytest.fixture(scope="module", params=[mx.float16, mx.bfloat16, mx.float32], ids=str)
def file(request, tmp_path_factory) -> Path:
    """Return a file with the weights of a `Network`."""
    shapes = {"both.weight": (2 * WIDTH, WIDTH), "t.weight": (WIDTH, 2 * WIDTH)}
    shapes |= {"conv.weight": (24, WIDTH, 1, 1), "conv.bias": (24,)}
    shapes |= {"q.bias": (WIDTH,), "t.bias": (2 * WIDTH,)}
    mx.random.seed(3)
    tensors = {k: mx.random.normal(shape).astype(request.param) for k, shape in shapes.items()}
    path = tmp_path_factory.mktemp("stored") / "weights.safetensors"
    mx.save_safetensors(str(path), tensors)
    return path


def load(file: Path, dtype: mx.Dtype = mx.float32) -> Network:
    network = Network()
    load_weights(network, [file], LAYOUT, dtype)
    return network


def quantize(network: Network) -> None:
    nn.quantize(network, 64, 6)


def compare(network: Network, plain: Network) -> None:
    """Check that two networks have the same arrays, of the same types."""
    theirs = dict(tree_flatten(plain.parameters()))
    for path, ours in tree_flatten(network.parameters()):
        assert ours.dtype == theirs[path].dtype
        assert mx.array_equal(ours, theirs[path]), path


def make_plain(file: Path, dtype: mx.Dtype = mx.float32, change: Callable | None = None) -> Network:
    """Return the network as MLX quantizes it, after `change`."""
    plain = load(file, dtype)
    stored_weights.forget_tensors(plain)
    if change is not None:
        change(plain)
    quantize(plain)
    return plain


@pytest.fixture
def count_kernels(monkeypatch) -> list:
    """Return a list that gets an item for each weight that is quantized by the kernel."""
    made, quantize_weight = [], stored_weights.quantize_weight
    monkeypatch.setattr(
        stored_weights,
        "quantize_weight",
        lambda *arguments: made.append(arguments) or quantize_weight(*arguments),
    )
    return made


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16], ids=str)
def test_same_bits_as_mlx(file, dtype, count_kernels):
    network = load(file, dtype)
    quantize(network)
    sizes = []
    read_weights(network, sizes.append)
    assert len(count_kernels) == 4
    plain = make_plain(file, dtype)
    compare(network, plain)
    assert sum(sizes) == sum(value.nbytes for _, value in tree_flatten(plain.parameters()))


def test_the_first_call_quantizes(file, count_kernels):
    """It does in programs that do not read the weights before."""
    network, x = load(file), mx.array(np.linspace(-1, 1, WIDTH, dtype=np.float32))[None]
    quantize(network)
    noted = network.q._stored
    y = network(x)
    assert len(count_kernels) == 3
    assert noted.tensor is None  # so that nobody who refers to it keeps the numbers
    assert mx.array_equal(y, network(x)) and len(count_kernels) == 3
    assert mx.array_equal(y, make_plain(file)(x))


def add_in_place(network: Network) -> None:
    network.q.weight += 1


def set_row(network: Network) -> None:
    network.q.weight[0] = 5


def change_by_another_name(network: Network) -> None:
    weight = network.q.weight
    weight *= 2


def set_weight(network: Network) -> None:
    network.q.weight = 2 * network.q.weight


def update(network: Network) -> None:
    network.update({"q": {"weight": mx.ones((WIDTH, WIDTH))}})


BEFORE = [add_in_place, set_row, change_by_another_name, set_weight, update]


@pytest.mark.parametrize("change", BEFORE)
def test_weights_changed_before(file, change, count_kernels):
    network = load(file)
    change(network)
    quantize(network)
    read_weights(network)
    assert len(count_kernels) == 3
    compare(network, make_plain(file, change=change))


def scale_in_place(network: Network) -> None:
    network.q.scales *= 2


def set_scales_of_a_row(network: Network) -> None:
    network.q.scales[0] = 5


def set_offsets(network: Network) -> None:
    network.q.biases = network.q.biases + 1


def update_packed(network: Network) -> None:
    network.update({"q": {"weight": mx.zeros_like(network.q.weight)}})


AFTER = [scale_in_place, set_scales_of_a_row, set_offsets, update_packed]


@pytest.mark.parametrize("change", AFTER)
def test_weights_changed_after(file, change, count_kernels):
    """Between quantizing and reading."""
    network, plain = load(file), make_plain(file)
    quantize(network)
    for each in (network, plain):
        change(each)
    read_weights(network)
    assert len(count_kernels) == 3
    compare(network, plain)


def test_copies(file):
    """A copy of a network is read and changed for itself, and so is a pickled one."""
    network = load(file)
    quantize(network)
    copied, shared = copy.deepcopy(network), copy.copy(network.q)
    compare(pickle.loads(pickle.dumps(copied)), copied)
    copied.k.scales *= 2
    read_weights(network)
    compare(network, make_plain(file))
    read_weights(copied)
    copied.k.scales = copied.k.scales / 2
    compare(copied, network)
    mx.eval(shared.parameters())
    assert mx.array_equal(shared.weight, network.q.weight)


def test_other_modes(file):
    """Only MLX knows the other formats of few bits."""
    network = load(file)
    nn.quantize(network, 32, 4, mode="mxfp4")
    read_weights(network)
    assert network.q.mode == "mxfp4" and "biases" not in dict(tree_flatten(network.q.parameters()))


def test_nothing_is_kept(file):
    """Neither memory nor open files, whichever way the weights are read."""

    def measure_memory() -> int:
        gc.collect()
        mx.synchronize()
        return mx.get_active_memory()

    def is_open() -> bool:
        folder = Path("/proc/self/fd")
        return any(os.path.realpath(each) == os.path.realpath(file) for each in folder.iterdir())

    def evaluate(network: Network) -> None:
        mx.eval(network.parameters())
        stored_weights.forget_tensors(network)

    for is_quantized in (True, False):
        for read in (read_weights, evaluate):
            memory = measure_memory()
            network = load(file)
            assert is_open()
            if is_quantized:
                quantize(network)
            read(network)
            size = sum(value.nbytes for _, value in tree_flatten(network.parameters()))
            assert measure_memory() - memory <= size + ROUNDING
            end = time.monotonic() + 10  # MLX's threads close the file some time later
            while is_open() and time.monotonic() < end:
                time.sleep(0.01)
            assert not is_open()
            del network


class ManyLayers(nn.Module):
    """Small layers, and a large one between them."""

    def __init__(self):
        super().__init__()
        self.before = [Linear(WIDTH, WIDTH, bias=False) for _ in range(30)]
        self.large = Linear(4 * WIDTH, 8 * WIDTH, bias=False)
        self.after = [Linear(WIDTH, WIDTH, bias=False) for _ in range(70)]


@pytest.mark.parametrize("is_quantized", [False, True])
def test_large_layers_are_read_first(tmp_path, monkeypatch, is_quantized):
    """They need memory for more than their weights, while there is room for that."""
    monkeypatch.setattr(stored_weights, "LARGE_BYTES", 2**20)
    network, path = ManyLayers(), tmp_path / "weights.safetensors"
    weights = {key: value.astype(mx.float16) for key, value in tree_flatten(network.parameters())}
    mx.save_safetensors(str(path), weights)
    load_weights(network, [path], Layout({}), mx.float32)
    if is_quantized:
        nn.quantize(network, 64, 8)
    tensor = weights["large.weight"].nbytes
    del weights
    gc.collect()
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    read_weights(network)
    size = sum(value.nbytes for _, value in tree_flatten(network.parameters()))
    assert mx.get_peak_memory() - before < size + tensor / 8


def test_the_tensor_is_not_kept_by_mlx(file):
    """If a program evaluates the arrays itself, the tensor beside them is not read."""
    network = load(file)
    quantize(network)
    mx.synchronize()
    before = mx.get_active_memory()
    mx.eval(network.parameters())
    mx.synchronize()
    size = sum(value.nbytes for _, value in tree_flatten(network.parameters()))
    assert mx.get_active_memory() - before <= size + ROUNDING


def test_gradients(file):
    """A layer that has not been read is right inside of a transformation, too."""
    x, network, plain = mx.ones((1, WIDTH)), load(file), make_plain(file)
    quantize(network)
    ours, theirs = (mx.grad(lambda x, net=net: net(x).sum())(x) for net in (network, plain))
    assert mx.abs(ours - theirs).max().item() <= 1e-5 * mx.abs(theirs).max().item()
    compare(network, plain)


def test_a_thread_that_loads_and_reads(file):
    """A server may do everything in one thread that is not the first."""
    networks = []

    def work() -> None:
        network = load(file)
        quantize(network)
        read_weights(network)
        networks.append(network)

    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(networks) == 2
    for network in networks:
        compare(network, make_plain(file))


def test_a_layer_without_file():
    """Its weight is quantized lazily, as MLX does."""
    layer = Linear(64, 8).to_quantized(64, 4)
    assert isinstance(layer, QuantizedLinear)
    stored_weights.quantize_now(layer)
    assert layer.weight.shape == (8, 8)


def test_files_of_convert_replace_the_weights(file):
    """Networks are quantized as such a file is, and then get its arrays."""
    from stable_diffusion.config.networks import Quantization

    network = load(file)
    quantize_as(network, Quantization(8, 64))
    network.update(tree_map(mx.ones_like, network.parameters()))
    read_weights(network)
    assert all((value == 1).all().item() for _, value in tree_flatten(network.parameters()))
