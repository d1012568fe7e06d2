"""Run a network compiled by `mx.compile` on a GPU, traced once for each shape of its inputs.

For `mx.compile` an array that a function does not get as an argument is a constant: a weight that
is replaced later would change nothing. So the compiled function gets all arrays of the network as
an argument. While it is traced it puts them into a copy of the network, so the network itself never
holds anything but its own arrays, also if an error ends the tracing, or another thread uses it.

Everything else of a network (classes, numbers, activations) is a constant of the trace. It is
compared before each call, and if it differs the network is traced again.
"""

import copy
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from .device import backend

Function = Callable[..., Any]  # a network and trees of arrays → a tree of arrays


class Content(NamedTuple):
    """What a network consists of.

    Attributes:
        arrays: all arrays, in the order in which they are found.
        structure: everything else, in the same order.
    """

    arrays: list[mx.array]
    structure: list[Any]


class Compiled(NamedTuple):
    """A compiled function, and what it was traced with.

    Attributes:
        function: takes the arrays of the network and the other arguments.
        structure: the structure of the network.
        traced: the functions that were traced: the same one, once for each shape.
    """

    function: Callable[..., Any]
    structure: list[Any]
    traced: list[Function]


MAX_TRACES = 16  # kept of a function: a trace of SDXL's UNet takes 6 MB

# By the id of a network, and by the function. The entries of a network are removed with it.
_compiled: dict[int, dict[Function, Compiled]] = {}
_called = threading.local()  # .network: the network of the call that this thread is in


def run(function: Function, network: nn.Module, *arguments: Any, owner: Any = None) -> Any:
    """Return function(network, *arguments), compiled if the default device is a GPU.

    Gradients with respect to the arguments and to the network are right: inside a transformation
    `mx.compile` calls the function itself.

    Args:
        function: a function that is the same object in every call. It is called to trace it, with a
            copy of the network, so it must return the same for the same arguments.
        arguments: trees of arrays. Numbers in them are constants: the function is traced again
            for each new number.
        owner: the network that the compiled function is kept for, as long as it lives, if `network`
            is a copy of it.

    Returns:
        What the function returns: a tree of arrays.
    """
    if not backend.is_gpu():  # there `mx.compile` needs a C++ compiler, and gains nothing
        return function(network, *arguments)
    arrays, structure = collect(network)
    compiled = _get_compiled(function, network if owner is None else owner, structure)
    outer = getattr(_called, "network", None)
    _called.network = network
    try:
        return compiled(arrays, *arguments)
    finally:
        _called.network = outer


def collect(network: nn.Module) -> Content:
    """Return the arrays of a network, private ones too, and everything else that it computes with.

    Two networks of the same structure differ only in their arrays.
    """
    content = Content([], [])
    _collect(network, content)
    return content


def _collect(value: Any, content: Content) -> None:
    """Append a part of a network to its content."""
    arrays, structure = content
    if isinstance(value, mx.array):
        arrays.append(value)
        structure.append(mx.array)
    elif isinstance(value, dict):  # a module is one, too
        structure.append(type(value))
        if isinstance(value, nn.Module):
            structure.append(type(value).__call__)  # a test may replace it
            structure.extend(vars(value).values())
        structure.extend(value)
        for each in value.values():
            _collect(each, content)
    elif isinstance(value, list | tuple):
        structure.append(len(value))
        for each in value:
            _collect(each, content)
    else:
        structure.append(value)


def _fill(value: Any, arrays: Iterator[mx.array]) -> Any:
    """Return a copy of a part of a network with other arrays, in the order of `collect`."""
    if isinstance(value, mx.array):
        return next(arrays)
    if isinstance(value, dict):
        filled = copy.copy(value)
        for key, each in value.items():
            filled[key] = _fill(each, arrays)
        return filled
    if isinstance(value, list | tuple):
        return type(value)([_fill(each, arrays) for each in value])
    return value


def _get_compiled(function: Function, owner: nn.Module, structure: list[Any]) -> Callable[..., Any]:
    """Return the compiled function that is kept for a network, a new one if its structure is new.

    Only the traces of the last structure are kept, and of at most `MAX_TRACES` shapes, so that
    their number stays small.
    """
    if id(owner) not in _compiled:
        _compiled[id(owner)] = {}
        weakref.finalize(owner, _compiled.pop, id(owner), None).atexit = False
    kept = _compiled[id(owner)].get(function)
    is_full = kept is not None and len(kept.traced) >= MAX_TRACES
    if kept is None or is_full or not has_same_structure(kept.structure, structure):
        kept = _compiled[id(owner)][function] = _compile(function, structure)
    return kept.function


def has_same_structure(first: list[Any], second: list[Any]) -> bool:
    """Return whether two results of `collect` have the same structure."""
    with suppress(ValueError):  # arrays of NumPy, whose comparison is an array
        return first == second
    return False


def _compile(function: Function, structure: list[Any]) -> Compiled:
    """Return the function, compiled for networks of a structure."""
    traced: list[Function] = []

    def call(arrays: list[mx.array], *arguments: Any) -> Any:
        traced.append(function)
        return function(_fill(_called.network, iter(arrays)), *arguments)

    return Compiled(mx.compile(call), structure, traced)
