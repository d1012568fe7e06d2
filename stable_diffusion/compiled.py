"""Run a network compiled by `mx.compile` on a GPU, traced once for each shape of its inputs.

For `mx.compile` an array that a function does not get as an argument is a constant: a weight that
is replaced later would change nothing. So the compiled function gets all arrays of the network as
an argument, in each call. While it is traced it puts them into a copy of the network. The network
itself never holds the arrays of a trace, whatever happens meanwhile: an error, or another thread
that uses or changes it.

Everything else of a network (classes, numbers, activations) is a constant of the trace. It is
compared before each call, and if it differs the network is traced again.
"""

import copy
import weakref
from collections.abc import Callable
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
        traced: grows by one function at each trace.
    """

    function: Callable[..., Any]
    structure: list[Any]
    traced: list[Function]


MAX_TRACES = 16  # kept of a function: a trace of SDXL's UNet takes 6 MB

# By the id of a network, and by the function: the last structure only. The entries of a network are
# removed with it.
_compiled: dict[int, dict[Function, Compiled]] = {}


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
    kept = _get_kept(network if owner is None else owner)
    compiled = kept.get(function)
    if compiled is None or not _can_run(compiled, structure):
        # What is traced and what it is compared with must be the same, and other threads may be
        # changing the network: both are taken from one copy.
        network = _map_arrays(network, lambda array: array)
        arrays, structure = collect(network)
        compiled = kept[function] = _compile(function, network, structure)
    return compiled.function(arrays, *arguments)


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
            structure.append(type(value).__call__)  # which token merging, for example, replaces
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


def _map_arrays(value: Any, function: Callable[[mx.array], mx.array]) -> Any:
    """Return a copy of a part of a network with function(array) for each array.

    The function is called in the order of `collect`.
    """
    if isinstance(value, mx.array):
        return function(value)
    if isinstance(value, dict):
        copied = copy.copy(value)
        for key, each in copied.items():
            copied[key] = _map_arrays(each, function)
        return copied
    if isinstance(value, list | tuple):
        make = getattr(type(value), "_make", type(value))  # named tuples have `_make`
        return make([_map_arrays(each, function) for each in value])
    return value


def _get_kept(owner: nn.Module) -> dict[Function, Compiled]:
    """Return the compiled functions that are kept for a network, as long as it lives."""
    if id(owner) not in _compiled:
        _compiled[id(owner)] = {}
        weakref.finalize(owner, _compiled.pop, id(owner), None).atexit = False
    return _compiled[id(owner)]


def _can_run(compiled: Compiled, structure: list[Any]) -> bool:
    """Return whether a compiled function is right for a structure, and has not too many traces."""
    return len(compiled.traced) < MAX_TRACES and has_same_structure(compiled.structure, structure)


def has_same_structure(first: list[Any], second: list[Any]) -> bool:
    """Return whether two results of `collect` have the same structure."""
    with suppress(ValueError):  # arrays of NumPy, whose comparison is an array
        return first == second
    return False


def _compile(function: Function, network: nn.Module, structure: list[Any]) -> Compiled:
    """Return the function, compiled for networks of the same structure as `network`."""
    traced: list[Function] = []
    placeholder = mx.array(0)
    empty = _map_arrays(network, lambda array: placeholder)  # the arrays themselves can be freed

    def call(arrays: list[mx.array], *arguments: Any) -> Any:
        traced.append(function)
        remaining = iter(arrays)
        return function(_map_arrays(empty, lambda array: next(remaining)), *arguments)

    return Compiled(mx.compile(call), structure, traced)
