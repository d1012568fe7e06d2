"""The tensors of an adapter file for one layer, and the checks of their shapes.

In files they are as in PyTorch: weights, and what is multiplied to them, are [O, I, h, w] or are
flattened, [O, I · h · w]. O and I are the outputs and inputs of the layer. Here they are returned
with channels last, [O, h, w, I].
"""

import math
from typing import Any, Protocol

import mlx.core as mx

from ..utils.strict_json import require
from .changes import widen


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

    def amplify(self, x: mx.array, ratio: float = 1) -> mx.array:
        """Return x in float32 times a ratio and the scale."""
        return self.scale * (widen(x) * ratio)

    def compute_ratio(self, rank: int | None) -> float:
        """Return the factor of a change: alpha / rank, and LyCORIS's `scalar`.

        Args:
            rank: of the change; None if alpha has no effect.
        """
        self._get_number("alpha")
        ratio = 1 if rank is None else self.change.compute_ratio(rank)
        ratio *= self._get_number("scalar")
        require(math.isfinite(ratio), f"the alpha of {self.change.name} is not a finite number")
        return ratio

    def get(self, name: str) -> mx.array:
        """Return a tensor of floats that is not empty."""
        if name not in self:
            raise IncompleteError
        tensor = self.change.tensors[name]
        require_fit(tensor.size > 0 and mx.issubdtype(tensor.dtype, mx.floating))
        return tensor

    def get_matrix(self, name: str) -> mx.array:
        """Return a matrix, which may be the weight of a 1×1 convolution."""
        tensor = self.get(name)
        if tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
            tensor = tensor.reshape(tensor.shape[:2])
        require_fit(tensor.ndim == 2)
        return tensor

    def get_rows(self, name: str, n_out: int | None = None) -> mx.array:
        """Return a matrix [O, rank]."""
        matrix = self.get_matrix(name)
        require_fit(len(matrix) == (self.n_out if n_out is None else n_out))
        return matrix

    def get_columns(self, name: str, n_in: int | None = None) -> mx.array:
        """Return a tensor [rank, ..., I] of [rank, I, h, w] or [rank, I · h · w]."""
        tensor = self.get(name)
        n_in = self.n_in if n_in is None else n_in
        rank, *others = tensor.shape if tensor.ndim else (0,)
        fits = others in ([n_in, *self.kernel], [n_in * self.pixels])
        is_pixel = not self.kernel and others == [n_in, 1, 1]
        require_fit(len(self.shape) > 1 and (fits or is_pixel))
        if not self.kernel:
            return tensor.reshape(rank, n_in)
        return mx.contiguous(tensor.reshape(rank, n_in, *self.kernel).transpose(0, 2, 3, 1))

    def get_full(self, name: str) -> mx.array:
        """Return a tensor with the shape of the layer's weight."""
        tensor = self.get(name) if len(self.shape) == 1 else self.get_columns(name)
        require_fit(tensor.shape == self.shape)
        return tensor

    def get_vector(self, name: str, n: int) -> mx.array:
        """Return a vector [n], which may have other axes of the length 1."""
        tensor = self.get(name)
        require_fit(tensor.size == n and max(tensor.shape, default=1) == n)
        return tensor.flatten()

    def get_convolved(self, core: str, name: str, n_in: int | None = None) -> mx.array:
        """Return a kernel [r₁, ..., I] in Tucker's form: [r₁, r₂, h, w], after [r₂, I]."""
        kernel, matrix = self.get(core), self.get_matrix(name)
        n_in = self.n_in if n_in is None else n_in
        shapes = [len(matrix), *self.kernel], [len(matrix), *(self.kernel or (1, 1))]
        require_fit(kernel.ndim > 1 and [*kernel.shape[1:]] in shapes)
        require_fit(len(self.shape) > 1 and matrix.shape[1] == n_in)
        flat = widen(kernel).reshape(len(kernel), len(matrix), self.pixels)
        convolved = mx.einsum("ijp,jn->ipn", flat, widen(matrix))
        return convolved.reshape(len(kernel), *self.kernel, n_in)

    def _get_number(self, name: str) -> float:
        """Return a number that is 1 if it is not in the file."""
        tensor = self.change.tensors.get(name)
        if tensor is None:
            return 1
        require_fit(tensor.size == 1 and tensor.dtype != mx.complex64)
        number: Any = tensor.item()
        return float(number)


def require_fit(fits: bool) -> None:
    """Check a condition.

    Raises:
        ShapeError: if it is false.
    """
    if not fits:
        raise ShapeError
