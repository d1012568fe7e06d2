"""`compiled.py`: a network on a GPU is traced once for a shape, and never with old weights."""

import copy
import gc
import pickle
import sys
import threading
import weakref
from collections.abc import Callable, Iterator

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from gpu import as_on, without_fusing
from mlx.utils import tree_flatten
from ours import pictures

from stable_diffusion import StableDiffusion, compiled
from stable_diffusion.device.backend import Backend

X = mx.array([[1.0, -2.0, 0.5]])
mx.eval(X)


class Scale(nn.Module):
    """A layer whose factor is a number, not an array."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def __call__(self, x: mx.array) -> mx.array:
        return x * self.factor


class Network(nn.Module):
    """Some layers, and a private array."""

    def __init__(self, width: int = 3):
        super().__init__()
        self.layers = [nn.Linear(width, width), Scale(2.0)]
        self._offset = mx.ones(width)
        mx.eval(self.state)

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers:
            x = layer(x)
        return mx.sin(x) + self._offset


calls: list[tuple[int, ...]] = []  # the shapes that `apply` was called with


def apply(network: Network, x: mx.array, *others: mx.array) -> mx.array:
    """Call a network; this is the function that the tests compile."""
    calls.append(x.shape)
    return sum(others, network(x))


@pytest.fixture(autouse=True)
def metal() -> Iterator[None]:
    """Compile as on a Mac, and count the calls of `apply`."""
    calls.clear()
    with as_on(Backend.METAL), without_fusing():
        yield


def run(network: Network, *arguments: mx.array) -> np.ndarray:
    """Return the result of the compiled function."""
    return np.array(compiled.run(apply, network, *arguments))


def check(network: Network) -> None:
    """Check that the compiled function computes what the network does."""
    assert np.allclose(run(network, X), np.array(network(X)), atol=1e-6)


def test_each_shape_is_traced_once():
    network, wide = Network(), mx.concatenate([X, X])
    for x in (X, wide, X + 1, wide, X):
        assert np.allclose(run(network, x), np.array(network(x)), atol=1e-6)
    assert calls == [(1, 3), (2, 3)]
    first, second = (run(network, X, mx.array(number)) for number in (1.0, 2.0))
    assert np.allclose(second - first, 1) and len(calls) == 3


def assign(network: Network) -> None:
    network.layers[0].weight = network.layers[0].weight + 1


def change_in_place(network: Network) -> None:
    network.layers[0].weight *= 2


def assign_private(network: Network) -> None:
    network._offset = mx.zeros(3)


def update(network: Network) -> None:
    network.update({"layers": [{"bias": mx.full((3,), 3.0)}, {}]})


def replace_layer(network: Network) -> None:
    network.layers[0] = nn.Linear(3, 3)


CHANGES_OF_ARRAYS = [assign, change_in_place, assign_private, update, replace_layer]


def change_number(network: Network) -> None:
    network.layers[1].factor = 5.0


def replace_class(network: Network) -> None:
    network.layers[1] = nn.Identity()


def add_layer(network: Network) -> None:
    network.layers.append(Scale(3.0))


def quantize(network: Network) -> None:
    network.layers[0] = nn.QuantizedLinear.from_linear(nn.Linear(32, 3), 32, 8)
    network.layers.insert(0, nn.Linear(3, 32))


CHANGES_OF_STRUCTURE = [change_number, replace_class, add_layer, quantize]


@pytest.mark.parametrize("change", CHANGES_OF_ARRAYS + CHANGES_OF_STRUCTURE)
def test_every_change_is_seen(change: Callable[[Network], None]):
    """A new structure is traced again; new arrays are not."""
    network = Network()
    before = run(network, X)
    change(network)
    check(network)
    assert not np.allclose(run(network, X), before)
    assert len(calls) == (2 if change in CHANGES_OF_STRUCTURE else 1)


def test_a_replaced_method_is_seen(monkeypatch):
    network = Network()
    run(network, X)
    monkeypatch.setattr(Scale, "__call__", lambda layer, x: -x)
    check(network)


def test_a_network_is_freed_at_once():
    """Its memory must not wait for Python's garbage collector."""
    gc.disable()
    try:
        network = Network(1000)
        run(network, mx.ones((1, 1000)))
        dead, key, active = weakref.ref(network), id(network), mx.get_active_memory()
        assert key in compiled._compiled
        del network
        assert dead() is None and key not in compiled._compiled
        assert mx.get_active_memory() <= active - 4_000_000
    finally:
        gc.enable()


