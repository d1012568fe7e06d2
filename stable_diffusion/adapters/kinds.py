"""The kinds of adapters: which tensors of a file are one, and the change of a layer that they make.

The names of the tensors are those of kohya's scripts and of LyCORIS (arXiv:2309.14859).
"""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from .changes import (
    BiasDifference,
    Change,
    Decomposed,
    Difference,
    Hadamard,
    InputAndOutput,
    Kronecker,
    LowRank,
    ScaleChannels,
    widen,
)
from .layer_parts import IncompleteError, LayerChange, Parts, ShapeError, require_fit


def read_changes(
    change: LayerChange, shape: tuple[int, ...], scale: float, dtype: mx.Dtype
) -> list[Change]:
    """Return the changes that the tensors of a file make of a layer.

    Args:
        shape: of the layer's weight: [O, I], [O, h, w, I], or [C] of a norm.
        scale: of the changes.
        dtype: the type of their factors.

    Raises:
        IncompleteError: if a tensor is missing.
        ShapeError: if a tensor has another shape or type than the layer and the others ask for.
        ValueError: if an alpha, or another number of the file, cannot be used.
    """
    is_decomposed = "dora_scale" in change.tensors
    parts = Parts(change, shape, 1 if is_decomposed else scale)
    kinds = [kind for kind in KINDS if not kind.parts.isdisjoint(change.tensors)]
    changes = [each for kind in kinds for each in kind.read(parts)]
    if is_decomposed:
        if not changes:
            raise IncompleteError
        magnitude, on_input = _read_magnitude(parts)
        changes = [Decomposed(changes, magnitude, scale, on_input)]
    changes += _read_biases(Parts(change, shape, scale))
    if not changes:
        raise IncompleteError
    return [each.astype(dtype) for each in changes]


def list_unknown(change: LayerChange) -> list[str]:
    """Return the keys of tensors that belong to no kind."""
    known = MODIFIERS.union(*(kind.parts for kind in KINDS))
    return [key for part, key in change.keys.items() if part not in known]


def read_lora(parts: Parts) -> list[Change]:
    """Read LoRA (arXiv:2106.09685), U D; with `lora_mid` the kernel D is in Tucker's form."""
    up, down = parts.get_rows("lora_up.weight"), parts.get("lora_down.weight")
    rank = len(down) if down.ndim else 0
    if "lora_mid.weight" in parts:
        down = parts.get_convolved("lora_mid.weight", "lora_down.weight")
    else:
        down = parts.get_columns("lora_down.weight")
    require_fit(up.shape[1] == len(down))
    ratio = parts.compute_ratio(rank)
    changes: list[Change] = [LowRank(down, parts.amplify(up, ratio))]
    if "bias" in parts:  # of LyCORIS's extraction: what U D does not have of the difference
        changes.append(Difference(parts.amplify(parts.get_full("bias"), ratio)))
    if not _SPARSE.isdisjoint(parts.change.tensors):
        changes.append(Difference(parts.amplify(_read_sparse(parts), ratio)))
    return changes


def read_loha(parts: Parts) -> list[Change]:
    """Read LoHa (arXiv:2108.06098), the product of each number of two low-rank differences."""
    pairs = [_read_pair(parts, f"hada_w{i}", f"hada_t{i}") for i in (1, 2)]
    (down1, up1), (down2, up2) = pairs
    ratio = parts.compute_ratio(len(parts.get("hada_w1_b")))
    return [Hadamard(down1, parts.amplify(up1, ratio), down2, up2)]


