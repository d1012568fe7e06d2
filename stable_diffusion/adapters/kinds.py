"""The kinds of adapters: which tensors of a file are one, and the change of a layer that they make.

The tensors are PyTorch's, so weights and what is multiplied to them are [O, I, h, w], or flattened
[O, I · h · w]. Layers and `changes` have channels last. O and I are the outputs and inputs of the
layer. The names are those of kohya's scripts and of LyCORIS (arXiv:2309.14859).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import mlx.core as mx

from ..utils.strict_json import require
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


class IncompleteError(ValueError):
    """A tensor is missing that belongs to others."""


class ShapeError(ValueError):
    """Tensors do not fit each other, or the layer."""


class LayerChange(Protocol):
    """The tensors of a file for one layer, and their keys, by the names that kohya and LyCORIS use.

    `compute_ratio` returns alpha / rank, or what the options of PEFT say instead.
    """

    name: str
    tensors: dict[str, mx.array]
    keys: dict[str, str]

    def compute_ratio(self, rank: int) -> float: ...


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


class Parts:
    """The tensors of a file for one layer, whose shapes are checked as they are read.

    Args:
        change: the tensors.
        shape: of the layer's weight: [O, I], [O, h, w, I], or [C] of a norm.
        scale: of the changes.
    """

    def __init__(self, change: LayerChange, shape: tuple[int, ...], scale: float):
        self.change = change
        self.shape = shape
        self.scale = scale
        self.n_out, *kernel = shape[:-1] or shape
        self.n_in = shape[-1] if len(shape) > 1 else 1
        self.kernel = tuple(kernel)  # height and width
        self.pixels = math.prod(kernel)

    def __contains__(self, name: str) -> bool:
        return name in self.change.tensors

    def amplify(self, x: mx.array, rank: int | None = None) -> mx.array:
        """Return x in float32 times the scale, and times alpha / rank if a rank is given."""
        x = widen(x)
        if rank is not None:
            self._get_number("alpha")
            ratio = self.change.compute_ratio(rank) * self._get_number("scalar")
            name = self.change.name
            require(math.isfinite(ratio), f"the alpha of {name} is not a finite number")
            x = x * ratio
        return self.scale * x

    def get(self, name: str) -> mx.array:
        """Return a tensor of floats that is not empty."""
        if name not in self:
            raise IncompleteError
        tensor = self.change.tensors[name]
        _require_fit(tensor.size > 0 and mx.issubdtype(tensor.dtype, mx.floating))
        return tensor

    def get_matrix(self, name: str) -> mx.array:
        """Return a matrix, which may be the weight of a 1×1 convolution."""
        tensor = self.get(name)
        if tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
            tensor = tensor.reshape(tensor.shape[:2])
        _require_fit(tensor.ndim == 2)
        return tensor

    def get_rows(self, name: str, n_out: int | None = None) -> mx.array:
        """Return a matrix [O, rank]."""
        matrix = self.get_matrix(name)
        _require_fit(len(matrix) == (self.n_out if n_out is None else n_out))
        return matrix

    def get_columns(self, name: str, n_in: int | None = None) -> mx.array:
        """Return a tensor [rank, ..., I] of [rank, I, h, w] or [rank, I · h · w]."""
        tensor = self.get(name)
        n_in = self.n_in if n_in is None else n_in
        rank, *others = tensor.shape if tensor.ndim else (0,)
        fits = others in ([n_in, *self.kernel], [n_in * self.pixels])
        is_pixel = not self.kernel and others == [n_in, 1, 1]
        _require_fit(len(self.shape) > 1 and (fits or is_pixel))
        if not self.kernel:
            return tensor.reshape(rank, n_in)
        return mx.contiguous(tensor.reshape(rank, n_in, *self.kernel).transpose(0, 2, 3, 1))

    def get_full(self, name: str) -> mx.array:
        """Return a tensor with the shape of the layer's weight."""
        tensor = self.get(name) if len(self.shape) == 1 else self.get_columns(name)
        _require_fit(tensor.shape == self.shape)
        return tensor

    def get_vector(self, name: str, n: int) -> mx.array:
        """Return a vector [n], which may have other axes of the length 1."""
        tensor = self.get(name)
        _require_fit(tensor.size == n and max(tensor.shape, default=1) == n)
        return tensor.flatten()

    def get_convolved(self, core: str, name: str, n_in: int | None = None) -> mx.array:
        """Return a kernel [r₁, ..., I] in Tucker's form: [r₁, r₂, h, w], after [r₂, I]."""
        kernel, matrix = self.get(core), self.get_matrix(name)
        n_in = self.n_in if n_in is None else n_in
        shapes = [len(matrix), *self.kernel], [len(matrix), *(self.kernel or (1, 1))]
        _require_fit(kernel.ndim > 1 and [*kernel.shape[1:]] in shapes)
        _require_fit(len(self.shape) > 1 and matrix.shape[1] == n_in)
        flat = widen(kernel).reshape(len(kernel), len(matrix), self.pixels)
        convolved = mx.einsum("ijp,jn->ipn", flat, widen(matrix))
        return convolved.reshape(len(kernel), *self.kernel, n_in)

    def _get_number(self, name: str) -> float:
        """Return a number that is 1 if it is not in the file."""
        tensor = self.change.tensors.get(name)
        if tensor is None:
            return 1
        _require_fit(tensor.size == 1)
        number: Any = tensor.item()
        return float(number)