def test_the_network_itself_stays_as_it_was():
    network = Network()
    arrays, structure = compiled.collect(network)
    run(network, X)
    kept, same_structure = compiled.collect(network)
    assert all(a is b for a, b in zip(arrays, kept, strict=True)) and structure == same_structure
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        copied.layers[0].weight = -copied.layers[0].weight
        check(copied)
    check(network)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_an_error_while_it_is_traced(error):
    network = Network()

    def fail(x: mx.array) -> mx.array:
        raise error

    network.layers[1].__class__ = type("Failing", (Scale,), {"__call__": lambda self, x: fail(x)})
    with pytest.raises(error):
        run(network, X)
    mx.eval(network.parameters())
    network.layers[1] = Scale(2.0)
    check(network)


def test_another_thread_uses_a_network_that_is_being_traced():
    """It never sees the arrays of the other trace, and traces the network itself."""
    network = Network()
    expected = np.array(network(X))
    is_tracing, go_on = threading.Event(), threading.Event()
    results: list[np.ndarray] = []

    def wait(network: Network, x: mx.array) -> mx.array:
        is_tracing.set()
        assert go_on.wait(20)
        return network(x)

    thread = threading.Thread(
        target=lambda: results.append(np.array(compiled.run(wait, network, X)))
    )
    thread.start()
    assert is_tracing.wait(20)
    results += [np.array(network(X)), run(network, X)]
    go_on.set()
    thread.join()
    assert len(results) == 3
    assert all(np.allclose(result, expected, atol=1e-6) for result in results)


def test_transformations():
    """Gradients reach the arguments and the weights, also those of a copy."""
    network = Network()
    run(network, X)
    through = lambda x: compiled.run(apply, network, x)  # noqa: E731
    assert mx.allclose(
        mx.grad(lambda x: through(x).sum())(X), mx.grad(lambda x: network(x).sum())(X)
    )
    _, ours = nn.value_and_grad(network, lambda: through(X).sum())()
    _, theirs = nn.value_and_grad(network, lambda: network(X).sum())()
    for (key, a), (_, b) in zip(tree_flatten(ours), tree_flatten(theirs), strict=True):
        assert mx.allclose(a, b).item() and a.any().item(), key
    many = mx.stack([X, -X])
    assert mx.allclose(mx.vmap(through)(many), mx.stack([network(X), network(-X)]), atol=1e-6)
    assert mx.allclose(mx.compile(through)(X), network(X), atol=1e-6)
    check(network)


def test_traces_do_not_become_ever_more(monkeypatch):
    monkeypatch.setattr(compiled, "MAX_TRACES", 3)
    network = Network()
    for n in (1, 2, 3, 4, 5, 4):
        assert run(network, mx.ones((n, 3))).shape == (n, 3)
    assert len(calls) == 5
    assert len(compiled._compiled[id(network)][apply].traced) == 2


def is_same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Return whether two pictures are the same, except for rounding, and not of one colour."""
    return abs(ours.astype(int) - theirs).max() <= 1 and theirs.std() > 10


def make_pictures(sd: StableDiffusion, **options: object) -> np.ndarray:
    return pictures(sd, sd.generate_latents("a red circle", num_steps=2, seed=1, **options))


def test_a_pipeline_is_traced_once(monkeypatch):
    """The step is traced once for a shape, whatever the guidance; so are decode and encode."""
    sd = StableDiffusion("tiny")
    image = mx.zeros((64, 64, 3))
    for weight, rescale in ((3.0, 0.2), (5.0, 0.7)):
        made = make_pictures(sd, cfg_weight=weight, guidance_rescale=rescale)
        sd.generate_latents_from_image(image, "a star")
    functions = compiled._compiled[id(sd.unet)] | compiled._compiled[id(sd.autoencoder)]
    assert [len(each.traced) for each in functions.values()] == [1, 1, 1]
    with as_on(Backend.CPU):
        usual = make_pictures(sd, cfg_weight=5.0, guidance_rescale=0.7)
    assert is_same(made, usual)


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_cpu_compiles_nothing(monkeypatch, platform):
    """This includes a Mac without Metal, such as a virtual machine, which has no kernels."""
    expected = make_pictures(StableDiffusion("tiny"))

    def fail(*arguments: object) -> None:
        raise AssertionError

    with as_on(Backend.CPU):
        sd = StableDiffusion("tiny")  # of which nothing is compiled yet
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setattr(mx, "compile", fail)
        monkeypatch.setattr(mx, "async_eval", fail if platform == "darwin" else mx.async_eval)
        if platform == "darwin":
            monkeypatch.setattr("stable_diffusion.device.cpu_kernels.run", fail)
        assert is_same(make_pictures(sd), expected)