def read_lokr(parts: Parts) -> list[Change]:
    """Read LoKr (arXiv:2309.14859), A ⊗ B, where either matrix may be a product of two.

    If neither is, an alpha in the file has no effect; the options of PEFT have one.
    """
    rank = None if "alpha" in parts else 1
    if "lokr_w1" in parts:
        first = parts.get_matrix("lokr_w1")
    else:
        left, right = parts.get_matrix("lokr_w1_a"), parts.get_matrix("lokr_w1_b")
        rank = len(right)
        require_fit(left.shape[1] == rank)
        first = widen(left) @ widen(right)
    rows, columns = first.shape
    require_fit(parts.n_out % rows == 0 and parts.n_in % columns == 0)
    sizes = parts.n_out // rows, parts.n_in // columns
    if "lokr_w2" in parts:
        second = parts.get_columns("lokr_w2", sizes[1])
    else:
        down, up = _read_pair(parts, "lokr_w2", "lokr_t2", sizes)
        rank = len(parts.get("lokr_w2_b"))
        second = (up @ widen(down).flatten(1)).reshape(len(up), *down.shape[1:])
    require_fit(len(second) == sizes[0])
    return [Kronecker(parts.amplify(first, parts.compute_ratio(rank)), second)]


def read_glora(parts: Parts) -> list[Change]:
    """Read GLoRA (arXiv:2306.07967): W A₁ A₂ + B₁ B₂; in older files the names 1 and 2 are swapped.

    Which it is can be told by the shapes.
    """
    matrices = {name: parts.get_matrix(f"{name}.weight") for name in ("a1", "a2")}
    for first, second in (("1", "2"), ("2", "1")):
        up_in, down_in = matrices[f"a{first}"], matrices[f"a{second}"]
        rank = len(down_in)
        if up_in.shape != (parts.n_in, rank) or down_in.shape != (rank, parts.n_in):
            continue
        if len(parts.get(f"b{first}.weight")) != parts.n_out:
            continue
        up, down = parts.get_rows(f"b{first}.weight"), parts.get_columns(f"b{second}.weight")
        if up.shape[1] == len(down) == rank:
            ratio = parts.compute_ratio(rank)
            added = LowRank(down, parts.amplify(up, ratio))
            return [InputAndOutput(down_in, parts.amplify(up_in, ratio), added)]
    raise ShapeError


def read_ia3(parts: Parts) -> list[Change]:
    """Read (IA)³ (arXiv:2205.05638): a factor for each channel of the output or the input."""
    if "on_input" not in parts:
        raise IncompleteError
    flag = parts.change.tensors["on_input"]
    require_fit(flag.size == 1 and len(parts.shape) > 1)
    on_input = bool(flag.item())
    vector = parts.get_vector("weight", parts.n_in if on_input else parts.n_out)
    return [ScaleChannels(parts.amplify(vector), on_input)]


def read_differences(parts: Parts) -> list[Change]:
    """Read a full difference, of a norm too."""
    names = [name for name in ("diff", "w_norm") if name in parts]
    return [Difference(parts.amplify(parts.get_full(name))) for name in names]


class Kind(NamedTuple):
    """A kind of adapters, or of parts of them."""

    parts: frozenset[str]  # that only this kind has
    read: Callable[[Parts], list[Change]]


_SPARSE = frozenset({"bias_indices", "bias_values", "bias_size"})
_LORA_BIASES = frozenset({"lora_up.bias", "lora_down.bias"})
_LORA = frozenset({"lora_up.weight", "lora_down.weight", "lora_mid.weight", "bias"})
_SIDES = [f"{i}{side}" for i in (1, 2) for side in ("_a", "_b")]

KINDS = (
    Kind(_LORA | _SPARSE | _LORA_BIASES, read_lora),
    Kind(frozenset(f"hada_w{side}" for side in _SIDES) | {"hada_t1", "hada_t2"}, read_loha),
    Kind(
        frozenset(f"lokr_w{side}" for side in ("1", "2", *_SIDES)) | {"lokr_t2"},
        read_lokr,
    ),
    Kind(frozenset(f"{name}.weight" for name in ("a1", "a2", "b1", "b2")), read_glora),
    Kind(frozenset({"weight", "on_input"}), read_ia3),
    Kind(frozenset({"diff", "diff_b", "w_norm", "b_norm"}), read_differences),
)
MODIFIERS = frozenset({"alpha", "scalar", "dora_scale"})  # of more than one kind