def read_lora(parts: Parts) -> list[Change]:
    """Read LoRA (arXiv:2106.09685), U D; with `lora_mid` the kernel D is in Tucker's form."""
    up, down = parts.get_rows("lora_up.weight"), parts.get("lora_down.weight")
    rank = len(down) if down.ndim else 0
    if "lora_mid.weight" in parts:
        down = parts.get_convolved("lora_mid.weight", "lora_down.weight")
    else:
        down = parts.get_columns("lora_down.weight")
    _require_fit(up.shape[1] == len(down))
    changes: list[Change] = [LowRank(down, parts.amplify(up, rank))]
    if "bias" in parts:  # of LyCORIS's extraction: what U D does not have of the difference
        changes.append(Difference(parts.amplify(parts.get_full("bias"), rank)))
    if not _SPARSE.isdisjoint(parts.change.tensors):
        changes.append(Difference(parts.amplify(_read_sparse(parts), rank)))
    return changes


def read_loha(parts: Parts) -> list[Change]:
    """Read LoHa (arXiv:2108.06098), the product of each number of two low-rank differences."""
    pairs = [_read_pair(parts, f"hada_w{i}", f"hada_t{i}") for i in (1, 2)]
    (down1, up1), (down2, up2) = pairs
    return [Hadamard(down1, parts.amplify(up1, len(parts.get("hada_w1_b"))), down2, up2)]


def read_lokr(parts: Parts) -> list[Change]:
    """Read LoKr (arXiv:2309.14859), A ⊗ B, where either matrix may be a product of two.

    If neither is, alpha has no effect.
    """
    rank = None
    if "lokr_w1" in parts:
        first = parts.get_matrix("lokr_w1")
    else:
        left, right = parts.get_matrix("lokr_w1_a"), parts.get_matrix("lokr_w1_b")
        rank = len(right)
        _require_fit(left.shape[1] == rank)
        first = widen(left) @ widen(right)
    rows, columns = first.shape
    _require_fit(parts.n_out % rows == 0 and parts.n_in % columns == 0)
    sizes = parts.n_out // rows, parts.n_in // columns
    if "lokr_w2" in parts:
        second = parts.get_columns("lokr_w2", sizes[1])
    else:
        down, up = _read_pair(parts, "lokr_w2", "lokr_t2", sizes)
        rank = len(parts.get("lokr_w2_b"))
        second = (up @ widen(down).flatten(1)).reshape(len(up), *down.shape[1:])
    _require_fit(len(second) == sizes[0])
    return [Kronecker(parts.amplify(first, rank), second)]


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
            added = LowRank(down, parts.amplify(up, rank))
            return [InputAndOutput(down_in, parts.amplify(up_in, rank), added)]
    raise ShapeError


def read_ia3(parts: Parts) -> list[Change]:
    """Read (IA)³ (arXiv:2205.05638): a factor for each channel of the output or the input."""
    if "on_input" not in parts:
        raise IncompleteError
    flag = parts.change.tensors["on_input"]
    _require_fit(flag.size == 1 and len(parts.shape) > 1)
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
    _require_fit(up.shape == (n_out, len(down)))
    return down, widen(up)


def _read_sparse(parts: Parts) -> mx.array:
    """Return the sparse difference of a weight that older LyCORIS extracted, in full."""
    if not parts.change.tensors.keys() >= _SPARSE:
        raise IncompleteError
    names = ("bias_indices", "bias_values", "bias_size")
    indices, values, size = (parts.change.tensors[name] for name in names)
    n_columns = parts.n_in * parts.pixels
    _require_fit(values.ndim == 1 and mx.issubdtype(values.dtype, mx.floating))
    _require_fit(indices.shape == (2, len(values)) and size.ndim == 1 and len(parts.shape) > 1)
    _require_fit(all(mx.issubdtype(x.dtype, mx.integer) for x in (indices, size)))
    _require_fit(size.size == 2 and size.tolist() == [parts.n_out, n_columns])
    rows, columns = indices.astype(mx.int64)
    are_inside = (rows >= 0) & (rows < parts.n_out) & (columns >= 0) & (columns < n_columns)
    _require_fit(bool(are_inside.all().item()))
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
        changes.append(BiasDifference(parts.amplify(bias, rank)))
    return changes


def _read_magnitude(parts: Parts) -> tuple[mx.array, bool]:
    """Return DoRA's norms, and whether they are those of the input's channels.

    LyCORIS writes [O, 1, ...] or [1, I, ...]. PEFT has only rows, and writes [O] or [1, O, 1, 1].
    """
    tensor = parts.get("dora_scale")
    _require_fit(len(parts.shape) > 1 and tensor.ndim > 0)
    is_peft = "lora_magnitude_vector" in parts.change.keys["dora_scale"]
    if tensor.size == parts.n_out and (is_peft or len(tensor) == parts.n_out):
        return tensor.flatten(), False
    _require_fit(tensor.ndim > 1 and tensor.size == tensor.shape[1] == parts.n_in)
    return tensor.flatten(), True


def _require_fit(fits: bool) -> None:
    if not fits:
        raise ShapeError