def _read_pair(
    parts: Parts, name: str, core: str, sizes: tuple[int, int] | None = None
) -> tuple[mx.array, mx.array]:
    """Return D [rank, ..., I] and U [O, rank] of a product U D, which may be in Tucker's form.

    Args:
        name, core: the names of the matrices, without their ends, and of Tucker's core.
        sizes: O and I, if they are not those of the layer.
    """
    n_out, n_in = (parts.n_out, parts.n_in) if sizes is None else sizes
    if core in parts:
        up = parts.get_matrix(f"{name}_a").T
        down = parts.get_convolved(core, f"{name}_b", n_in)
    else:
        up = parts.get_rows(f"{name}_a", n_out)
        down = parts.get_columns(f"{name}_b", n_in)
    require_fit(up.shape == (n_out, len(down)))
    return down, widen(up)


def _read_sparse(parts: Parts) -> mx.array:
    """Return the sparse difference of a weight that older LyCORIS extracted, in full."""
    if not parts.change.tensors.keys() >= _SPARSE:
        raise IncompleteError
    names = ("bias_indices", "bias_values", "bias_size")
    indices, values, size = (parts.change.tensors[name] for name in names)
    n_columns = parts.n_in * parts.pixels
    require_fit(values.ndim == 1 and mx.issubdtype(values.dtype, mx.floating))
    require_fit(indices.shape == (2, len(values)) and size.ndim == 1 and len(parts.shape) > 1)
    require_fit(all(mx.issubdtype(x.dtype, mx.integer) for x in (indices, size)))
    require_fit(size.size == 2 and size.tolist() == [parts.n_out, n_columns])
    rows, columns = indices.astype(mx.int64)
    are_inside = (rows >= 0) & (rows < parts.n_out) & (columns >= 0) & (columns < n_columns)
    require_fit(bool(are_inside.all().item()))
    flat = mx.zeros(parts.n_out * n_columns).at[rows * n_columns + columns].add(widen(values))
    if not parts.kernel:
        return flat.reshape(parts.shape)
    return flat.reshape(parts.n_out, parts.n_in, *parts.kernel).transpose(0, 2, 3, 1)


def _read_biases(parts: Parts) -> list[Change]:
    """Return the changes of the bias: differences, and the biases of a LoRA's own layers."""
    changes: list[Change] = []
    for name in ("diff_b", "b_norm"):
        if name in parts:
            vector = parts.get_vector(name, parts.n_out)
            changes.append(BiasDifference(parts.amplify(vector)))
    if not _LORA_BIASES.isdisjoint(parts.change.tensors):
        up, rank = parts.get_rows("lora_up.weight"), len(parts.get("lora_down.weight"))
        bias = mx.zeros(parts.n_out)
        if "lora_up.bias" in parts:
            bias = bias + parts.get_vector("lora_up.bias", parts.n_out)
        if "lora_down.bias" in parts:
            bias = bias + widen(up) @ widen(parts.get_vector("lora_down.bias", up.shape[1]))
        changes.append(BiasDifference(parts.amplify(bias, parts.compute_ratio(rank))))
    return changes


def _read_magnitude(parts: Parts) -> tuple[mx.array, bool]:
    """Return DoRA's norms, and whether they are those of the input's channels.

    LyCORIS writes [O, 1, ...] or [1, I, ...]. PEFT has only rows, and writes [O] or [1, O, 1, 1].
    """
    tensor = parts.get("dora_scale")
    require_fit(len(parts.shape) > 1 and tensor.ndim > 0)
    is_peft = "lora_magnitude_vector" in parts.change.keys["dora_scale"]
    if tensor.size == parts.n_out and (is_peft or len(tensor) == parts.n_out):
        return tensor.flatten(), False
    require_fit(tensor.ndim > 1 and tensor.size == tensor.shape[1] == parts.n_in)
    return tensor.flatten(), True
